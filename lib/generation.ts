/** One token as it comes. */
export interface GeneratedToken {
  /** The token drawn, from 0 to vocabSize - 1. */
  token: number;
  /** The text that this token settles; '' while a character, or what may become a stop string, is incomplete. */
  text: string;
}

/** The outcome of a generation. */
export interface GenerationResult {
  /** The texts of all tokens, joined: without special tokens, and without the stop string. */
  text: string;
  /** The tokens drawn, an end-of-text token included. */
  tokens: number[];
  /**
   * 'stop': the model ended its text, or a stop string came. 'length': maxTokens or the end of the cache was reached.
   * 'abort': the signal fired, or the iteration was left early.
   */
  finishReason: 'stop' | 'length' | 'abort';
  /** In tokens. */
  usage: {
    /** Of the prompt, special tokens included; with a `session`, without what that held before. */
    promptTokens: number;
    /** The length of `tokens`. */
    completionTokens: number;
  };
  /** Wall clock. */
  timings: {
    /** Milliseconds until the first token was drawn. */
    prefillMs: number;
    /** Milliseconds from the first token to the last. */
    decodeMs: number;
    /** (completionTokens - 1) per second of decodeMs; 0 where there are fewer than two tokens. */
    tokensPerSecond: number;
  };
}

/** Draws tokens, giving each to `emit`, until done or until `stop` fires. */
export type Producer = (
  emit: (token: GeneratedToken) => void,
  stop: AbortSignal,
) => Promise<GenerationResult>;

/**
 * A running generation: iterate over it, await `result`, or both. It starts at once and runs ahead of a slow reader.
 * Iterating again gives all tokens from the first on. Leaving a `for await` early stops it, waits until it has let go of its session, and `result`
 * resolves with what was drawn and finishReason 'abort'. An error is thrown by the iteration and rejects `result`; whoever uses only one of them
 * gets it there, and no unhandled rejection.
 */
export class Generation implements AsyncIterable<GeneratedToken> {
  /** Resolves when the generation has ended, whether or not anybody iterates; rejects with what ended it otherwise. */
  readonly result: Promise<GenerationResult>;
  readonly #tokens: GeneratedToken[] = [];
  readonly #stop = new AbortController();
  #ended = false;
  #change = signalled();

  /** @internal */
  constructor(produce: Producer) {
    const emit = (token: GeneratedToken) => {
      this.#tokens.push(token);
      this.#changed();
    };
    this.result = produce(emit, this.#stop.signal).finally(() => {
      this.#ended = true;
      this.#changed();
    });
    this.result.catch(() => {}); // whoever awaits it still gets the error
  }

  /** All tokens from the first on. Leaving it early ends the generation. */
  async *[Symbol.asyncIterator](): AsyncGenerator<GeneratedToken, void, undefined> {
    try {
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
    } finally {
      this.#stop.abort(); // does nothing where it has ended
      await this.result.catch(() => {});
    }
  }

  #changed(): void {
    const { resolve } = this.#change;
    this.#change = signalled();
    resolve();
  }
}

function signalled(): { promise: Promise<void>; resolve: () => void } {
  let resolve!: () => void;
  const promise = new Promise<void>((done) => {
    resolve = done;
  });
  return { promise, resolve };
}
