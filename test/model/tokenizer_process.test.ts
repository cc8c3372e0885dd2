// What a checkpoint or a text can do to the process that encodes, and control tokens in a text.

import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Tokenizer } from '../../lib/index';
import { temporaryDirectories } from '../support/checkpoints';
import { errorOf } from '../support/devices';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const base = {
  ...{ version: '1.0', truncation: null, padding: null, added_tokens: [], normalizer: null },
  ...{ pre_tokenizer: null, post_processor: null, decoder: null },
  model: { type: 'BPE', vocab: { a: 0, b: 1 }, merges: [] },
};

function write(name: string, json: unknown): string {
  const directory = directories.make();
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, name), JSON.stringify(json));
  return directory;
}

async function load(parts: object): Promise<Tokenizer> {
  return (await Tokenizer.fromDirectory(write('tokenizer.json', { ...base, ...parts }))) as Tokenizer;
}

it('rejects only the text that aborts the library, and encodes afterwards', async () => {
  const pattern = { Regex: '(a+)+$' };
  const tokenizer = await load({ pre_tokenizer: { type: 'Split', pattern, behavior: 'Isolated', invert: false } });
  const hostile = `${'a'.repeat(40)}b`;
  const error = await errorOf(() => tokenizer.encodeAsync(hostile));
  expect([error.code, error.message]).toEqual(['ERR_INVALID_CHECKPOINT', expect.stringContaining('retry-limit')]);
  expect(await tokenizer.encode('ab')).toEqual([0, 1]);
  const results = await Promise.allSettled(['ab', hostile, 'ba'].map((text) => tokenizer.encodeAsync(text)));
  expect(results).toEqual([
    { status: 'fulfilled', value: [0, 1] },
    { status: 'rejected', reason: expect.objectContaining({ code: 'ERR_INVALID_CHECKPOINT' }) },
    { status: 'fulfilled', value: [1, 0] },
  ]);
});

it.each([
  ['a damaged table', { normalizer: { type: 'Precompiled', precompiled_charsmap: 'AAAA' } }, /Precompiled/],
  [
    'steps that fill the memory',
    { normalizer: { type: 'Sequence', normalizers: growth(12) } },
    /too much memory|time limit/,
  ],
  ['a post-processor without its token', { post_processor: missingToken() }, /no entry found/],
])('rejects a tokenizer.json with %s', async (_, parts, message) => {
  const error = await errorOf(() => load(parts));
  expect([error.code, error.message]).toEqual(['ERR_INVALID_CHECKPOINT', expect.stringMatching(message)]);
});

function growth(count: number): object[] {
  return Array(count).fill({ type: 'Replace', pattern: { String: 'a' }, content: 'a'.repeat(10) });
}

function missingToken(): object {
  const single = [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }];
  return { type: 'TemplateProcessing', single, pair: [], special_tokens: {} };
}

it('stops a Replace decoder that multiplies text', async () => {
  const tokenizer = await load({ decoder: { type: 'Sequence', decoders: growth(12) } });
  expect((await errorOf(() => tokenizer.decode([0]))).code).toBe('ERR_INVALID_CHECKPOINT');
});

it('leaves control tokens in a text as text with parseSpecial: false, whatever the model', async () => {
  const vocab = ['<unk>', '<s>', '<', 's', '>', '<t>', 't'].map((piece, id) => [piece, -id]);
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
  const directory = write('tokenizer.json', {
    ...base,
    model: { type: 'Unigram', unk_id: 0, byte_fallback: false, vocab },
    added_tokens: ['<s>', '<t>', '<u>'].map((content, i) => ({ id: i, content, ...flags, special: i === 0 })),
  });
  writeFileSync(join(directory, 'chat_template.jinja'), '<t>{{ messages[0].content }}');
  const tokenizer = (await Tokenizer.fromDirectory(directory)) as Tokenizer;
  expect(await tokenizer.encode('<s><t><u>')).toEqual([1, 5, 7]);
  // <u> is neither special nor in the template.
  expect(await tokenizer.encode('<s><t><u>', { parseSpecial: false })).toEqual([2, 3, 4, 2, 6, 4, 7]);
  const decoded = await tokenizer.encode('<s', { parseSpecial: false });
  expect(decoded).toEqual(await tokenizer.encode('<s'));
});

