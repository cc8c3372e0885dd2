// What is wrong with the files of a tokenizer, in whole messages; and what is not.

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
  model: { type: 'BPE', vocab: { a: 0, b: 1, c: 2 }, merges: [] },
};
type Json = Record<string, unknown>;

function write(json: unknown, config?: unknown, template?: string): string {
  const directory = directories.make();
  mkdirSync(directory, { recursive: true });
  const put = (name: string, value: unknown) =>
    writeFileSync(join(directory, name), typeof value === 'string' ? value : JSON.stringify(value));
  put('tokenizer.json', json);
  if (config !== undefined) put('tokenizer_config.json', config);
  if (template !== undefined) put('chat_template.jinja', template);
  return directory;
}

async function load(over: Json, config?: unknown, template?: string): Promise<Tokenizer> {
  return (await Tokenizer.fromDirectory(write({ ...base, ...over }, config, template))) as Tokenizer;
}

/** The code and message; DIR is the directory. */
async function failure(json: unknown, config?: unknown) {
  const directory = write(json, config);
  const { code, message } = await errorOf(() => Tokenizer.fromDirectory(directory));
  return [code, message.replace(directory, 'DIR')];
}

const invalid = 'ERR_INVALID_CHECKPOINT';
const added = (content: unknown, over: Json = {}) => ({
  ...{ content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: false },
  ...over,
});

it.each<[string, unknown, string]>([
  ['a list', '[]', 'malformed: not a JSON object'],
  ['null', 'null', 'malformed: not a JSON object'],
  ['no vocabulary', { ...base, model: { type: 'BPE' } }, 'malformed: model.vocab is missing'],
  ['a model of null', { ...base, model: null }, 'malformed: model.vocab is missing'],
  ['added tokens that are no list', { ...base, added_tokens: {} }, 'malformed: added_tokens is not a list of objects'],
  [
    'an added token that is a text',
    { ...base, added_tokens: ['x'] },
    'malformed: added_tokens is not a list of objects',
  ],
  ['an added token of null', { ...base, added_tokens: [null] }, 'malformed: added_tokens is not a list of objects'],
  [
    'a large id',
    { ...base, model: { type: 'BPE', vocab: { a: 0, 'b"': 2 ** 24 }, merges: [] } },
    'malformed: token "b\\"" has the id 16777216, more than 16777215',
  ],
])('tokenizer.json: %s', async (_name, json, message) => {
  expect(await failure(json)).toEqual([invalid, `DIR/tokenizer.json: ${message}`]);
});

it('tokenizer.json that is not JSON', async () => {
  expect(await failure('{')).toEqual([
    invalid,
    expect.stringMatching(/^DIR\/tokenizer\.json: malformed: not valid JSON: Expected property name/),
  ]);
});

it.each<[string, unknown, string]>([
  ['a list', '[]', 'not a JSON object'],
  [
    'a token without content',
    { added_tokens_decoder: { 3: { special: true } } },
    'added_tokens_decoder has a token without content',
  ],
  ['a token that is a number', { added_tokens_decoder: { 3: 7 } }, 'added_tokens_decoder has a token without content'],
])('tokenizer_config.json: %s', async (_name, config, message) => {
  expect(await failure(base, config)).toEqual([invalid, `DIR/tokenizer_config.json: ${message}`]);
});

it('tokenizer_config.json that is not JSON', async () => {
  expect(await failure(base, '{')).toEqual([
    invalid,
    expect.stringMatching(/^DIR\/tokenizer_config\.json: not valid JSON: Expected property name/),
  ]);
});

it.each<[string, Json]>([
  ['model', { ...base, model: { type: 'X', vocab: {} } }],
  ['normalizer', { ...base, normalizer: { type: 'X' } }],
  ['pre_tokenizer', { ...base, pre_tokenizer: { type: 'X' } }],
  ['post_processor', { ...base, post_processor: { type: 'X' } }],
  ['decoder', { ...base, decoder: { type: 'X' } }],
  ['normalizer', { ...base, normalizer: { type: 'Sequence', normalizers: [{ type: 'NFC' }, { type: 'X' }] } }],
  [
    'pre_tokenizer',
    {
      ...base,
      pre_tokenizer: { type: 'Sequence', pretokenizers: [{ type: 'Sequence', pretokenizers: [{ type: 'X' }] }] },
    },
  ],
  ['decoder', { ...base, decoder: { type: 'Sequence', decoders: [{ type: 'X' }] } }],
])('a %s of an unknown type', async (part, json) => {
  expect(await failure(json)).toEqual([
    'ERR_UNSUPPORTED_MODEL',
    `DIR/tokenizer.json: a ${part} of type X is not supported`,
  ]);
});

