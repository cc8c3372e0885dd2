// Tokenizers that together have every kind of model, normalizer, pre-tokenizer, post-processor and
// decoder that checkpoints use, and texts for them.

import { Random } from './numbers';

export type Json = Record<string, unknown>;
export interface Pipeline {
  name: string;
  json: Json;
}

const byteChars: string[] = [];
for (let byte = 0, next = 256; byte < 256; byte++) {
  const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  byteChars.push(String.fromCharCode(printable ? byte : next++));
}
const byteTokens = Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, '0')}>`);

const sequence = (key: string, steps: Json[]): Json & { type: string } => ({ type: 'Sequence', [key]: steps });
const added = (content: string, flags: Json = {}): Json => ({
  id: 0,
  content,
  single_word: false,
  lstrip: false,
  rstrip: false,
  normalized: false,
  special: true,
  ...flags,
});

const merges = ['t h', 'th e', 'Ġ t', 'Ġt he', 'i n', 'a n', 'e r', 'o n', 'Ġ a', 'h e', 'l l', 'Ġ Ġ', '1 2', 'Ã ©'];

function byteLevelBpe(parts: Json, more: string[] = []): Json {
  const vocab = [...byteChars, ...merges.map((merge) => merge.replace(' ', '')), ...more];
  return pipeline({
    model: { ...bpe(vocab, merges) },
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    ...parts,
  });
}

function bpe(vocab: string[], mergeList: string[], more: Json = {}): Json {
  return {
    type: 'BPE',
    dropout: null,
    unk_token: null,
    continuing_subword_prefix: null,
    end_of_word_suffix: null,
    fuse_unk: false,
    byte_fallback: false,
    vocab: Object.fromEntries(vocab.map((piece, id) => [piece, id])),
    merges: mergeList,
    ...more,
  };
}

function pipeline(parts: Json): Json {
  const none = { normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null };
  return { version: '1.0', truncation: null, padding: null, added_tokens: [], ...none, ...parts };
}

const byteLevelOnly = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false };
const split = (Regex: string, behavior: string, invert = false): Json => ({
  ...{ type: 'Split', pattern: { Regex }, behavior, invert },
});
const replace = (from: Json, content: string): Json => ({ type: 'Replace', pattern: from, content });

const llama3 =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

const words = ['the', 'an', 'in', 'on', 'he', 'er', 'll', 'a', 'b', 'c', 'd', 'e', 'h', 'i', 'l', 'n', 'o', 'r', 't'];
const unigramVocab = [
  ...(['<unk>', '<s>', '</s>'].map((piece) => [piece, 0]) as [string, number][]),
  ...byteTokens.map((piece): [string, number] => [piece, -12]),
  ...words.flatMap((word, i): [string, number][] => [
    [`▁${word}`, -2 - i * 0.11],
    [word, -3 - i * 0.17],
  ]),
  ...([
    ['▁', -2.5],
    ['.', -4],
    [',', -4.1],
    ['1', -5],
    ['é', -6],
    ['日', -7],
  ] as [string, number][]),
];
const unigram = (byte_fallback: boolean): Json => ({ type: 'Unigram', unk_id: 0, byte_fallback, vocab: unigramVocab });
export const sentencePieceNormalizer = sequence('normalizers', [
  { type: 'Prepend', prepend: '▁' },
  replace({ String: ' ' }, '▁'),
]);
export const sentencePieceDecoder = sequence('decoders', [
  replace({ String: '▁' }, ' '),
  { type: 'ByteFallback' },
  { type: 'Fuse' },
  { type: 'Strip', content: ' ', start: 1, stop: 0 },
]);
const spTokens = [added('<unk>'), added('<s>'), added('</s>')];
const spBpe = bpe(
  ['<unk>', '<s>', '</s>', ...byteTokens, '▁', ...words.filter((word) => word.length === 1), '▁t', 'he', '▁the', '.'],
  ['▁ t', 'h e', '▁t he'],
  { unk_token: '<unk>', fuse_unk: true, byte_fallback: true },
);
const metaspace = (prepend_scheme: string, isSplit = true): Json => ({
  ...{ type: 'Metaspace', replacement: '▁', prepend_scheme, split: isSplit },
});
const wordPieceVocab = [
  '[PAD]',
  '[UNK]',
  '[CLS]',
  '[SEP]',
  ...words,
  ...words.map((word) => `##${word}`),
  '.',
  ',',
  '1',
  "'",
];
const wordPiece: Json = {
  type: 'WordPiece',
  unk_token: '[UNK]',
  continuing_subword_prefix: '##',
  max_input_chars_per_word: 20,
  vocab: Object.fromEntries(wordPieceVocab.map((piece, id) => [piece, id])),
};
const bertTokens = ['[PAD]', '[UNK]', '[CLS]', '[SEP]'].map((content) => added(content));
const special = (id: string): Json => ({ SpecialToken: { id, type_id: 0 } });
const text = (id: string): Json => ({ Sequence: { id, type_id: 0 } });
const template = (before: [string, number][], after: [string, number][]): Json => ({
  type: 'TemplateProcessing',
  single: [...before.map(([id]) => special(id)), text('A'), ...after.map(([id]) => special(id))],
  pair: [text('A'), text('B')],
  special_tokens: Object.fromEntries(
    [...before, ...after].map(([id, token]) => [id, { id, ids: [token], tokens: [id] }]),
  ),
});

