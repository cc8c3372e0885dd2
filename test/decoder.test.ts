// The steps of decoders that no embedded or written tokenizer of tokenizer.test.ts has, one by one: what a stream gives
// out, piece by piece, and what it withholds until more comes.

import { createDecoder, type DecoderConfig } from '../lib/decoder';

/** What each piece gives out, and last what the end does. */
function pushed(config: DecoderConfig | null, pieces: string[], continued = false): string[] {
  const decoder = createDecoder(config, { literals: new Set(), continued });
  return [...pieces.map((piece) => decoder.push(piece)), decoder.flush()];
}

it('BPEDecoder: the end of a word is a space, but for the last of the text', () => {
  expect(pushed({ type: 'BPEDecoder' }, ['hel', 'lo</w>', 'world</w>'])).toEqual(['', 'hel', 'lo ', 'world']);
  expect(pushed({ type: 'BPEDecoder', suffix: '@' }, ['a@', 'b</w>'])).toEqual(['', 'a ', 'b</w>']);
  expect(pushed({ type: 'BPEDecoder' }, [])).toEqual(['']);
});

it('Replace: by a string or a pattern, and `$` in the content means itself', () => {
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

it('Metaspace: the first space goes, where the encoder put it there and the text does not go on from another', () => {
  const metaspace: DecoderConfig = { type: 'Metaspace' };
  expect(pushed(metaspace, ['▁a▁b', '▁c'])).toEqual(['a b', ' c', '']);
  expect(pushed(metaspace, ['▁a', '▁c'], true)).toEqual([' a', ' c', '']);
  expect(pushed({ ...metaspace, prepend_scheme: 'never' }, ['▁a', '▁c'])).toEqual([' a', ' c', '']);
  expect(pushed({ ...metaspace, add_prefix_space: false }, ['▁a'])).toEqual([' a', '']);
  expect(pushed({ ...metaspace, replacement: '_' }, ['_a_b▁'])).toEqual(['a b▁', '']);
});

it('Strip: of each piece; behind a Fuse of the whole text, whose end is withheld until it is known not to be the end', () => {
  const strip: DecoderConfig = { type: 'Strip', content: ' ', start: 1, stop: 1 };
  expect(pushed(strip, ['  a  ', ' b'])).toEqual([' a ', 'b', '']);
  const whole: DecoderConfig = { type: 'Sequence', decoders: [{ type: 'Fuse' }, strip] };
  expect(pushed(whole, [' ', ' a ', 'b '])).toEqual(['', ' a', ' b', '']);
  expect(pushed(whole, [' a'], true)).toEqual([' a', '']);
});

it('without a decoder pieces are joined by spaces', () => {
  expect(pushed(null, ['a', 'b'])).toEqual(['a', ' b', '']);
  expect(pushed(null, ['a', 'b'], true)).toEqual([' a', ' b', '']);
});

it('refuses a step without a type, and one that it does not know, by name', () => {
  const context = { literals: new Set<string>(), continued: false };
  expect(() => createDecoder({} as DecoderConfig, context)).toThrow('a decoder has no type');
  expect(() => createDecoder({ type: 'Telepathy' }, context)).toThrow(
    expect.objectContaining({ code: 'ERR_UNSUPPORTED_MODEL', message: expect.stringContaining('Telepathy') }),
  );
});