// A type without its fields is malformed, not unknown.
it.each<[string, string[]]>([
  ['model', ['Unigram', 'WordPiece', 'WordLevel']],
  ['normalizer', ['BertNormalizer', 'Strip', 'Sequence', 'Precompiled', 'Replace', 'Prepend']],
  ['pre_tokenizer', ['CharDelimiterSplit', 'Metaspace', 'Sequence', 'Split', 'Punctuation', 'Digits', 'FixedLength']],
  ['post_processor', ['RobertaProcessing', 'BertProcessing', 'ByteLevel', 'TemplateProcessing', 'Sequence']],
  ['decoder', ['WordPiece', 'Metaspace', 'CTC', 'Sequence', 'Replace', 'Strip', 'BPEDecoder', 'ByteLevel']],
  ['normalizer', ['StripAccents', 'NFC', 'NFD', 'NFKC', 'NFKD', 'Lowercase', 'Nmt', 'ByteLevel']],
  ['pre_tokenizer', ['BertPreTokenizer', 'ByteLevel', 'Delimiter', 'Whitespace', 'WhitespaceSplit', 'UnicodeScripts']],
  ['decoder', ['Fuse', 'ByteFallback']],
])(
  'a %s may be of the types %j',
  async (part, types) => {
    for (const type of types) {
      const value = part === 'model' ? { type, vocab: {} } : { type };
      const message = await Tokenizer.fromDirectory(write({ ...base, [part]: value })).then(
        () => 'loaded',
        (error: Error) => error.message,
      );
      expect(message).not.toContain('not supported');
    }
  },
  60_000,
);

describe('the tokens of tokenizer_config.json that tokenizer.json lacks', () => {
  const text = (tokenizer: Tokenizer, id: number) => tokenizer.decode([id], { skipSpecialTokens: false });

  it('come after those of tokenizer.json, by id, then the named ones', async () => {
    const config = {
      added_tokens_decoder: { 10: added('<ten>'), 9: added('<nine>', { special: true }), 3: added('<known>') },
      bos_token: { content: '<s>' },
      eos_token: '</s>',
      pad_token: null,
      unk_token: '',
      additional_special_tokens: ['<x>', { content: '<y>' }, 7, ''],
      not_a_token_name: '<z>',
    };
    const tokenizer = await load({ added_tokens: [{ id: 3, ...added('<known>') }] }, config);
    expect(tokenizer.vocabSize).toBe(10);
    const texts = Array.from({ length: 10 }, (_, id) => text(tokenizer, id));
    expect(texts).toEqual(['a', 'b', 'c', '<known>', '<nine>', '<ten>', '<s>', '</s>', '<x>', '<y>']);
    const visible = Array.from({ length: 10 }, (_, id) => tokenizer.decode([id]));
    expect(visible).toEqual(['a', 'b', 'c', '<known>', '', '<ten>', '', '', '', '']);
    expect([tokenizer.bosTokenId, tokenizer.eosTokenId]).toEqual([6, 7]);
  });

  it('may be named by extra_special_tokens, as a list or an object', async () => {
    for (const extra of [['<x>', '<y>'], { image: '<x>', audio: { content: '<y>' } }]) {
      const tokenizer = await load({}, { extra_special_tokens: extra });
      expect([text(tokenizer, 3), text(tokenizer, 4), tokenizer.vocabSize]).toEqual(['<x>', '<y>', 5]);
    }
    expect((await load({}, { extra_special_tokens: 'x' })).vocabSize).toBe(3);
  });

  it('change the flags of a token that has others', async () => {
    const known = { added_tokens: [{ id: 3, ...added('<k>') }] };
    expect((await load(known, { added_tokens_decoder: { 3: added('<k>') } })).decode([3])).toBe('<k>');
    const changed = await load(known, { added_tokens_decoder: { 3: added('<k>', { special: true }) } });
    expect([changed.decode([3]), changed.vocabSize]).toEqual(['', 4]);
    const named = await load(known, { added_tokens_decoder: { 3: added('<k>', { lstrip: true }) }, bos_token: '<k>' });
    expect(named.decode([3])).toBe('');
    const stripping = await load(known, { added_tokens_decoder: { 3: added('<k>', { rstrip: true }) } });
    expect(stripping.encode('<k> a')).toEqual([3, 0]);
    expect((await load(known)).encode('<k>a')).toEqual([3, 0]);
  });

  it('are omitted as text if they begin or end a text, whatever their flags', async () => {
    const tokens = ['<s>', '</s>', '<p>'].map((content, i) => ({ id: 3 + i, ...added(content) }));
    const tokenizer = await load({ added_tokens: tokens }, { bos_token: '<s>', eos_token: '</s>', pad_token: '<p>' });
    expect([3, 4, 5].map((id) => tokenizer.decode([id]))).toEqual(['', '', '<p>']);
  });

  it('have defaults for absent flags', async () => {
    const normalizer = { type: 'Lowercase' };
    const tokens = [{ content: '<N>' }, { content: '<S>', special: true }];
    const tokenizer = await load({ normalizer, added_tokens: tokens });
    // Only a token that is not special is matched after the normalizer.
    expect(tokenizer.encode('<n>')).toEqual([3]);
    expect(tokenizer.encode('<S>')).toEqual([4]);
    expect(tokenizer.encode('<s>')).not.toContain(4);
    expect(tokenizer.decode([4])).toBe('');
    expect(tokenizer.decode([3])).not.toBe('');
  });

  it('add a begin-of-text token only if add_bos_token is true', async () => {
    for (const [value, tokens] of [
      [true, [3, 0]],
      ['true', [0]],
      [undefined, [0]],
    ] as const)
      expect((await load({}, { bos_token: '<s>', add_bos_token: value })).encode('a')).toEqual(tokens);
  });
});