export const pipelines: Pipeline[] = [
  {
    name: 'GPT-2: BPE, ByteLevel',
    json: byteLevelBpe({
      pre_tokenizer: { ...byteLevelOnly, use_regex: true },
      added_tokens: [added('<|endoftext|>')],
    }),
  },
  {
    name: 'Llama 3: BPE, Split, ignore_merges, BOS template',
    json: byteLevelBpe({
      model: bpe([...byteChars, 'th', 'he', 'Ġt', 'Ġthe', 'hello'], ['t h', 'h e', 'Ġ t', 'Ġt he'], {
        ignore_merges: true,
      }),
      pre_tokenizer: sequence('pretokenizers', [split(llama3, 'Isolated'), byteLevelOnly]),
      post_processor: template([['<|begin|>', 261]], []),
      added_tokens: [added('<|begin|>'), added('<|end|>')],
    }),
  },
  {
    name: 'Qwen: BPE, NFC, Split removed and inverted',
    json: byteLevelBpe({
      normalizer: { type: 'NFC' },
      pre_tokenizer: sequence('pretokenizers', [split(llama3, 'Removed', true), byteLevelOnly]),
      added_tokens: [added('<|im_start|>'), added('<|im_end|>'), added('<tool_call>', { special: false })],
    }),
  },
  {
    name: 'DeepSeek: BPE, Digits, Split',
    json: byteLevelBpe({
      pre_tokenizer: sequence('pretokenizers', [
        { type: 'Digits', individual_digits: true },
        split('[一-龥]+', 'Isolated'),
        split('\\s+$', 'Isolated'),
        byteLevelOnly,
      ]),
      added_tokens: [added('<｜User｜>', { special: false }), added('<｜end｜>')],
    }),
  },
  {
    name: 'BPE, Digits in groups, ByteLevel with prefix space',
    json: byteLevelBpe({
      pre_tokenizer: sequence('pretokenizers', [
        { type: 'Digits', individual_digits: false },
        { ...byteLevelOnly, add_prefix_space: true, use_regex: true },
      ]),
      post_processor: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    }),
  },
  ...['MergedWithPrevious', 'MergedWithNext', 'Contiguous'].map((behavior) => ({
    name: `BPE, Split ${behavior}`,
    json: byteLevelBpe({
      pre_tokenizer: sequence('pretokenizers', [split('[,.\\s]', behavior), byteLevelOnly]),
    }),
  })),
  {
    name: 'BPE, added tokens with single_word, lstrip, rstrip, normalized',
    json: byteLevelBpe({
      normalizer: { type: 'Lowercase' },
      pre_tokenizer: { ...byteLevelOnly, use_regex: true },
      added_tokens: [
        added('<mask>', { lstrip: true }),
        added('<|im_end|>', { rstrip: true }),
        added('word', { single_word: true, special: false }),
        added('Hello', { normalized: true, special: false }),
        added('  ', { special: false }),
      ],
    }),
  },
  {
    name: 'Llama 2: BPE with byte fallback, Prepend and Replace',
    json: pipeline({
      model: spBpe,
      added_tokens: spTokens,
      normalizer: sentencePieceNormalizer,
      decoder: sentencePieceDecoder,
      post_processor: template([['<s>', 1]], [['</s>', 2]]),
    }),
  },
  {
    name: 'Mistral: BPE, Metaspace first',
    json: pipeline({
      ...{ model: spBpe, added_tokens: spTokens, pre_tokenizer: metaspace('first', false) },
      decoder: sentencePieceDecoder,
    }),
  },
  {
    name: 'Gemma: BPE, Replace, no space added',
    json: pipeline({
      model: spBpe,
      added_tokens: [...spTokens, added('<start_of_turn>'), added('\n\n', { special: false })],
      normalizer: replace({ String: ' ' }, '▁'),
      pre_tokenizer: { type: 'Split', pattern: { String: ' ' }, behavior: 'MergedWithPrevious', invert: false },
      decoder: sequence('decoders', [replace({ String: '▁' }, ' '), { type: 'ByteFallback' }, { type: 'Fuse' }]),
    }),
  },
  {
    name: 'LLM-jp: Unigram with byte fallback, Replace after Fuse',
    json: pipeline({
      model: unigram(true),
      added_tokens: spTokens,
      normalizer: sequence('normalizers', [
        replace({ Regex: '\\r\\n' }, '\n'),
        replace({ Regex: '(?<!\\n)^' }, '▁'),
        replace({ String: ' ' }, '▁'),
      ]),
      decoder: sequence('decoders', [
        { type: 'ByteFallback' },
        replace({ Regex: '▁' }, ' '),
        { type: 'Fuse' },
        replace({ Regex: '(?<!\\n)^ ' }, ''),
      ]),
    }),
  },
  {
    name: 'T5: Unigram, NFKC, Metaspace always',
    json: pipeline({
      model: unigram(false),
      added_tokens: [...spTokens, added('<extra_id_0>', { lstrip: true, rstrip: true })],
      normalizer: sequence('normalizers', [{ type: 'NFKC' }, replace({ Regex: ' {2,}' }, ' ')]),
      pre_tokenizer: sequence('pretokenizers', [{ type: 'WhitespaceSplit' }, metaspace('always')]),
      decoder: metaspace('always'),
      post_processor: template([], [['</s>', 2]]),
    }),
  },
  {
    name: 'Unigram, Metaspace never',
    json: pipeline({
      model: unigram(true),
      added_tokens: spTokens,
      pre_tokenizer: metaspace('never'),
      decoder: metaspace('never'),
    }),
  },
  {
    name: 'BERT: WordPiece, BertNormalizer, cleanup',
    json: pipeline({
      model: wordPiece,
      added_tokens: bertTokens,
      normalizer: {
        type: 'BertNormalizer',
        clean_text: true,
        handle_chinese_chars: true,
        strip_accents: null,
        lowercase: true,
      },
      pre_tokenizer: { type: 'BertPreTokenizer' },
      post_processor: template([['[CLS]', 2]], [['[SEP]', 3]]),
      decoder: { type: 'WordPiece', prefix: '##', cleanup: true },
    }),
  },
  {
    name: 'WordPiece, Punctuation, no cleanup',
    json: pipeline({
      model: wordPiece,
      normalizer: sequence('normalizers', [
        { type: 'NFD' },
        { type: 'StripAccents' },
        { type: 'Strip', strip_left: true, strip_right: true },
      ]),
      pre_tokenizer: sequence('pretokenizers', [{ type: 'Whitespace' }, { type: 'Punctuation', behavior: 'Isolated' }]),
      decoder: { type: 'WordPiece', prefix: '##', cleanup: false },
    }),
  },
  {
    name: 'WordLevel without a decoder',
    json: pipeline({
      model: {
        type: 'WordLevel',
        unk_token: '<unk>',
        vocab: Object.fromEntries(['<unk>', ...words, '.', ','].map((w, i) => [w, i])),
      },
      added_tokens: [added('<unk>'), added('<sep>', { single_word: true })],
      pre_tokenizer: { type: 'Whitespace' },
    }),
  },
  {
    name: 'GPT: BPE with word ends, BPEDecoder',
    json: pipeline({
      model: bpe(
        ['<unk>', ...'abcdehilnort'.split(''), ...'abcdehilnort'.split('').map((c) => `${c}</w>`), 'th', 'the</w>'],
        ['t h', 'th e</w>'],
        {
          ...{ unk_token: '<unk>', end_of_word_suffix: '</w>' },
        },
      ),
      pre_tokenizer: { type: 'BertPreTokenizer' },
      decoder: { type: 'BPEDecoder', suffix: '</w>' },
    }),
  },
  {
    name: 'Unigram, decoder with text steps after Fuse',
    json: pipeline({
      model: unigram(true),
      added_tokens: spTokens,
      normalizer: sentencePieceNormalizer,
      decoder: sequence('decoders', [
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        replace({ String: '▁▁' }, '\t'),
        replace({ Regex: '▁(?=[a-n])|▁$' }, ' '),
        metaspace('never'),
        { type: 'Strip', content: ' ', start: 2, stop: 0 },
        { type: 'WordPiece', prefix: '##', cleanup: true },
      ]),
    }),
  },
];

