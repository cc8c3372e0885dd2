import { onAbort, throwIfAborted } from './abort';
import {
  addon,
  type NativeBatchItem,
  type NativeBatchResult,
  type NativeSampling,
  type NativeSession,
} from './addon';
import { aborted, awaitNative, callNative, translate } from './errors';

/** Tokens to append to a session, and whether to draw the token that follows them. */
export interface BatchRequest {
  session: NativeSession;
  /** One token is a decoding step; more are a prompt, or proposals of {@link Scheduler.verify}. */
  tokens: Int32Array;
  /** If undefined, no token is drawn, and -1 is returned. */
  sampling?: NativeSampling;
  /** Number of tokens that the generation has drawn before. */
  draw: number;
  /** Which tokens can be drawn, and what is added to their logits. Not changed before this returns. */
  allowed?: NativeBatchItem['allowed'];
  biases?: NativeBatchItem['biases'];
  /** The same for each token of {@link Scheduler.verify}. */
  rowBiases?: NativeBatchItem['rowBiases'];
  /** Whether one more token is likely to follow the one that is drawn. */
  continues: boolean;
  /** See {@link NativeBatchItem}, also for the next two. */
  logprobs?: number;
  rows?: NativeBatchItem['rows'];
  targets?: Int32Array;
  /**
   * Called with the result of each step of the request that has no error. If it throws, the request
   * rejects with that error.
   */
  onResult?: (result: NativeBatchResult) => void;
  /** Rejects the request with ABORT_ERR, before its step or within the prompt. */
  signal?: AbortSignal;
  /** Called after each chunk of a prompt. If it throws, the request rejects with that error. */
  onProgress?: (doneTokens: number, totalTokens: number) => void;
}

interface PendingRequest extends BatchRequest {
  verifies: boolean;
  cancel: NativeBatchItem['cancel'];
  /** Tokens that are in the session. */
  done: number;
  settle(outcome: { drawn: number[] } | { error: unknown }): void;
}

// Starting a generation takes time on the event loop: it encodes the prompt and creates a session.
const STARTS_PER_TURN = 64;

/**
 * Lets generations start in the order in which they came, a number of them in each turn of the
 * event loop, so that thousands that come at once do not hold it.
 */
export class Gate {
  #numStarted = 0;
  #waiting: (() => void)[] = [];
  #isScheduled = false;

  /** Undefined if the caller may start now, else a promise that resolves when it may. */
  wait(): Promise<void> | undefined {
    if (this.#numStarted === STARTS_PER_TURN) {
      return new Promise((resolve) => this.#waiting.push(resolve));
    }
    this.#numStarted++;
    if (!this.#isScheduled) this.#schedule();
    return undefined;
  }

  #schedule(): void {
    this.#isScheduled = true;
    setImmediate(() => {
      const starting = this.#waiting.splice(0, STARTS_PER_TURN);
      this.#numStarted = starting.length;
      for (const start of starting) start();
      if (starting.length > 0) this.#schedule();
      else this.#isScheduled = false;
    });
  }
}

/** Tokens of decoding steps that the model computes in one pass over its weights. */
export const MAX_ROWS = 16;

// Each item of a step takes time on the event loop. The model computes MAX_ROWS tokens at a time, so
// a larger step would save nothing.
const MAX_STEP_ITEMS = 256;

/**
 * Continuous batching: concurrent generations of a model advance together. A batch step has the
 * next token of the generations that wait for one and one chunk of the prompt that came first, at
 * most MAX_STEP_ITEMS together. Requests that arrive during a step join a later one.
 */
export class Scheduler {
  /** Where generations wait before they start. */
  readonly gate = new Gate();
  /** Generations that have started and not ended. */
  numGenerations = 0;
  readonly #step: (items: NativeBatchItem[]) => Promise<NativeBatchResult[]>;
  #pending: PendingRequest[] = [];
  #running = false;

  constructor(step: (items: NativeBatchItem[]) => Promise<NativeBatchResult[]>) {
    this.#step = step;
  }

  /** Resolves to the token drawn. If it rejects, the session is unchanged. */
  async next(request: BatchRequest): Promise<number> {
    const [token] = await this.#request(request, false);
    return token as number;
  }

