import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Tokenizer } from '../../lib/index';
import { temporaryDirectories } from '../support/checkpoints';
import { errorOf } from '../support/devices';
import { tldr, tldrDirectory } from '../support/fixtures';
import { Random } from '../support/numbers';
import { sentencePieceDecoder, sentencePieceNormalizer } from '../support/tokenizer_pipelines';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

function write(files: Record<string, unknown>): string {
  const directory = directories.make();
  mkdirSync(directory, { recursive: true });
  for (const [name, content] of Object.entries(files))
    writeFileSync(join(directory, name), typeof content === 'string' ? content : JSON.stringify(content));
  return directory;
}

async function load(directory: string): Promise<Tokenizer> {
  const tokenizer = await Tokenizer.fromDirectory(directory);
  if (!tokenizer) throw new Error('no tokenizer');
  return tokenizer;
}

/** Decodes token by token. Fails if a piece contains half a character. */
function streamed(tokenizer: Tokenizer, tokens: readonly number[]): string[] {
  const stream = tokenizer.stream();
  const pieces = [...tokens.map((token) => stream.push(token)), stream.flush()];
  for (const piece of pieces) expect(Buffer.from(piece, 'utf8').toString('utf8')).toBe(piece); // a lone surrogate would become U+FFFD
  return pieces;
}

const texts = [
  '',
  ' ',
  '\n',
  'a',
  'Hello, world!',
  '  leading and trailing  ',
  '# tar\n> Archiving utility.\n',
  'naïve café — “quotes”',
  '日本語のテキスト',
  'Привет, мир',
  'مرحبا',
  '😀😃 👩‍👩‍👧‍👦 🇩🇪 🏴󠁧󠁢󠁥󠁮󠁧󠁿',
  'e\u0301 \u0301',
  '\u0000\u0001\u007f',
  '\ufeffBOM',
  '\r\n\t\v',
  'a\u00a0b\u2003c',
  '𝕌𝕟𝕚𝕔𝕠𝕕𝕖',
  '\ufffd',
  'x'.repeat(3000),
  '∑∫√ ≠ ≤ ∞',
  '1234567890 3.14e-10',
];