it('the special tokens that tokenizer_config.json has are variables of the template', async () => {
  const names = ['bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask'].map((name) => `${name}_token`);
  const template = names.map((name) => `{{ ${name} is defined }}{{ ${name} }};`).join('');
  const messages = [{ role: 'user', content: '' }];
  const some = await load({}, { bos_token: '<s>', pad_token: null, unk_token: '' }, template);
  expect(some.applyChatTemplate(messages)).toBe('True<s>;False;False;False;False;False;False;');
  const all = await load({}, Object.fromEntries(names.map((name) => [name, `<${name}>`])), template);
  expect(all.applyChatTemplate(messages)).toBe(names.map((name) => `True<${name}>;`).join(''));
});

it('an id without a token has no text', async () => {
  const tokenizer = await load({ model: { ...base.model, vocab: { a: 0, b: 5 } } });
  expect([tokenizer.vocabSize, tokenizer.decode([0, 3, 5, 6, 99])]).toEqual([6, 'a b']);
});

it('truncation and padding of tokenizer.json are ignored', async () => {
  const truncation = { direction: 'Right', max_length: 2, strategy: 'LongestFirst', stride: 0 };
  const padding = {
    ...{ strategy: { Fixed: 8 }, direction: 'Right', pad_to_multiple_of: null, pad_id: 1, pad_type_id: 0 },
    pad_token: 'b',
  };
  expect((await load({ truncation, padding })).encode('abcab')).toEqual([0, 1, 2, 0, 1]);
});

it('a file of 30 MB may take more memory and time than a small one', async () => {
  const tokenizer = await Tokenizer.fromDirectory(write(JSON.stringify(base).padEnd(30_000_000)));
  expect(tokenizer?.encode('abc')).toEqual([0, 1, 2]);
});

it('a long text is encoded whole, in order', async () => {
  const tokenizer = await load({});
  const tokens = await tokenizer.encodeAsync('abc'.repeat(100_000));
  expect(tokens).toHaveLength(300_000);
  expect(tokens.findIndex((token, i) => token !== i % 3)).toBe(-1); // which also sees elements without a value
  expect(await tokenizer.encodeAsync('a'.repeat(16_384))).toHaveLength(16_384);
  expect(await tokenizer.encodeAsync('')).toEqual([]);
});
