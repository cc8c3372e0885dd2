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
