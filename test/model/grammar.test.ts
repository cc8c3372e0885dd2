// Grammars that restrict the tokens that are drawn (lib/grammar), with a sampler of the test: it
// draws each allowed token with equal chance.

import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { runInNewContext } from 'node:vm';
import Ajv from 'ajv/dist/2020';
import type { DecoderConfig } from '../../lib/decoder';
import { tokenBytes } from '../../lib/decoder';
import { type Constraint, GrammarCompiler } from '../../lib/grammar/compiler';
import { grammarSource, type ResponseFormat } from '../../lib/grammar/format';
import type { Vocabulary } from '../../lib/grammar/thread';
import { defaultModelDirectory, Tokenizer } from '../../lib/index';
import { endProcess, grammars } from '../../lib/internal';
import { errorOf } from '../support/devices';
import { sentencePieceDecoder } from '../support/tokenizer_pipelines';
import { jsonSchemas, randomIntegers } from '../tools/json_schemas';

const END = 4095;
const options = { vocabSize: 4096, endTokens: [END] };
const below = randomIntegers(3);

let tokenizer: Tokenizer;
beforeAll(async () => {
  tokenizer = (await Tokenizer.fromDirectory(defaultModelDirectory)) as Tokenizer;
});
afterAll(() => tokenizer[endProcess]());

const compile = (format: ResponseFormat) => tokenizer[grammars].compile(grammarSource(format), options);

function allowedTokens({ allowed }: Pick<Constraint, 'allowed'>): number[] {
  const tokens: number[] = [];
  for (let token = 0; token < 32 * allowed.length; token++) {
    if (((allowed[token >> 5] as number) >>> (token & 31)) & 1) tokens.push(token);
  }
  return tokens;
}

/** Draws a text. Null if it has `limit` tokens and is unfinished. */
async function draw(constraint: Constraint, limit = 400): Promise<string | null> {
  const tokens: number[] = [];
  while (!constraint.isFinished) {
    const allowed = allowedTokens(constraint);
    const token = allowed[below(allowed.length)] as number;
    await constraint.accept(token);
    if (token !== END) tokens.push(token);
    if (tokens.length === limit) return null;
  }
  return tokenizer.decode(tokens);
}

async function drawOnce(format: ResponseFormat, limit?: number): Promise<string | null> {
  const constraint = await compile(format);
  const text = await draw(constraint, limit);
  constraint.dispose();
  return text;
}

