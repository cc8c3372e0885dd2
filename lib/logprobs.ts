import type { NativeBatchResult } from './addon';
import { checkInteger } from './errors';
import type { Model } from './model';
import type { Tokenizer } from './tokenizer';

/** A token and its log probability. */
export interface TokenLogprob {
  /** The token, from 0 to vocabSize - 1. */
  token: number;
  /** The text of this token alone, also of a special token. '' without a tokenizer. */
  text: string;
  /** The natural logarithm of its probability: at most 0. */
  logprob: number;
}

/** The log probability of a generated token, and those of the most likely tokens in its place. */
export interface GeneratedLogprob extends TokenLogprob {
  /** The most likely tokens, the most likely first: `logprobs` of them, or the whole vocabulary. */
  topLogprobs: TokenLogprob[];
}

const MAX_LOGPROBS = 20;

/** The log probabilities of the tokens of one generation. */
export class LogprobRecorder {
  /** Number of the most likely tokens; undefined if no log probabilities are wanted. */
  readonly count: number | undefined;
  readonly #tokenizer: Tokenizer | null;
  readonly #recorded: GeneratedLogprob[] = [];

  /** Throws ERR_INVALID_ARGUMENT unless `count` is undefined or an integer from 0 to 20. */
  constructor({ tokenizer }: Model, count: number | undefined) {
    if (count !== undefined) checkInteger('logprobs', count, 0, MAX_LOGPROBS);
    this.count = count;
    this.#tokenizer = tokenizer;
  }

  /** Takes those of the next token, or of those that a step has verified, from the result. */
  readonly record = ({ token, logprobs, drawn, drawnLogprobs }: NativeBatchResult): void => {
    const all = drawnLogprobs ?? (logprobs === undefined ? [] : [logprobs]);
    for (const [i, { logprob, topTokens, topLogprobs }] of all.entries()) {
      const top = topTokens.map((other, j) => this.#entry(other, topLogprobs[j] as number));
      const entry = this.#entry((drawn?.[i] ?? token) as number, logprob);
      this.#recorded.push({ ...entry, topLogprobs: top });
    }
  };

  /** What a generated token has of them. `index` counts the tokens before it. */
  ofToken(index: number): Pick<GeneratedLogprob, 'logprob' | 'topLogprobs'> | undefined {
    const recorded = this.#recorded[index];
    return recorded && { logprob: recorded.logprob, topLogprobs: recorded.topLogprobs };
  }

  /** What the result of a generation of so many tokens has of them. */
  ofResult(numTokens: number): { logprobs: GeneratedLogprob[] } | undefined {
    return this.count === undefined ? undefined : { logprobs: this.#recorded.slice(0, numTokens) };
  }

  #entry(token: number, logprob: number): TokenLogprob {
    const stream = this.#tokenizer?.stream({ continued: true, skipSpecialTokens: false });
    const text = stream === undefined ? '' : stream.push(token) + stream.flush();
    return { token, text, logprob };
  }
}
