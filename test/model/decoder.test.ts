// Decoder steps that the tokenizers in tokenizer.test.ts lack, one by one: the output of a stream
// for each piece, and what the stream withholds until more input comes.

import { createDecoder, type DecoderConfig } from '../../lib/decoder';

/** The output for each piece, followed by that of the end. */
function pushed(config: DecoderConfig | null, pieces: string[], continued = false): string[] {
  const decoder = createDecoder(config, { continued });
  return [...pieces.map((piece) => decoder.push(piece)), decoder.flush()];
}

it('BPEDecoder writes the end of a word as a space, except for the last of the text', () => {
  expect(pushed({ type: 'BPEDecoder' }, ['hel', 'lo</w>', 'world</w>'])).toEqual(['', 'hel', 'lo ', 'world']);
  expect(pushed({ type: 'BPEDecoder', suffix: '@' }, ['a@', 'b</w>'])).toEqual(['', 'a ', 'b</w>']);
  expect(pushed({ type: 'BPEDecoder' }, [])).toEqual(['']);
});

it('Replace replaces a string or a pattern and treats `$` in the content literally', () => {
  expect(pushed({ type: 'Replace', pattern: { String: '.' }, content: '$&' }, ['a.b.', 'c'])).toEqual([
    'a$&b$&',
    'c',
    '',
  ]);
  expect(pushed({ type: 'Replace', pattern: { Regex: '[0-9]+' }, content: '$&' }, ['a12b3', 'c'])).toEqual([
    'a$&b$&',
    'c',
    '',
  ]);
});

it('Metaspace drops the spaces of the first piece unless the text continues another', () => {
  const metaspace: DecoderConfig = { type: 'Metaspace' };
  expect(pushed(metaspace, ['▁a▁b', '▁c'])).toEqual(['ab', ' c', '']);
  expect(pushed(metaspace, ['▁a', '▁c'], true)).toEqual([' a', ' c', '']);
  expect(pushed({ ...metaspace, prepend_scheme: 'never' }, ['▁a', '▁c'])).toEqual([' a', ' c', '']);
  expect(pushed({ ...metaspace, add_prefix_space: false }, ['▁a'])).toEqual([' a', '']);
  expect(pushed({ ...metaspace, replacement: '_' }, ['_a_b▁'])).toEqual(['ab▁', '']);
});

it('Strip strips each piece, or after a Fuse the whole text, whose end is withheld until it is certain', () => {
  const strip: DecoderConfig = { type: 'Strip', content: ' ', start: 1, stop: 1 };
  expect(pushed(strip, ['  a  ', ' b'])).toEqual([' a ', 'b', '']);
  const whole: DecoderConfig = { type: 'Sequence', decoders: [{ type: 'Fuse' }, strip] };
  expect(pushed(whole, [' ', ' a ', 'b '])).toEqual(['', ' a', ' b', '']);
  expect(pushed(whole, [' a'], true)).toEqual([' a', '']);
});

it('joins pieces by spaces without a decoder', () => {
  expect(pushed(null, ['a', 'b'])).toEqual(['a', ' b', '']);
  expect(pushed(null, ['a', 'b'], true)).toEqual([' a', ' b', '']);
});

it('rejects a step without a type, and an unknown step by its name', () => {
  const context = { continued: false };
  expect(() => createDecoder({} as DecoderConfig, context)).toThrow('a decoder has no type');
  expect(() => createDecoder({ type: 'Telepathy' }, context)).toThrow(
    expect.objectContaining({ code: 'ERR_UNSUPPORTED_MODEL', message: expect.stringContaining('Telepathy') }),
  );
});

const replace = (Regex: string): DecoderConfig => ({ type: 'Replace', pattern: { Regex }, content: '-' });
const fused = (step: DecoderConfig): DecoderConfig => ({ type: 'Sequence', decoders: [{ type: 'Fuse' }, step] });

it('a text that continues another is not the start of one for a pattern, nor part of its matches', () => {
  const outputs = (pattern: string) => pushed(fused(replace(pattern)), ['ab', 'aa'], true).join('|');
  expect(['\\w+', 'a*', '^a', '^', '.+b', '(?<=b)a', '(?<!\\w)a'].map(outputs)).toEqual([
    ...['||-', '||-b-', '||abaa', '|ab|aa', '||-aa', '||ab-a', '||abaa'],
  ]);
});

it('a pattern sees as far back and ahead as it looks, whatever the pieces are', () => {
  const outputs = (pattern: string, text: string) => pushed(fused(replace(pattern)), Array.from(text)).join('');
  const rest = 'y'.repeat(20);
  expect(outputs('(?<=abcd)x', `abcdx,bcdx${rest}`)).toBe(`abcd-,bcdx${rest}`);
  expect(outputs('(?<!abcd)x', `abcdx,bcdx${rest}`)).toBe(`abcdx,bcd-${rest}`);
  expect(outputs('x(?=abcd)', `xabcd,xabc${rest}`)).toBe(`-abcd,xabc${rest}`);
  expect(outputs('x(?!abcd)', `xabcd,xabc${rest}`)).toBe(`xabcd,-abc${rest}`);
  expect(outputs('a{4}?b', `aaaab${rest}`)).toBe(`-${rest}`);
  expect(outputs('a{1,4}b', `aaaab${rest}`)).toBe(`-${rest}`);
  expect(outputs('a(?:bcd|bcde)f', `abcdef${rest}`)).toBe(`-${rest}`);
});

