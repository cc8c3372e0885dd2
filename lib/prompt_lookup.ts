import type { Proposer } from './speculative';

/**
 * Proposes what followed the last tokens where they occurred before (prompt lookup decoding). The
 * longest sequence of last tokens counts, and of its places the latest. If what followed reaches the
 * end of the tokens, it repeats.
 */
export class PromptLookup implements Proposer {
  readonly #maxLength: number;

  /** `maxLength`: the most last tokens to compare. */
  constructor(maxLength: number) {
    this.#maxLength = maxLength;
  }

  propose(tokens: readonly number[], count: number): number[] {
    const begin = this.#find(tokens);
    if (begin < 0) return [];
    const proposals: number[] = [];
    const period = tokens.length - begin;
    for (let i = 0; i < count; i++) {
      proposals.push((i < period ? tokens[begin + i] : proposals[i - period]) as number);
    }
    return proposals;
  }

  dispose(): void {}

  /** Where the tokens after the earlier place begin; -1 if there is none. */
  #find(tokens: readonly number[]): number {
    const last = tokens.length - 1;
    let longest = 0;
    let begin = -1;
    for (let end = last - 1; end >= longest && longest < this.#maxLength; end--) {
      let length = 0;
      while (
        length < this.#maxLength &&
        length <= end &&
        tokens[end - length] === tokens[last - length]
      ) {
        length++;
      }
      if (length <= longest) continue;
      longest = length;
      begin = end + 1;
    }
    return begin;
  }
}