describe('texts of the grammars', () => {
  const ajv = new Ajv({ strict: false, validateFormats: false });

  it.each(jsonSchemas(42).map(({ kind, schema }, i) => [i, kind, schema] as const))(
    'schema %i: %s',
    async (_, __, schema) => {
      const text = await drawOnce({ type: 'json_schema', schema });
      expect(text).not.toBeNull();
      expect([text, ajv.validate(schema, JSON.parse(text as string)), ajv.errorsText()]).toEqual([
        text,
        true,
        'No errors',
      ]);
    },
  );

  it.each<[string, RegExp]>([
    ['[a-z]{2,5}-é{1,3}', /^[a-z]{2,5}-é{1,3}$/],
    ['(0|1){20}', /^[01]{20}$/],
    ['日本|🙂{2}', /^(日本|🙂🙂)$/],
    ['\\n\\t"', /^\n\t"$/],
  ])('regex %j', async (pattern, expected) => {
    for (let i = 0; i < 5; i++) expect(await drawOnce({ type: 'regex', pattern })).toMatch(expected);
  });

  it('a grammar with nesting', async () => {
    const grammar = 'start: "(" start ")" | "x"';
    for (let i = 0; i < 5; i++) {
      const text = (await drawOnce({ type: 'grammar', grammar })) as string;
      const depth = text.indexOf('x');
      expect(text).toBe(`${'('.repeat(depth)}x${')'.repeat(depth)}`);
    }
  });

  it('json_object allows no other value, and whitespace only after commas and colons', async () => {
    const constraint = await compile({ type: 'json_object' });
    const bytes = new Set(allowedTokens(constraint).map((token) => tokenizer.decode([token])[0]));
    expect([...bytes]).toEqual(['{']);
    await constraint.accept(tokenizer.encode('{', { addSpecialTokens: false })[0] as number);
    expect(allowedTokens(constraint).map((token) => tokenizer.decode([token])[0])).not.toContain(' ');
    constraint.dispose();
  });
});

describe('the allowed tokens', () => {
  it('are those that a plain check allows', async () => {
    const constraint = await compile({ type: 'regex', pattern: '(tar|target|t)x?' });
    const texts = ['tar', 'target', 't', 'tarx', 'targetx', 'tx'];
    const isStart = (text: string) => text !== '' && texts.some((whole) => whole.startsWith(text));
    const expected = Array.from({ length: 4096 }, (_, token) => token).filter((token) =>
      isStart(tokenizer.decode([token])),
    );
    expect(allowedTokens(constraint)).toEqual(expected);
    constraint.dispose();
  });

  it('have the end tokens where the text may end, and only these where it must', async () => {
    const several = { vocabSize: 4096, endTokens: [7, END, 9000] }; // 9000: the model lacks it
    const constraint = await tokenizer[grammars].compile({ kind: 'regex', text: 'a[bc]?' }, several);
    const token = (text: string) => tokenizer.encode(text, { addSpecialTokens: false })[0] as number;
    const ends = () => allowedTokens(constraint).filter((allowed) => [7, END].includes(allowed));
    expect(ends()).toEqual([]);
    await constraint.accept(token('a'));
    expect(ends()).toEqual([7, END]);
    expect(constraint.isFinished).toBe(false);
    await constraint.accept(token('b'));
    expect(allowedTokens(constraint)).toEqual([7, END]);
    expect(constraint.isFinished).toBe(true);
    constraint.dispose();
  });

  it('have no end token as text', async () => {
    const token = (text: string) => tokenizer.encode(text, { addSpecialTokens: false })[0] as number;
    const [a, b] = [token('a'), token('b')];
    const source = { kind: 'regex', text: '[ab]b?' } as const;
    const constraint = await tokenizer[grammars].compile(source, { vocabSize: 4096, endTokens: [a, END] });
    expect(allowedTokens(constraint).filter((allowed) => [a, b, END].includes(allowed))).toEqual([b]);
    await constraint.accept(b);
    expect(allowedTokens(constraint)).toEqual([a, b, END].sort((x, y) => x - y));
    await constraint.accept(a);
    expect(constraint.isFinished).toBe(true);
    constraint.dispose();
    const compiled = tokenizer[grammars].compile({ kind: 'regex', text: 'a' }, { vocabSize: 4096, endTokens: [a] });
    await expect(compiled).rejects.toThrow('no token of the model continues or ends the text');
  });

  it('have no special token, and none that the model lacks', async () => {
    const small = { vocabSize: 1001, endTokens: [END] };
    const constraint = await tokenizer[grammars].compile({ kind: 'regex', text: '(?s:.*)' }, small);
    expect(constraint.allowed.length).toBe(32);
    const tokens = allowedTokens(constraint);
    expect(tokens.length).toBeGreaterThan(800);
    expect(Math.max(...tokens)).toBeLessThanOrEqual(1000);
    constraint.dispose();
    const whole = await compile({ type: 'regex', pattern: '(?s:.*)' });
    expect(allowedTokens(whole)).not.toContain(tokenizer.bosTokenId);
    expect(allowedTokens(whole)).toContain(END);
    whole.dispose();
  });
});

describe('errors', () => {
  class Zod {
    type = 'object';
  }
  const schema = (value: unknown) => ({ type: 'json_schema', schema: value }) as ResponseFormat;
  const cyclic: Record<string, unknown> = {};
  cyclic.items = cyclic;

  it.each<[string, ResponseFormat, RegExp]>([
    ['an unknown type', { type: 'yaml' } as never, /responseFormat.type must be 'json_object'/],
    [
      'an unknown field',
      { type: 'json_object', schema: {} } as never,
      /unknown name "schema" in responseFormat. The known names are type$/,
    ],
    ['no schema', { type: 'json_schema' } as never, /^responseFormat.schema must be a JSON schema, .*not undefined/],
    ['a function', schema(() => ({})), /^responseFormat.schema must be a JSON schema, .*not a function/],
    ['a list', schema([{}]), /^responseFormat.schema must be a JSON schema, .*not an array of 1/],
    ['an instance', schema(new Zod()), /responseFormat.schema is an instance of Zod: convert a schema of a library/],
    [
      'an instance within',
      schema({ properties: { a: [1, new Zod()] } }),
      /responseFormat.schema.properties.a.1 is an instance of Zod/,
    ],
    ['a function within', schema({ type: 'object', parse: () => {} }), /responseFormat.schema.parse is a function/],
    ['a date', schema({ const: new Date(0) }), /responseFormat.schema.const is an instance of Date/],
    ['NaN', schema({ minimum: Number.NaN }), /responseFormat.schema.minimum is NaN/],
    ['a bigint', schema({ minimum: 1n }), /responseFormat.schema.minimum is a bigint/],
    ['a cycle', schema(cyclic), /^responseFormat.schema cannot be written as JSON: .*circular/],
    ['a number', { type: 'regex', pattern: 5 } as never, /responseFormat.pattern must be a string, not 5/],
    [
      'a toJSON',
      { type: 'json_schema', schema: { toJSON: () => undefined } },
      /^responseFormat.schema cannot be written as JSON/,
    ],
    ['too long', { type: 'regex', pattern: 'a'.repeat(2 ** 20 + 1) }, /1048577 characters/],
    ['a NUL', { type: 'regex', pattern: 'a\0' }, /U\+0000/],
  ])('%s', (_, format, message) => {
    const error = (() => {
      try {
        return grammarSource(format) as never;
      } catch (error) {
        return error as { code: string; message: string };
      }
    })();
    expect([error.code, error.message]).toEqual(['ERR_INVALID_ARGUMENT', expect.stringMatching(message)]);
  });

  it('not a field that is undefined', () => {
    const format = { type: 'json_object', schema: undefined } as ResponseFormat;
    expect(grammarSource(format)).toEqual(grammarSource({ type: 'json_object' }));
  });

  it.each<[string, ResponseFormat, RegExp]>([
    ['pattern', { type: 'regex', pattern: `${'a'.repeat(100_000)}(` }, /aaa \.\.\. aaa.*unclosed group/s],
    ['grammar', { type: 'grammar', grammar: `start: ${'('.repeat(500_000)}` }, /nested.*\(\(\( \.\.\. \(\(\(/s],
  ])('a message quotes little of a long %s', async (_, format, expected) => {
    const { message } = await errorOf(() => compile(format));
    expect(message).toMatch(expected);
    expect(message.length).toBeLessThan(1500);
  });

  it('none for plain JSON values, from any realm', () => {
    const plain = { type: ['object', 'null'], properties: { a: true, b: undefined }, x: null };
    const text = JSON.stringify(plain).slice(1);
    const shared = { enum: ['a'] };
    for (const value of [plain, structuredClone(plain), runInNewContext(`(${JSON.stringify(plain)})`)]) {
      expect(grammarSource(schema(value)).text.endsWith(text)).toBe(true);
    }
    expect(grammarSource(schema(Object.assign(Object.create(null), plain))).text.endsWith(text)).toBe(true);
    expect(grammarSource(schema({ anyOf: [shared, shared] })).text).toContain('[{"enum":["a"]},{"enum":["a"]}]');
    expect(grammarSource(schema(true)).text).toBe('true');
  });

  it.each<[string, ResponseFormat, RegExp]>([
    ['a malformed pattern', { type: 'regex', pattern: '(' }, /^responseFormat: .*unclosed group/s],
    ['look-ahead', { type: 'regex', pattern: 'a(?=b)' }, /look-around/],
    ['a malformed grammar', { type: 'grammar', grammar: 'start: nothing' }, /nothing/],
    ['an unsupported keyword', { type: 'json_schema', schema: { not: {} } }, /Unimplemented keys: \["not"\]/],
    ['a contradiction', { type: 'json_schema', schema: { type: 'integer', minimum: 2, maximum: 1 } }, /Unsatisfiable/],
    ['a remote reference', { type: 'json_schema', schema: { $ref: 'http://example.com/a' } }, /does not fetch/],
    ['endless recursion', { type: 'json_schema', schema: { $ref: '#' } }, /^responseFormat: /],
  ])('%s', async (_, format, message) => {
    const error = await errorOf(() => compile(format));
    expect([error.code, error.message]).toEqual(['ERR_INVALID_ARGUMENT', expect.stringMatching(message)]);
    expect(error.message).not.toContain('<state>');
  });

  it('an aborted signal', async () => {
    const source = grammarSource({ type: 'json_object' });
    const signal = AbortSignal.abort();
    const error = await errorOf(() => tokenizer[grammars].compile(source, { ...options, signal }));
    expect(error.code).toBe('ABORT_ERR');
  });
});

describe('the thread', () => {
  const byteTokens: Vocabulary = {
    text: Buffer.from(Array.from({ length: 95 }, (_, i) => String.fromCharCode(32 + i)).join('')),
    ranges: Uint32Array.from({ length: 190 }, (_, i) => Math.ceil(i / 2)),
    specialTexts: new Set(),
    decoder: { type: 'Fuse' },
  };
  const bytes = { vocabSize: 95, endTokens: [] };
  const limits = { start: 60_000, request: 300, abandoned: 100, idle: 60_000 };
  const slow = grammarSource({
    type: 'json_schema',
    schema: {
      ...{ type: 'array', minItems: 100_000, maxItems: 1_000_000 },
      items: { type: 'array', minItems: 1000, items: {} },
    },
  });

  it('a request that takes too long fails, and the others go on in another thread', async () => {
    const compiler = new GrammarCompiler(byteTokens, limits);
    const constraint = await compiler.compile({ kind: 'regex', text: 'abc|abd|x' }, bytes);
    await constraint.accept(65);
    const [error] = await Promise.all([errorOf(() => compiler.compile(slow, bytes)), constraint.accept(66)]);
    expect([error.code, error.message]).toEqual([
      'ERR_INVALID_ARGUMENT',
      'responseFormat is too complex for the grammar library (it takes more than 300 ms): simplify it',
    ]);
    expect(allowedTokens(constraint)).toEqual([67, 68]);
    const later = await compiler.compile({ kind: 'regex', text: 'z' }, bytes);
    expect(allowedTokens(later)).toEqual([90]);
    await constraint.accept(68);
    expect(constraint.isFinished).toBe(true);
    compiler.close();
  });

  it('a request that breaks the library fails, and the others go on in another thread', async () => {
    const compiler = new GrammarCompiler(byteTokens);
    const constraint = await compiler.compile({ kind: 'regex', text: 'ab' }, bytes);
    const [error] = await Promise.all([
      errorOf(() => compiler.compile(null as never, bytes)), // a TypeError in the thread
      constraint.accept(65),
    ]);
    expect([error.code, error.message]).toEqual([
      'ERR_INVALID_ARGUMENT',
      expect.stringMatching(/^responseFormat is too complex for the grammar library \(.*null.*\): simplify it$/),
    ]);
    expect(allowedTokens(constraint)).toEqual([66]);
    compiler.close();
  });

  it('an aborted request ends at once, and does not make a later one fail', async () => {
    const compiler = new GrammarCompiler(byteTokens, limits);
    (await compiler.compile({ kind: 'regex', text: 'a' }, bytes)).dispose();
    const controllers = [new AbortController(), new AbortController()];
    const errors = controllers.map(({ signal }) => errorOf(() => compiler.compile(slow, { ...bytes, signal })));
    const later = compiler.compile({ kind: 'regex', text: 'b' }, bytes);
    for (const controller of controllers) controller.abort();
    const first = await Promise.race([later, Promise.all(errors)]);
    expect((first as Error[]).map((error) => (error as { code?: string }).code)).toEqual(['ABORT_ERR', 'ABORT_ERR']);
    expect(allowedTokens(await later)).toEqual([66]);
    compiler.close();
  });

  it('the time of a request is limited also while others are aborted and disposed of', async () => {
    const compiler = new GrammarCompiler(byteTokens, { ...limits, request: 1000 });
    const constraints = [];
    for (let i = 0; i < 20; i++) constraints.push(await compiler.compile({ kind: 'regex', text: 'a' }, bytes));
    let isOver = false;
    const error = errorOf(() => compiler.compile(slow, bytes)).finally(() => {
      isOver = true;
    });
    const startMs = performance.now();
    let numAborted = 0;
    while (!isOver && performance.now() - startMs < 3000) {
      const signal = AbortSignal.timeout(200);
      const waiting = errorOf(() => compiler.compile({ kind: 'regex', text: 'b' }, { ...bytes, signal }));
      constraints.pop()?.dispose();
      if ((await waiting).code === 'ABORT_ERR') numAborted++;
    }
    expect([isOver, numAborted > 1]).toEqual([true, true]);
    expect((await error).message).toContain('it takes more than 1000 ms');
    compiler.close();
  });

  it('an abort ends accept while the thread has another request', async () => {
    const compiler = new GrammarCompiler(byteTokens, { ...limits, request: 5000 });
    const controller = new AbortController();
    const { signal } = controller;
    const constraint = await compiler.compile({ kind: 'regex', text: 'ab' }, { ...bytes, signal });
    const error = errorOf(() => compiler.compile(slow, bytes));
    setTimeout(() => controller.abort(), 20);
    const startMs = performance.now();
    await constraint.accept(65);
    await constraint.accept(66);
    expect(performance.now() - startMs).toBeLessThan(2000);
    compiler.close();
    expect((await error).code).toBe('ERR_DISPOSED');
  });

  it('a request for which nobody waits does not hold the thread', async () => {
    const compiler = new GrammarCompiler(byteTokens, { ...limits, request: 60_000 });
    const constraint = await compiler.compile({ kind: 'regex', text: 'ab' }, bytes);
    const signals = Array.from({ length: 20 }, () => AbortSignal.timeout(50));
    const errors = signals.map((signal) => errorOf(() => compiler.compile(slow, { ...bytes, signal })));
    await constraint.accept(65); // after the slow ones
    expect(allowedTokens(constraint)).toEqual([66]);
    expect((await Promise.all(errors)).every(({ code }) => code === 'ABORT_ERR')).toBe(true);
    compiler.close();
  }, 20_000);

  it('a request for which nobody waits does not keep the process alive', () => {
    const directory = join(__dirname, '..', '..', 'dist', 'lib', 'grammar');
    const program = `
      const { GrammarCompiler } = require(${JSON.stringify(join(directory, 'compiler.js'))});
      const { text, ranges, slow, bytes } = ${JSON.stringify({ ...byteTokens, text: String(byteTokens.text), ranges: [...byteTokens.ranges], slow, bytes })};
      const vocabulary = { text: Buffer.from(text), ranges: Uint32Array.from(ranges), specialTexts: new Set(), decoder: { type: 'Fuse' } };
      const limits = { start: 60_000, request: 60_000, abandoned: 60_000, idle: 60_000 };
      const compiler = new GrammarCompiler(vocabulary, limits);
      compiler.compile({ kind: 'regex', text: 'a' }, bytes).then(async (constraint) => {
        const signal = AbortSignal.timeout(100);
        await compiler.compile(slow, { ...bytes, signal }).catch(({ code }) => console.log(code));
        const abortedMs = performance.now();
        process.on('exit', () => console.log(performance.now() - abortedMs < 2000));
      });
    `;
    const { stdout, status } = spawnSync(process.execPath, ['-e', program], { encoding: 'utf8', timeout: 10_000 });
    expect([status, stdout]).toEqual([0, 'ABORT_ERR\ntrue\n']);
  });

  it('ends when no text is being generated, and starts again', async () => {
    const compiler = new GrammarCompiler(byteTokens, { ...limits, request: 10_000, idle: 1 });
    for (let i = 0; i < 2; i++) {
      const constraint = await compiler.compile({ kind: 'regex', text: 'ab' }, bytes);
      await new Promise((resolve) => setTimeout(resolve, 20));
      await constraint.accept(65);
      expect(allowedTokens(constraint)).toEqual([66]);
      constraint.dispose();
      constraint.dispose();
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    compiler.close();
  });

  it('close rejects requests', async () => {
    const compiler = new GrammarCompiler(byteTokens);
    const error = errorOf(() => compiler.compile(slow, bytes));
    compiler.close();
    expect((await error).code).toBe('ERR_DISPOSED');
    const later = await errorOf(() => compiler.compile({ kind: 'regex', text: 'a' }, bytes));
    expect(later.code).toBe('ERR_DISPOSED');
  });

  it('a vocabulary whose tokens do not tell their bytes is not supported', async () => {
    const compiler = new GrammarCompiler({ ...byteTokens, decoder: { type: 'WordPiece' } });
    const error = await errorOf(() => compiler.compile({ kind: 'regex', text: 'a' }, bytes));
    expect([error.code, error.message]).toEqual([
      'ERR_UNSUPPORTED_MODEL',
      'the bytes of a token depend on other tokens with a decoder of type WordPiece: omit responseFormat',
    ]);
    compiler.close();
  });
});

describe('bytes of tokens', () => {
  const sentencePiece: DecoderConfig = sentencePieceDecoder;
  it.each<[string, DecoderConfig, string, string]>([
    ['byte-level', { type: 'ByteLevel' }, 'Ġaé', ' a\xe9'],
    ['byte-level, an added token', { type: 'ByteLevel' }, '<tool_call>', '<tool_call>'],
    ['byte-level, another alphabet', { type: 'ByteLevel' }, '日', '\xe6\x97\xa5'],
    ['SentencePiece, a space at the start', sentencePiece, '▁a', ' a'],
    ['SentencePiece, a byte', sentencePiece, '<0xE6>', '\xe6'],
    ['Metaspace', { type: 'Metaspace', replacement: '▁' }, '▁é', ' \xc3\xa9'],
  ])('%s', (_, config, piece, bytes) => {
    expect(Buffer.from(tokenBytes(config)(piece)).toString('latin1')).toBe(bytes);
  });
});
