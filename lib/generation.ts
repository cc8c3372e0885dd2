import { deferred } from './deferred';
import type { GeneratedLogprob, TokenLogprob } from './logprobs';
import { checkReceiver } from './receiver';
import type { SpeculativeCounts } from './speculative';
import type { ToolCall, ToolCallDelta } from './tool_calls';

/** One token of a generation. */
export interface GeneratedToken {
  /** The token, from 0 to vocabSize - 1. */
  token: number;
  /**
   * The text that is known after this token. Empty while a character is incomplete, or while the
   * text may become a stop string.
   */
  text: string;
  /** With the option `logprobs`: the log probability of the token. */
  logprob?: number;
  /** With the option `logprobs`: the most likely tokens in its place, the most likely first. */
  topLogprobs?: TokenLogprob[];
  /** Parts of calls that are known after this token. Undefined if there are none. */
  toolCalls?: ToolCallDelta[];
}

/** The outcome of a generation. */
export interface GenerationResult {
  /** The joined texts of all tokens, without special tokens and without the stop string. */
  text: string;
  /** The calls of functions of `tools`, in order. Their text is not part of `text`. */
  toolCalls: ToolCall[];
  /** The generated tokens, including an end-of-text token. */
  tokens: number[];
  /**
   * 'stop': the model generated an end-of-text token, the text of a `responseFormat` is complete, or
   * a stop string was found. 'tool_calls': the same, and there are calls. 'length':
   * maxTokens or the end of the cache was reached. 'abort': the signal was aborted, or the
   * iteration was left early.
   */
  finishReason: 'stop' | 'tool_calls' | 'length' | 'abort';
  /** The stop string that was found; null if none was. */
  stopSequence: string | null;
  /** With the option `logprobs`: one for each of `tokens`. */
  logprobs?: GeneratedLogprob[];
  /** Numbers of tokens. */
  usage: {
    /**
     * Tokens of the prompt, including special tokens. Earlier tokens of `session` count only if the
     * prompt is messages, of which they are the beginning.
     */
    promptTokens: number;
    /**
     * How many of `promptTokens` were in the cache of `session` and were not computed again. 0
     * unless the prompt is messages. Pages of the prefix cache do not count.
     */
    cachedTokens: number;
    /** The length of `tokens`. */
    completionTokens: number;
  };
  /** Wall-clock times. */
  timings: {
    /** Milliseconds until the first token. */
    prefillMs: number;
    /** Milliseconds from the first token to the last. */
    decodeMs: number;
    /** (completionTokens - 1) per second of decodeMs; 0 if there are fewer than two tokens. */
    tokensPerSecond: number;
  };
  /** What speculative decoding did; only with the option `speculative`. */
  speculative?: SpeculativeCounts;
}

/**
 * Generates tokens and passes each to `emit`, until it is done or `stop` is aborted. A reader that
 * leaves aborts `stop`, and so may the producer.
 */
export type Producer = (
  emit: (token: GeneratedToken) => void,
  stop: AbortController,
) => Promise<GenerationResult>;

/**
 * A running generation. Iterate over it, await `result`, or both. It starts at once and does not
 * wait for a slow reader. A second iteration yields all tokens from the first one again. Leaving a
 * `for await` early stops the generation: the loop ends when the session is free, and `result`
 * resolves to the tokens so far with finishReason 'abort'. An error is thrown by the iteration and
 * rejects `result`. If only one of them is used, the other causes no unhandled rejection.
 */
export class Generation implements AsyncIterable<GeneratedToken> {
  /** Settles when the generation ends, whether or not anything iterates over it. */
  readonly result: Promise<GenerationResult>;
  readonly #tokens: GeneratedToken[] = [];
  readonly #stop = new AbortController();
  #ended = false;
  #change = deferred<void>();

  /** @internal */
  constructor(produce: Producer) {
    const emit = (token: GeneratedToken) => {
      this.#tokens.push(token);
      this.#notify();
    };
    this.result = produce(emit, this.#stop).finally(() => {
      this.#ended = true;
      this.#notify();
    });
    this.result.catch(() => {}); // no unhandled rejection if only the iteration is used
  }

  /**
   * True only for an object that this class created.
   * @internal
   */
  static [Symbol.hasInstance](value: unknown): value is Generation {
    return typeof value === 'object' && value !== null && #tokens in value;
  }

  /**
   * Yields all tokens from the first one. Leaving it early stops the generation, and so does
   * `return` before the first `next`.
   */
  [Symbol.asyncIterator](): AsyncGenerator<GeneratedToken, void, undefined> {
    const iterator = this.#iterate();
    const stopFirst =
      <A extends unknown[], R>(leave: (...args: A) => Promise<R>) =>
      async (...args: A): Promise<R> => {
        await this.#end();
        return leave(...args);
      };
    // A generator runs its `finally` only after a first `next`, and not while a `next` is pending.
    return Object.assign(iterator, {
      return: stopFirst(iterator.return.bind(iterator)),
      throw: stopFirst(iterator.throw.bind(iterator)),
    });
  }

  async *#iterate(): AsyncGenerator<GeneratedToken, void, undefined> {
    for (let i = 0; ; ) {
      const token = this.#tokens[i];
      if (token !== undefined) {
        i++;
        yield token;
      } else if (this.#ended) {
        break;
      } else {
        await this.#change.promise;
      }
    }
    await this.result;
  }

  /** Stops the generation, and waits until it has released its session. */
  async #end(): Promise<void> {
    this.#stop.abort(); // no effect if the generation has ended
    await this.result.catch(() => {});
  }

  #notify(): void {
    const { resolve } = this.#change;
    this.#change = deferred<void>();
    resolve();
  }
}

checkReceiver(Generation, 'a generation');