describe("the embedded model's tokenizer", () => {
  let tokenizer: Tokenizer;
  beforeAll(async () => {
    tokenizer = await load(tldrDirectory);
  });

  it.each(tldr.cases.map((expected) => [expected.tokens.length, expected] as const))(
    'encodes the prompt to %i tokens and decodes the answer',
    (_, expected) => {
      expect(tokenizer.encode(expected.prompt as string)).toEqual(expected.tokens);
      expect(tokenizer.decode(expected.greedy)).toBe(expected.text);
      expect(tokenizer.decode(expected.tokens)).toBe(expected.prompt);
      expect(tokenizer.encode(expected.prompt as string, { addSpecialTokens: false })).toEqual(
        expected.tokens.slice(1),
      );
    },
  );

  it('knows its special tokens', () => {
    expect([tokenizer.bosTokenId, tokenizer.eosTokenId, tokenizer.vocabSize]).toEqual([4094, 4095, 4096]);
    expect(tokenizer.encode('')).toEqual([4094]);
    expect(tokenizer.encode('', { addSpecialTokens: false })).toEqual([]);
    expect(tokenizer.encode('<|begin_of_text|>a')).toEqual(tokenizer.encode('a'));
    expect(tokenizer.encode('a<|end_of_text|>b', { addSpecialTokens: false })).toEqual([
      ...tokenizer.encode('a', { addSpecialTokens: false }),
      4095,
      ...tokenizer.encode('b', { addSpecialTokens: false }),
    ]);
    expect(tokenizer.decode([4094, 35, 4095])).toBe('#');
    expect(tokenizer.decode([4094, 35, 4095], { skipSpecialTokens: false })).toBe('<|begin_of_text|>#<|end_of_text|>');
  });

  it.each(texts.map((text) => [JSON.stringify(text).slice(0, 40), text]))(
    'round-trips a text, whole and streamed: %s',
    (_, text) => {
      const tokens = tokenizer.encode(text as string, { addSpecialTokens: false });
      expect(tokenizer.decode(tokens)).toBe(text);
      const pieces = streamed(tokenizer, tokens);
      expect(pieces.join('')).toBe(text);
      expect(pieces[pieces.length - 1]).toBe(''); // well-formed text leaves nothing pending
    },
  );

  it('never splits a character of 300 random texts from all planes', () => {
    const random = new Random(11);
    for (let i = 0; i < 300; i++) {
      const length = random.integer(1, 40);
      let text = '';
      while (text.length < length) {
        const limit = [0x7f, 0x7ff, 0xffff, 0x10ffff][random.integer(0, 3)] as number;
        const code = random.integer(0, limit);
        if (code < 0xd800 || code > 0xdfff) text += String.fromCodePoint(code);
      }
      const tokens = tokenizer.encode(text, { addSpecialTokens: false });
      expect(streamed(tokenizer, tokens).join('')).toBe(text);
      expect(tokenizer.decode(tokens)).toBe(text);
    }
  });

  it('streams the same text as decode for any tokens, including invalid bytes', () => {
    const random = new Random(12);
    for (let i = 0; i < 500; i++) {
      const tokens = random.tokens(random.integer(1, 30), 4096);
      const bytes = random.tokens(10, 256); // single bytes: most are not a whole character
      expect(streamed(tokenizer, tokens).join('')).toBe(tokenizer.decode(tokens));
      expect(streamed(tokenizer, bytes).join('')).toBe(tokenizer.decode(bytes));
    }
  });

  it('emits a character of four bytes with its last byte', () => {
    const tokens = [...Buffer.from('é😀x')].map((byte) => {
      // The byte-level alphabet has one token per byte.
      for (let id = 0; id < 256; id++)
        if (Buffer.compare(Buffer.from(singleByte(tokenizer, id)), Buffer.from([byte])) === 0) return id;
      throw new Error(`no token for byte ${byte}`);
    });
    expect(streamed(tokenizer, tokens)).toEqual(['', 'é', '', '', '', '😀', 'x', '']);
    expect(streamed(tokenizer, tokens.slice(0, 4))).toEqual(['', 'é', '', '', '\ufffd']);
    expect(streamed(tokenizer, [...tokens.slice(0, 4), tokens[6] as number])).toEqual(['', 'é', '', '', '\ufffdx', '']);
  });

  it('rejects values that are not text or tokens', async () => {
    // biome-ignore lint/suspicious/noExplicitAny: what a caller without types may pass
    for (const text of [5, null, undefined, {}, ['a']] as any[])
      expect((await errorOf(() => tokenizer.encode(text))).code).toBe('ERR_INVALID_ARGUMENT');
    // biome-ignore lint/suspicious/noExplicitAny: what a caller without types may pass
    for (const value of [null, 5, { addSpecialTokens: null }, { skipSpecialTokens: null }] as any[]) {
      if (value?.skipSpecialTokens === undefined)
        expect((await errorOf(() => tokenizer.encode('x', value))).code).toBe('ERR_INVALID_ARGUMENT');
      if (value?.addSpecialTokens === undefined) {
        expect((await errorOf(() => tokenizer.decode([1], value))).code).toBe('ERR_INVALID_ARGUMENT');
        expect((await errorOf(() => tokenizer.stream(value))).code).toBe('ERR_INVALID_ARGUMENT');
      }
    }
    // biome-ignore lint/suspicious/noExplicitAny: what a caller without types may pass
    for (const tokens of [null, undefined, 5, 'x', {}] as any[])
      expect((await errorOf(() => tokenizer.decode(tokens))).code).toBe('ERR_INVALID_ARGUMENT');
    for (const token of [-1, 1.5, Number.NaN])
      expect((await errorOf(() => tokenizer.decode([token]))).code).toBe('ERR_INVALID_ARGUMENT');
    expect((await errorOf(() => tokenizer.applyChatTemplate([{ role: 'user', content: 'x' }]))).message).toMatch(
      /chat template/,
    );
  });

  /**
   * The bytes of token `id` of the first 256, found by decoding it after a lead byte if it needs
   * one.
   */
  function singleByte(of: Tokenizer, id: number): number[] {
    byteOf ??= bytesOfTokens(of);
    return [byteOf[id] as number];
  }
  let byteOf: number[] | undefined;
  function bytesOfTokens(of: Tokenizer): number[] {
    const result: number[] = [];
    // Encoding a text produces one token per byte if no merge applies, so single characters reveal
    // the alphabet.
    for (let code = 0; code < 0x800; code++) {
      const text = String.fromCodePoint(code);
      const ids = of.encode(text, { addSpecialTokens: false });
      const bytes = [...Buffer.from(text)];
      if (ids.length === bytes.length)
        ids.forEach((token, i) => {
          if (token < 256) result[token] = bytes[i] as number;
        });
    }
    for (const text of ['\u0800', '\u2603', '\u{10000}', '😀', '\u{10ffff}']) {
      const ids = of.encode(text, { addSpecialTokens: false });
      const bytes = [...Buffer.from(text)];
      if (ids.length === bytes.length)
        ids.forEach((token, i) => {
          if (token < 256) result[token] = bytes[i] as number;
        });
    }
    return result;
  }
});

