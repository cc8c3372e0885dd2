// Texts equal those of the reference, the Rust library `tokenizers`: each decoder with random lists of
// pieces that its steps treat in a special way. The reference aborts if Strip removes more than there is.

import { Tokenizer as Reference } from 'tokenizers';
import { createDecoder, type DecoderConfig } from '../../lib/decoder';
import { Random } from '../support/numbers';

const LISTS = 60;
const pieces = [
  ...['a', 'b', 'ab', 'aa', 'x', ' ', '  ', ' a', 'a ', '  a ', '\n', 'b\nc', '12', 'A1', '_', '-', 'é', '😀', 'a😀'],
  ...['▁', '▁a', '▁▁b', 'a▁', '_a', '__', '##', '##b', 'a##', 'b</w>', '</w>', 'a</w>b', '<', '/w>', '@@', 'a@@'],
  ...['<0x41>', '<0xE2>', '<0x82>', '<0xAC>', '<0xff>', '<0x0A>', '<0x80>', '<0x+1>', '<0xG1>', '<0x4>', 'x<0x41>'],
  ...[
    '<0x411>',
    "n't",
    " n't",
    " '",
    "'",
    ' ',
    's',
    "'s",
    " 'm",
    " 've",
    " 're",
    ' .',
    '.',
    ' ?',
    ' !',
    ' ,',
    'do not',
  ],
  ...[
    ' do not',
    '<pad>',
    '|',
    'a|b',
    '<pad>a',
    'Ġa',
    'Ġ',
    'Ċ',
    'Ã',
    '©',
    'Ã©',
    'ðŁĺĢ',
    'ł',
    '¡',
    '¬',
    '®',
    'ÿ',
    'Ā',
    'ń',
  ],
];
const names = [...new Set(pieces)];
const vocab = Object.fromEntries(names.map((piece, id) => [piece, id]));

const replace = (pattern: object, content: string): DecoderConfig => ({ type: 'Replace', pattern, content });
const strip = (content: string, start: number, stop: number): DecoderConfig => ({
  type: 'Strip',
  content,
  start,
  stop,
});
const fuse: DecoderConfig = { type: 'Fuse' };
const sequence = (...decoders: DecoderConfig[]): DecoderConfig => ({ type: 'Sequence', decoders });
const metaspace = (scheme: string): DecoderConfig => ({
  ...{ type: 'Metaspace', replacement: '▁', prepend_scheme: scheme, split: false },
});
const wordPiece = (cleanup: boolean, prefix = '##'): DecoderConfig => ({ type: 'WordPiece', prefix, cleanup });
const ctc = (cleanup: boolean): DecoderConfig => ({
  ...{ type: 'CTC', pad_token: '<pad>', word_delimiter_token: '|', cleanup },
});
const bpe = (suffix: string): DecoderConfig => ({ type: 'BPEDecoder', suffix });
const byteLevel = { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true };

const single: DecoderConfig[] = [
  ...[byteLevel, { type: 'ByteFallback' }, fuse, metaspace('always'), metaspace('never'), metaspace('first')],
  ...[{ ...metaspace('always'), replacement: '_' }, wordPiece(true), wordPiece(false), wordPiece(true, '▁')],
  ...[ctc(true), ctc(false), { ...ctc(true), pad_token: 'a', word_delimiter_token: '_' }, bpe('</w>'), bpe('@@')],
  ...[strip(' ', 1, 0), strip(' ', 0, 1), strip(' ', 2, 0), strip('a', 0, 1), strip('▁', 3, 0)],
  ...[replace({ String: '▁' }, ' '), replace({ String: 'a' }, ''), replace({ String: 'aa' }, 'aaa')],
  ...[replace({ String: 'ab' }, '$&'), replace({ String: '</w>' }, ' ')],
];
// Patterns of Oniguruma.
const patterns = [
  ...[
    'a',
    'a|b',
    'ab|a',
    '[ab]',
    '[^ab]',
    'a+',
    'a*b',
    'a?b',
    'a{2}',
    'a{1,2}b',
    'a{1,}',
    'a+?',
    '.',
    '.b',
    '\\s',
    '\\S',
  ],
  ...['\\d+', '\\D', '\\w', '\\W', '\\h', '\\H', '[\\s\\d]', '[a-c]', '[-a]', '[a-]', '[^\\s]', '[\\d-]', '[]a]'],
  ...['^', '$', '^a', 'a$', '^ ', ' $', '(a)', '(?:a|b)', '(ab|a)b', 'a(?=b)', 'a(?!b)', '(?<=a)b', '(?<!a)b'],
  ...[
    '\\.',
    '\\n',
    '\\t',
    '\\|',
    '\\?',
    '▁',
    '😀',
    '[😀]',
    '[▁ ]+',
    '(?=a)',
    '(?!a)',
    '(?<=a)',
    '(?<!a)',
    'a*',
    'a?',
    '',
    'a|',
    'a(?= ?b)',
    '(?<=\\s)a',
    '\\^',
    '<0x..>',
  ],
];
const inText: DecoderConfig[] = [
  ...[strip(' ', 1, 0), strip(' ', 0, 1), strip(' ', 2, 0), strip('a', 2, 0)],
  ...[{ type: 'ByteFallback' }, byteLevel, metaspace('always'), metaspace('never'), wordPiece(true), wordPiece(false)],
  ...[bpe('</w>'), ctc(true), ctc(false), fuse],
  ...[replace({ String: '▁' }, ' '), replace({ String: 'aa' }, 'a'), replace({ String: 'aba' }, '-')],
  ...[replace({ String: 'a b' }, ''), replace({ String: '</w>' }, '</w></w>')],
];
const configs: [string, DecoderConfig | null][] = [
  null,
  ...single,
  ...patterns.map((Regex) => replace({ Regex }, '-')),
  ...patterns.map((Regex) => sequence(fuse, replace({ Regex }, '<>'))),
  ...inText.map((config) => sequence(fuse, config)),
  ...inText.map((config) => sequence(byteLevel, config)),
  sequence(replace({ String: '▁' }, ' '), { type: 'ByteFallback' }, fuse, strip(' ', 1, 0)),
  sequence({ type: 'ByteFallback' }, metaspace('first')),
  sequence(bpe('</w>'), wordPiece(true)),
  sequence(ctc(true), strip(' ', 0, 1), bpe('@@')),
  sequence(fuse, replace({ String: ' ' }, 'ab'), replace({ Regex: 'b+' }, ' '), strip('a', 0, 1)),
].map((config) => [JSON.stringify(config), config]);

it.each(configs)('%s', async (_name, config) => {
  const model = { type: 'WordLevel', vocab, unk_token: 'a' };
  const reference = Reference.fromString(JSON.stringify({ model, decoder: config, added_tokens: [] }));
  const random = new Random(73);
  const lists = Array.from({ length: LISTS }, (_, i) => random.tokens(random.integer(1, 4 + (i % 6)), names.length));
  const expected = await reference.decodeBatch(lists, false);
  const differences: unknown[] = [];
  lists.forEach((ids, i) => {
    const decoder = createDecoder(config, { continued: false });
    const list = ids.map((id) => names[id] as string);
    const got = [...list.map((piece) => decoder.push(piece)), decoder.flush()].join('');
    if (got !== expected[i]) differences.push({ list, got, want: expected[i] });
  });
  expect(differences).toEqual([]);
});