it('a match is written when no later piece can change it', () => {
  const outputs = (pattern: string, ...pieces: string[]) => pushed(fused(replace(pattern)), pieces);
  expect(outputs('a', ...Array.from('xaxxxxxxx'))).toEqual(['', '', '', '', 'x', '-', 'x', 'x', 'x', 'xxxx']);
  expect(outputs('a+', 'xa', 'a', 'b')).toEqual(['', '', '', 'x-b']);
  const string = fused({ type: 'Replace', pattern: { String: 'abc' }, content: '-' });
  expect(pushed(string, ['xa', 'b', 'cab', 'd', 'abcabc', 'ab'])).toEqual(['x', '', '-', 'abd', '--', '', 'ab']);
});

// By the number of characters that were read.
const rejected: string[][] = [
  [')'],
  [
    '(?>a)',
    '(?i)a',
    '(?<n>a)',
    '(?',
    '(',
    'a)',
    '[',
    '[[a]]',
    '*',
    '+a',
    '?',
    'a{',
    'a{x}',
    '{',
    '}',
    'a{,2}',
    '^*',
    '$+',
  ],
  ['a++', 'a+*', 'a?+', '(a', '[a', '[a&&b]', '[^', '[]', 'a}', '\\', '\\1', '\\b', '\\p{L}', '\\é'],
  ['(a)*', '(a){2}', '[^]', '[\\S]', '[a-'],
  ['a{2}{3}', 'a+b+', 'a*b*'],
  ['(?=a)*'],
  [],
  ['a+b{2,}', 'a{1001}'],
  [],
  ['a{1,1001}'],
];
it.each(rejected.flatMap((list, at) => list.map((pattern) => [pattern, at] as const)))(
  'rejects the pattern %s',
  (pattern, at) => {
    expect(() => createDecoder(replace(pattern), { continued: false })).toThrow(
      expect.objectContaining({
        code: 'ERR_UNSUPPORTED_MODEL',
        message:
          `the pattern ${JSON.stringify(pattern)} of a Replace decoder is not supported (at character ${at}): supported ` +
          'are characters, classes, anchors, alternatives and lookaround, with quantifiers on single characters, one ' +
          'of them without a limit',
      }),
    );
  },
);

it('accepts 1000 repeats, shortens a long pattern in the message, and rejects what is no pattern', () => {
  expect(pushed(replace('a{1000}b'), ['a'.repeat(1000), `${'a'.repeat(1000)}b`])).toEqual(['a'.repeat(1000), '-', '']);
  expect(() => createDecoder(replace('('.repeat(90)), { continued: false })).toThrow(`"${'('.repeat(80)}"`);
  for (const pattern of [undefined, {}, { Regex: 3 as unknown as string }])
    expect(() => createDecoder({ type: 'Replace', pattern }, { continued: false })).toThrow(
      'a Replace decoder has no pattern',
    );
});

it('limits how much longer Replace makes a text', () => {
  const longest = 2 ** 20 + 64;
  const of = (length: number): DecoderConfig => ({
    ...{ type: 'Replace', pattern: { String: 'a' }, content: 'x'.repeat(length) },
  });
  const pattern = { Regex: 'a' };
  for (const step of [of(longest), { ...of(longest), pattern }, fused(of(longest)), fused({ ...of(longest), pattern })])
    expect(pushed(step, ['a']).join('')).toHaveLength(longest);
  const error = {
    code: 'ERR_INVALID_CHECKPOINT',
    message: 'the decoder of tokenizer.json makes text more than 64 times longer',
  };
  const empty: DecoderConfig = { type: 'Replace', pattern: { String: '' }, content: 'x'.repeat(longest / 2 + 1) };
  for (const step of [of(longest + 1), { ...of(longest + 1), pattern }, fused({ ...of(longest + 1), pattern }), empty])
    expect(() => pushed(step, ['a'])).toThrow(expect.objectContaining(error));
});

it('ByteFallback takes only a whole piece for a byte', () => {
  const texts = ['<0x41>b', 'b<0x41>', '<0x4>', '<0x4g>', '<0X41>'];
  expect(pushed({ type: 'ByteFallback' }, texts)).toEqual([...texts, '']);
});

it('ByteFallback writes each byte of a run that is not UTF-8 as U+FFFD', () => {
  expect(pushed({ type: 'ByteFallback' }, ['<0xE2>', '<0x82>', '<0xAC>', 'a', '<0xE2>', 'b', '<0xC3>'])).toEqual([
    ...['', '', '', '€a', '', '\ufffdb', '', '\ufffd'],
  ]);
  const bytes = (...pieces: string[]) => pushed(fused({ type: 'ByteFallback' }), pieces);
  expect(bytes('<0x', '41>')).toEqual(['', '', 'A']);
  expect(bytes('<0x80>')).toEqual(['', '\ufffd']);
  expect(bytes('<0x7F>')).toEqual(['', '\x7f']);
  expect(bytes('<0x41>', 'b', 'c')).toEqual(['', '<0x41>b', 'c', '']);
  expect(bytes()).toEqual(['']);
});