const fragments = [
  ...[
    'the',
    ' the',
    'hello',
    ' world',
    'an',
    'on',
    ' in',
    'er',
    'll',
    ' a',
    'Hello',
    'word',
    ' word ',
    'wordy',
    "don't",
    " 's",
    ' .',
    ' ,',
  ],
  ...[' ', '  ', '   ', '\n', '\n\n', '\r\n', '\t', '.', ',', '!', '?', "'", '-', '_', '▁', '##', '</w>', '<0x41>'],
  ...['1', '12', '1234', '٣', '²', '½', 'Ⅷ', '①', '９', 'é', 'e\u0301', 'É', 'ß', 'ﬁ', 'ñ', 'ü', 'İ', 'ſ'],
  ...[
    '日本',
    '語',
    '中文',
    '한국어',
    'ㅎ',
    'Привет',
    'مرحبا',
    'नमस्ते',
    'ไทย',
    '😀',
    '👩‍👩‍👧',
    '🇩🇪',
    '\u0000',
    '\u007f',
    '\ufeff',
    '\u00a0',
    '\u2003',
    '\u200b',
    '\ufffd',
  ],
  ...[
    '<s>',
    '</s>',
    '<unk>',
    '<|endoftext|>',
    '<|im_end|>',
    '<|begin|>',
    '<tool_call>',
    '<mask>',
    ' <mask> ',
    '[CLS]',
    '[SEP]',
    '<sep>',
    ' <sep> ',
    '<extra_id_0>',
    '<start_of_turn>',
    '<｜User｜>',
    '<|im',
    '_end|>',
    '<',
    '>',
  ],
];

/** Mixes fragments and random characters of all planes, without lone surrogates. */
export function randomTexts(count: number, seed: number): string[] {
  const random = new Random(seed);
  return Array.from({ length: count }, () => {
    let result = '';
    for (let n = random.integer(0, 9); n > 0; n--) {
      if (random.integer(0, 7) > 0) {
        result += fragments[random.integer(0, fragments.length - 1)];
        continue;
      }
      const code = random.integer(1, [0x7f, 0x7ff, 0xffff, 0x10ffff][random.integer(0, 3)] as number);
      if (code < 0xd800 || code > 0xdfff) result += String.fromCodePoint(code);
    }
    return result;
  });
}
