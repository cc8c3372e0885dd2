// Stop strings: the search in streamed text, the special tokens that they name, and their limit.

import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Model, type Tokenizer } from '../../lib/index';
import { resolveStop, StopFilter, StopTokens } from '../../lib/stop';
import { temporaryDirectories } from '../support/checkpoints';
import { errorOf } from '../support/devices';
import { tldrDirectory } from '../support/fixtures';
import { Random } from '../support/numbers';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

interface Filtered {
  texts: string[];
  matched: string | null;
}

/** Texts out of `pieces`, by searching all the text after each piece. */
function expectedTexts(pieces: readonly string[], stops: readonly string[]): Filtered {
  const texts: string[] = [];
  let all = '';
  let sent = 0;
  for (const piece of pieces) {
    all += piece;
    // Of stop strings that begin together the shortest, which is complete first.
    const found = stops.filter((stop) => all.includes(stop));
    found.sort((a, b) => all.indexOf(a) - all.indexOf(b) || a.length - b.length);
    const [matched = null] = found;
    const stopped = matched !== null;
    let end = stopped ? all.indexOf(matched) : all.length;
    // Withholds the longest end of the text with which a stop string begins.
    for (let at = 0; !stopped && at < all.length; at++) {
      if (!stops.some((stop) => stop.startsWith(all.slice(at)))) continue;
      end = at;
      break;
    }
    texts.push(all.slice(sent, end));
    sent = end;
    if (stopped) return { texts, matched };
  }
  return { texts: [...texts, all.slice(sent)], matched: null };
}

async function filteredTexts(pieces: readonly string[], stops: readonly string[]): Promise<Filtered> {
  const filter = await StopFilter.create(stops);
  const texts: string[] = [];
  for (const piece of pieces) {
    texts.push(filter.push(piece));
    if (filter.matched !== null) return { texts, matched: filter.matched };
  }
  return { texts: [...texts, filter.flush()], matched: filter.matched };
}

describe('the stop filter', () => {
  const random = new Random(8);
  const below = (n: number) => random.tokens(1, n)[0] as number;
  const text = (length: number, letters: number) =>
    random
      .tokens(length, letters)
      .map((letter) => 'ab\ud83d\ude00'[letter])
      .join('');

  it('finds what a search of the whole text finds, in 5,000 random cases', async () => {
    let stopped = 0;
    for (let round = 0; round < 5000; round++) {
      const letters = 2 + below(3);
      const stops = Array.from({ length: 1 + below(5) }, () => text(1 + below(7), letters));
      const pieces = Array.from({ length: 8 }, () => text(below(5), letters));
      const expected = expectedTexts(pieces, stops);
      expect({ stops, pieces, ...(await filteredTexts(pieces, stops)) }).toEqual({ stops, pieces, ...expected });
      if (expected.matched !== null) stopped++;
    }
    expect(stopped).toBeGreaterThan(1000);
    expect(stopped).toBeLessThan(4900);
  });

  it.each([
    ['the first of several in one piece, whichever is listed first', ['c', 'b'], ['abcd'], ['a']],
    ['the longer of two that end together', ['b', 'ab'], ['xab'], ['x']],
    ['one within another that is not complete', ['abcd', 'bc'], ['xabc'], ['xa']],
    ['one that begins within a withheld one', ['aab'], ['a', 'a', 'a', 'b'], ['', '', 'a', '']],
    ['nothing', ['xyz'], ['xy', 'x'], ['', 'xy', 'x']],
  ] as const)('finds %s', async (_, stops, pieces, texts) => {
    expect((await filteredTexts(pieces, stops)).texts).toEqual(texts);
  });

  it('takes up to 65,536 UTF-16 units, and names the limit beyond', async () => {
    const most = Array.from({ length: 8192 }, (_, i) => String(i).padStart(8, '@'));
    const filter = await StopFilter.create(resolveStop(most));
    expect([filter.push('text @@@@@@81'), filter.push('91x'), filter.matched]).toEqual(['text ', '', '@@@@@@81']);
    const long = await StopFilter.create(resolveStop('x'.repeat(65_536)));
    expect([long.push('x'.repeat(65_535)), long.push('y').length]).toEqual(['', 65_536]);
    for (const stop of [[...most, 'x'], 'x'.repeat(65_537), new Array(200_000).fill('x')]) {
      const error = await errorOf(() => resolveStop(stop));
      expect([error.code, error.message]).toEqual(['ERR_INVALID_ARGUMENT', expect.stringContaining('65536')]);
    }
  });
});