describe('other kinds of tokenizer', () => {
  // SentencePiece in Llama 2's form: a space is U+2581, bytes without a piece are <0x..>, and one
  // leading space is dropped.
  const pieces = [
    '<unk>',
    '<s>',
    '</s>',
    ...Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`),
    '▁',
    '▁Hello',
    '▁world',
    'H',
    'e',
    'l',
    'o',
    'w',
    'r',
    'd',
    '!',
  ];
  const sentencePiece = {
    added_tokens: [
      { id: 0, content: '<unk>', special: true },
      { id: 1, content: '<s>', special: true },
      { id: 2, content: '</s>', special: true },
    ],
    normalizer: sentencePieceNormalizer,
    decoder: sentencePieceDecoder,
    model: {
      type: 'BPE',
      vocab: Object.fromEntries(pieces.map((piece, id) => [piece, id])),
      merges: [],
      byte_fallback: true,
      unk_token: '<unk>',
      fuse_unk: true,
    },
  };
  const id = (piece: string): number => pieces.indexOf(piece);

  it('supports SentencePiece with byte fallback', async () => {
    const tokenizer = await load(
      write({
        'tokenizer.json': sentencePiece,
        'tokenizer_config.json': { bos_token: '<s>', eos_token: '</s>', add_bos_token: true },
      }),
    );
    const tokens = [id('▁Hello'), id('▁world'), id('<0xF0>'), id('<0x9F>'), id('<0x98>'), id('<0x80>'), id('!')];
    expect(tokenizer.decode(tokens)).toBe('Hello world😀!');
    expect(streamed(tokenizer, tokens)).toEqual(['Hello', ' world', '', '', '', '', '😀!', '']);
    expect(tokenizer.decode([1, ...tokens, 2])).toBe('Hello world😀!');
    expect(streamed(tokenizer, [id('<0xF0>'), id('<0x9F>'), id('▁world')]).join('')).toBe(
      tokenizer.decode([id('<0xF0>'), id('<0x9F>'), id('▁world')]),
    );
    expect(tokenizer.encode('')[0]).toBe(1); // add_bos_token without a post_processor
    const stream = tokenizer.stream({ continued: true });
    expect(stream.push(id('▁Hello'))).toBe(' Hello');
  });

  it('supports WordPiece', async () => {
    const vocab = { '[UNK]': 0, un: 1, '##believ': 2, '##able': 3, '!': 4 };
    const tokenizer = await load(
      write({
        'tokenizer.json': {
          added_tokens: [],
          pre_tokenizer: { type: 'Whitespace' },
          decoder: { type: 'WordPiece', prefix: '##', cleanup: false },
          model: {
            type: 'WordPiece',
            vocab,
            unk_token: '[UNK]',
            continuing_subword_prefix: '##',
            max_input_chars_per_word: 100,
          },
        },
      }),
    );
    expect(tokenizer.decode([1, 2, 3, 4])).toBe('unbelievable !');
    expect(streamed(tokenizer, [1, 2, 3, 4]).join('')).toBe('unbelievable !');
    expect(tokenizer.encode('unbelievable!')).toEqual([1, 2, 3, 4]);
  });

  it('rejects an unknown decoder by its name', async () => {
    const directory = write({ 'tokenizer.json': { ...sentencePiece, decoder: { type: 'Telepathy' } } });
    const error = await errorOf(() => Tokenizer.fromDirectory(directory));
    expect([error.code, error.message]).toEqual([
      'ERR_UNSUPPORTED_MODEL',
      expect.stringMatching(/tokenizer\.json.*Telepathy/),
    ]);
  });

  it('is null without tokenizer.json', async () => {
    expect(await Tokenizer.fromDirectory(write({}))).toBeNull();
  });

  it.each<[string, Record<string, unknown>, string]>([
    ['not JSON', { 'tokenizer.json': '{' }, 'tokenizer.json'],
    ['null', { 'tokenizer.json': 'null' }, 'tokenizer.json'],
    ['no vocabulary', { 'tokenizer.json': { model: { type: 'BPE' } } }, 'tokenizer.json'],
    [
      'an id of 2^40',
      { 'tokenizer.json': { ...sentencePiece, model: { ...sentencePiece.model, vocab: { a: 2 ** 40 } } } },
      'tokenizer.json',
    ],
    [
      'a negative id',
      { 'tokenizer.json': { ...sentencePiece, model: { ...sentencePiece.model, vocab: { a: -1 } } } },
      'tokenizer.json',
    ],
    [
      'an added token without content',
      { 'tokenizer.json': { ...sentencePiece, added_tokens: [{ id: 5 }] } },
      'tokenizer.json',
    ],
    ['config not JSON', { 'tokenizer.json': sentencePiece, 'tokenizer_config.json': 'x' }, 'tokenizer_config.json'],
  ])('rejects a broken file with ERR_INVALID_CHECKPOINT and its name: %s', async (_, files, name) => {
    const error = await errorOf(() => Tokenizer.fromDirectory(write(files)));
    expect([error.code, error.message]).toEqual(['ERR_INVALID_CHECKPOINT', expect.stringContaining(name)]);
  });

  describe('chat templates', () => {
    const template =
      '{{ bos_token }}{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}';
    const config = { bos_token: '<s>', eos_token: '</s>' };
    const messages = [
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: 'Hi {{ there }}' },
    ];

    it.each([
      ['in tokenizer_config.json', { 'tokenizer_config.json': { ...config, chat_template: template } }],
      [
        'in a list of several',
        {
          'tokenizer_config.json': {
            ...config,
            chat_template: [
              { name: 'tools', template: 'no' },
              { name: 'default', template },
            ],
          },
        },
      ],
      [
        'in chat_template.jinja',
        { 'tokenizer_config.json': { ...config, chat_template: 'no' }, 'chat_template.jinja': template },
      ],
    ])('%s', async (_, files) => {
      const tokenizer = await load(write({ 'tokenizer.json': sentencePiece, ...files }));
      expect(tokenizer.applyChatTemplate(messages)).toBe('<s><system>Be brief.\n<user>Hi {{ there }}\n<assistant>');
      expect(tokenizer.applyChatTemplate(messages, { addGenerationPrompt: false })).toBe(
        '<s><system>Be brief.\n<user>Hi {{ there }}\n',
      );
    });

    it('rejects invalid messages, and reports the error that a template raises', async () => {
      const refusing = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}ok";
      const tokenizer = await load(
        write({ 'tokenizer.json': sentencePiece, 'tokenizer_config.json': { ...config, chat_template: refusing } }),
      );
      // biome-ignore lint/suspicious/noExplicitAny: what a caller without types may pass
      for (const value of [[], null, 'x', [{}], [{ role: 'user' }], [{ role: 'user', content: 5 }], [null]] as any[])
        expect((await errorOf(() => tokenizer.applyChatTemplate(value))).code).toBe('ERR_INVALID_ARGUMENT');
      const error = await errorOf(() => tokenizer.applyChatTemplate(messages));
      expect([error.code, error.message]).toEqual(['ERR_INVALID_ARGUMENT', expect.stringContaining('user first')]);
      expect(tokenizer.applyChatTemplate([{ role: 'user', content: 'x' }])).toBe('ok');
    });
  });
});
