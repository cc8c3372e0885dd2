// Where proposals of speculative decoding come from, and how many there are.

import { PromptLookup } from '../../lib/prompt_lookup';
import { ProposalSize } from '../../lib/speculative';
import { Random } from '../support/numbers';

describe('prompt lookup', () => {
  it.each([
    ['nothing for a token that is new', [1, 2, 3], 3, 4, []],
    ['nothing for one token', [1], 3, 4, []],
    ['what followed the last token', [7, 1, 2, 3, 7], 3, 2, [1, 2]],
    ['what followed the longest sequence, not the latest', [1, 2, 3, 4, 9, 3, 5, 2, 3], 3, 1, [4]],
    ['what followed the latest of equal ones', [1, 2, 5, 1, 2, 6, 1, 2], 3, 1, [6]],
    ['a sequence no longer than `ngram`', [1, 2, 3, 4, 9, 3, 5, 2, 3], 1, 1, [5]],
    ['a repetition of one token', [4, 7, 7], 3, 3, [7, 7, 7]],
    ['a repetition of two tokens', [9, 1, 2, 1, 2], 3, 5, [1, 2, 1, 2, 1]],
    ['a sequence at the very beginning', [5, 6, 8, 5, 6], 3, 1, [8]],
  ])('proposes %s', (_, tokens, ngram, count, expected) => {
    expect(new PromptLookup(ngram).propose(tokens, count)).toEqual(expected);
  });

  it('equals a search by definition', () => {
    const random = new Random(1);
    for (let i = 0; i < 300; i++) {
      const tokens = random.tokens(1 + (i % 40), 4);
      const ngram = 1 + (i % 5);
      let expected: number | undefined;
      for (let length = Math.min(ngram, tokens.length - 1); length >= 1 && expected === undefined; length--) {
        const last = tokens.slice(-length).join();
        for (let begin = tokens.length - length - 1; begin >= 0 && expected === undefined; begin--) {
          if (tokens.slice(begin, begin + length).join() === last) expected = tokens[begin + length];
        }
      }
      expect(new PromptLookup(ngram).propose(tokens, 1)).toEqual(expected === undefined ? [] : [expected]);
    }
  });
});

describe('the number of proposals', () => {
  /** The numbers for steps that accept all, or as many as `accepted` says. */
  const sizes = (max: number, accepted: (number | 'all')[]): number[] => {
    const size = new ProposalSize(max);
    return accepted.map((count) => {
      const proposed = size.next();
      if (proposed > 0) size.record(proposed, count === 'all' ? proposed : count);
      return proposed;
    });
  };

  it('grows to the maximum while all are accepted', () => {
    expect(sizes(15, ['all', 'all', 'all', 'all'])).toEqual([4, 8, 15, 15]);
    expect(sizes(3, ['all', 'all'])).toEqual([3, 3]);
  });

  it('follows what was accepted', () => {
    expect(sizes(8, ['all', 2, 1, 'all', 3, 0, 'all'])).toEqual([4, 8, 3, 2, 4, 4, 2]);
  });

  it('pauses longer and longer while none is accepted, and not after one is', () => {
    const rejected = sizes(8, Array(120).fill(0));
    const pauses = rejected.join('').split(/[1-9]/);
    expect(pauses.map(({ length }) => length)).toEqual([0, 0, 1, 2, 4, 8, 16, 32, 32, expect.any(Number)]);
    const again = sizes(8, [0, 0, 0, 'all', 0, 0]);
    expect(again.slice(0, 4)).toEqual([4, 2, 0, 1]);
    expect(again.slice(4)).toEqual([2, 1]);
  });

  it('follows what was proposed, if that is fewer', () => {
    const size = new ProposalSize(15);
    expect(size.next()).toBe(4);
    size.record(1, 1);
    expect(size.next()).toBe(2);
  });
});