it('rejects a FIFO, a long file and a vocabulary in another format by name', async () => {
  const fifo = directories.make();
  mkdirSync(fifo, { recursive: true });
  execFileSync('mkfifo', [join(fifo, 'tokenizer.json')]);
  const long = write('tokenizer.json', base);
  writeFileSync(join(long, 'chat_template.jinja'), 'x'.repeat(2 ** 20 + 1));
  const cases: [string, string, RegExp][] = [
    [fifo, 'ERR_INVALID_CHECKPOINT', /tokenizer\.json: not a regular file/],
    [long, 'ERR_INVALID_CHECKPOINT', /chat_template\.jinja: has 1048577 bytes/],
    [write('tokenizer.model', 'x'), 'ERR_UNSUPPORTED_MODEL', /tokenizer\.model.*save_pretrained/],
    [write('vocab.json', {}), 'ERR_UNSUPPORTED_MODEL', /vocab\.json.*save_pretrained/],
  ];
  for (const [directory, code, message] of cases) {
    const error = await errorOf(() => Tokenizer.fromDirectory(directory));
    expect([error.code, error.message]).toEqual([code, expect.stringMatching(message)]);
  }
});

it('names the package if its module does not load', () => {
  const script = `
    const { Tokenizer } = require(${JSON.stringify(require.resolve('../../dist/lib/index.js'))});
    Tokenizer.fromDirectory(process.argv[1]).catch(({ code, message }) => console.log(code, message));`;
  const NAPI_RS_NATIVE_LIBRARY_PATH = join(directories.make(), 'missing.node');
  const env = { ...process.env, NAPI_RS_NATIVE_LIBRARY_PATH };
  const output = execFileSync(process.execPath, ['-e', script, write('tokenizer.json', base)], {
    env,
    encoding: 'utf8',
  });
  expect(output).toMatch(/^ERR_DEVICE_UNAVAILABLE .*package tokenizers/);
});

it('encodes at most 8192 characters synchronously', async () => {
  const tokenizer = await load({});
  expect(tokenizer.encode('ab'.repeat(4096))).toHaveLength(8192);
  const error = await errorOf(() => tokenizer.encode('a'.repeat(8193)));
  expect([error.code, error.message]).toEqual(['ERR_INVALID_ARGUMENT', expect.stringContaining('use encodeAsync')]);
  expect(await tokenizer.encodeAsync('a'.repeat(8193))).toHaveLength(8193);
});

it('ends a synchronous call that takes too long, and encodes afterwards', async () => {
  // Many attempts, each of which is short enough for the library.
  const pattern = { Regex: 'x*x*\\d' };
  const tokenizer = await load({ pre_tokenizer: { type: 'Split', pattern, behavior: 'Isolated', invert: false } });
  const error = await errorOf(() => tokenizer.encode('x'.repeat(4000)));
  expect([error.code, error.message]).toEqual([
    'ERR_INVALID_CHECKPOINT',
    expect.stringMatching(
      /: the tokenizer did not finish within 1000 ms; it may be busy with other texts, or be starting: use encodeAsync$/,
    ),
  ]);
  expect(await tokenizer.encodeAsync('ab')).toEqual([0, 1]);
});

it('aborts a load while the process starts, and while it encodes', async () => {
  const directory = write('tokenizer.json', base);
  for (const ms of [0, 5, 50, 200]) {
    const abort = new AbortController();
    setTimeout(() => abort.abort(), ms);
    const outcome = Tokenizer.fromDirectory(directory, { signal: abort.signal });
    const result = await outcome.then(
      () => 'loaded',
      (error) => error.code,
    );
    expect(['ABORT_ERR', 'loaded']).toContain(result);
    if (ms === 0) expect(result).toBe('ABORT_ERR');
  }
  const error = await errorOf(() => Tokenizer.fromDirectory(directory, { signal: AbortSignal.abort() }));
  expect(error.code).toBe('ABORT_ERR');
});