  /**
   * `tokens` are the token to append and proposals for those that follow it, at most MAX_ROWS
   * together. Resolves to the tokens drawn: one more than the proposals that were drawn and
   * therefore appended. If it rejects, the session is unchanged.
   */
  verify(request: BatchRequest): Promise<number[]> {
    return this.#request(request, true);
  }

  async #request(request: BatchRequest, verifies: boolean): Promise<number[]> {
    const { signal } = request;
    throwIfAborted(signal);
    const cancel = signal === undefined ? undefined : callNative(() => addon().createCancel());
    let stopListening = () => {};
    try {
      return await new Promise<number[]>((resolve, reject) => {
        const settle: PendingRequest['settle'] = (outcome) =>
          'error' in outcome ? reject(outcome.error) : resolve(outcome.drawn);
        const pending: PendingRequest = { ...request, verifies, cancel, done: 0, settle };
        stopListening = onAbort(signal, () => {
          cancel?.cancel();
          const index = this.#pending.indexOf(pending);
          if (index < 0) return; // its step is running and checks `cancel`
          this.#pending.splice(index, 1);
          void this.#fail(pending, aborted('during the generation'));
        });
        this.#pending.push(pending);
        this.#schedule();
      });
    } finally {
      stopListening();
    }
  }

  #schedule(): void {
    if (this.#running || this.#pending.length === 0) return;
    this.#running = true;
    // Deferred, so that the generations of the last step request their next tokens first.
    setImmediate(() => void this.#run());
  }

  async #run(): Promise<void> {
    const batch = this.#nextBatch();
    const items = batch.map(
      (request): NativeBatchItem => ({
        session: request.session,
        tokens: request.tokens.subarray(request.done),
        chunks: 'next',
        sampling: request.sampling,
        draw: request.draw,
        continues: request.continues,
        allowed: request.allowed,
        biases: request.biases,
        verifies: request.verifies,
        rowBiases: request.rowBiases,
        logprobs: request.logprobs,
        rows: request.rows,
        targets: request.targets?.subarray(request.done),
        cancel: request.cancel,
      }),
    );
    try {
      const results = batch.length > 0 ? await awaitNative(() => this.#step(items)) : [];
      batch.forEach((request, i) => {
        this.#finish(request, results[i] as NativeBatchResult);
      });
    } catch (error) {
      for (const request of batch) void this.#fail(request, error);
    }
    this.#running = false;
    this.#schedule();
  }

  /** Removes the requests of the next step from the pending ones. */
  #nextBatch(): PendingRequest[] {
    const batch: PendingRequest[] = [];
    const later: PendingRequest[] = [];
    let hasPrompt = false;
    for (const request of this.#pending) {
      const isPrompt = request.tokens.length - request.done > 1 && !request.verifies;
      if ((isPrompt && hasPrompt) || batch.length === MAX_STEP_ITEMS) {
        later.push(request);
        continue;
      }
      try {
        request.session.kvLen; // throws if the session was disposed: only this request fails
      } catch (error) {
        request.settle({ error: translate(error) });
        continue;
      }
      hasPrompt ||= isPrompt;
      batch.push(request);
    }
    this.#pending = later;
    return batch;
  }

  #finish(request: PendingRequest, result: NativeBatchResult): void {
    request.done += result.consumed;
    if (result.error !== undefined) {
      void this.#fail(request, translate(result.error));
      return;
    }
    try {
      request.onResult?.(result);
      request.onProgress?.(request.done, request.tokens.length);
    } catch (error) {
      void this.#fail(request, error);
      return;
    }
    if (request.verifies || request.done === request.tokens.length) {
      request.settle({ drawn: result.drawn ?? [result.token ?? -1] });
      return;
    }
    this.#pending.unshift(request); // the rest of the prompt comes before later prompts
  }

  /** Removes the chunks of the prompt that are in the session, then rejects the request. */
  async #fail(request: PendingRequest, error: unknown): Promise<void> {
    const { session, done } = request;
    try {
      if (done > 0) await awaitNative(() => session.truncate({ kvLen: session.kvLen - done }));
    } catch {
      // The session is disposed or the device is lost, so its tokens no longer matter.
    }
    request.settle({ error });
  }
}