describe('a generation', () => {
  let model: Model;
  beforeAll(async () => {
    model = await Model.load(tldrDirectory, { device: 'cpu' });
  });
  afterAll(() => model.dispose());

  it('copies the stop strings at the call', async () => {
    const { text } = await model.generate('# tar\n', { maxTokens: 30 }).result;
    const list: string[] = ['@@@', text.slice(10, 14)];
    const generation = model.generate('# tar\n', { maxTokens: 30, stop: list });
    list[0] = text.slice(0, 2);
    list[1] = 5 as unknown as string;
    const result = await generation.result;
    const stop = text.slice(10, 14);
    expect(result).toMatchObject({ finishReason: 'stop', text: text.slice(0, text.indexOf(stop)), stopSequence: stop });
  });

  it('does not take a part of a character for a special token', () => {
    const tokenizer = model.tokenizer as Tokenizer;
    const [part = 0] = tokenizer.encode('\u{10ffff}', { addSpecialTokens: false });
    expect([tokenizer.stream().push(part), tokenizer.decode([part])]).toEqual(['', '\ufffd']);
    expect(new StopTokens(tokenizer, ['\ufffd']).match(part)).toBeNull();
    expect(new StopTokens(tokenizer, ['\ufffd', '<|end_of_text|>']).match(4095)).toBe('<|end_of_text|>');
    expect(new StopTokens(null, ['<|end_of_text|>']).match(4095)).toBeNull();
  });

  it('stops at the end-of-text token of the tokenizer, and at the special token of a stop string', async () => {
    const options = { maxTokens: 150, temperature: 0.5 };
    let seed = 0;
    let expected = await model.generate('# tar\n', { ...options, seed }).result;
    while (expected.finishReason !== 'stop' && seed < 20) {
      expected = await model.generate('# tar\n', { ...options, seed: ++seed }).result;
    }
    expect(expected.tokens.at(-1)).toBe(4095);
    expect(expected.stopSequence).toBeNull();
    const named = await model.generate('# tar\n', { ...options, seed, stop: '<|end_of_text|>' }).result;
    expect(named).toMatchObject({ tokens: expected.tokens, stopSequence: '<|end_of_text|>' });

    const directory = directories.make();
    cpSync(tldrDirectory, directory, { recursive: true });
    const withoutKey = (name: string, key: string) => {
      const file = join(directory, name);
      const { [key]: _, ...rest } = JSON.parse(readFileSync(file, 'utf8'));
      writeFileSync(file, JSON.stringify(rest));
    };
    withoutKey('config.json', 'eos_token_id');
    const ending = await Model.load(directory, { device: 'cpu' });
    expect(ending.config.eosTokenIds).toEqual([]);
    const ofTokenizer = await ending.generate('# tar\n', { ...options, seed }).result;
    expect(ofTokenizer).toMatchObject({ finishReason: 'stop', text: expected.text, tokens: expected.tokens });
    ending.dispose();

    // Without an end-of-text token in both configs, 4095 is a special token that ends nothing.
    withoutKey('tokenizer_config.json', 'eos_token');
    const endless = await Model.load(directory, { device: 'cpu' });
    const generate = (stop: string[]) => endless.generate('# tar\n', { ...options, seed, stop }).result;
    const { text, tokens } = expected;
    const through = await generate(['<|end_of_text', '@@@']);
    expect(through.stopSequence).toBeNull();
    expect(through.tokens.slice(0, tokens.length)).toEqual(tokens);
    expect(through.tokens.length).toBeGreaterThan(tokens.length);
    // A withheld start of another stop string is released.
    const stopped = await generate([`${text.slice(-2)}@@@`, '<|end_of_text|>']);
    expect(stopped).toMatchObject({ finishReason: 'stop', text, tokens, stopSequence: '<|end_of_text|>' });
    endless.dispose();
  });
});
