import { throwIfAborted } from './abort';
import {
  addon,
  type NativeSampling,
  type NativeSession,
  type NativeTurn,
  type NativeTurnResult,
} from './addon';
import { awaitNative, callNative, DiffqkvError, translate } from './errors';

/** Tokens to be appended to a session, and one to be drawn after them: after a prompt, or after the last token drawn. */
export interface TurnRequest {
  session: NativeSession;
  /** Appended to the session. One token is a step of decoding; more are a prompt. */
  tokens: Int32Array;
  /** None: no token is drawn, and -1 stands for it. */
  sampling?: NativeSampling;
  /** Counts the tokens that a generation has drawn, from 0. */
  draw: number;
  /** End the turn with ABORT_ERR, before its step or within the prompt. */
  signals?: readonly AbortSignal[];
  /** Hears of each part of a prompt that is done; what it throws ends the turn. */
  onProgress?: (doneTokens: number, totalTokens: number) => void;
}

interface Waiting extends TurnRequest {
  cancel: NativeTurn['cancel'];
  done: number;
  settle(outcome: { token: number } | { error: unknown }): void;
}

/**
 * Continuous batching: the generations of a model that run at once advance together. A step is the next token of each
 * that waits for one, and one chunk of the prompt that came first; whoever comes while it runs is in the next.
 */
export class Scheduler {
  readonly #step: (turns: NativeTurn[]) => Promise<NativeTurnResult[]>;
  #waiting: Waiting[] = [];
  #active = false;

  constructor(step: (turns: NativeTurn[]) => Promise<NativeTurnResult[]>) {
    this.#step = step;
  }

  /** Resolves to the token drawn. Where it rejects, the session is as it was. */
  async next(request: TurnRequest): Promise<number> {
    const { signals = [] } = request;
    throwIfAborted(signals);
    const cancel = signals.length > 0 ? callNative(() => addon().createCancel()) : undefined;
    let onAbort: (() => void) | undefined;
    try {
      return await new Promise<number>((resolve, reject) => {
        const settle: Waiting['settle'] = (outcome) =>
          'error' in outcome ? reject(outcome.error) : resolve(outcome.token);
        const turn: Waiting = { ...request, cancel, done: 0, settle };
        onAbort = () => {
          cancel?.cancel();
          const index = this.#waiting.indexOf(turn);
          if (index < 0) return; // its step runs, and sees the flag
          this.#waiting.splice(index, 1);
          void this.#fail(turn, new DiffqkvError('ABORT_ERR', 'the generation was aborted'));
        };
        for (const signal of signals) signal.addEventListener('abort', onAbort);
        this.#waiting.push(turn);
        this.#wake();
      });
    } finally {
      if (onAbort) for (const signal of signals) signal.removeEventListener('abort', onAbort);
    }
  }

  #wake(): void {
    if (this.#active || this.#waiting.length === 0) return;
    this.#active = true;
    // Not at once: all that the last step has let go on asks for its next token first.
    setImmediate(() => void this.#run());
  }

  async #run(): Promise<void> {
    const turns = this.#take();
    const native = turns.map(({ session, tokens, done, sampling, draw, cancel }) => {
      return { session, tokens: tokens.subarray(done), sampling, draw, cancel };
    });
    try {
      const results = turns.length > 0 ? await awaitNative(() => this.#step(native)) : [];
      turns.forEach((turn, i) => {
        this.#settle(turn, results[i] as NativeTurnResult);
      });
    } catch (error) {
      for (const turn of turns) void this.#fail(turn, error);
    }
    this.#active = false;
    this.#wake();
  }

  /** The turns of the next step, out of those that wait. */
  #take(): Waiting[] {
    const taken: Waiting[] = [];
    const left: Waiting[] = [];
    let hasPrompt = false;
    for (const turn of this.#waiting) {
      const isPrompt = turn.tokens.length - turn.done > 1;
      if (isPrompt && hasPrompt) {
        left.push(turn);
        continue;
      }
      try {
        turn.session.kvLen; // a session that was disposed meanwhile is its own turn's error
      } catch (error) {
        turn.settle({ error: translate(error) });
        continue;
      }
      hasPrompt ||= isPrompt;
      taken.push(turn);
    }
    this.#waiting = left;
    return taken;
  }

  #settle(turn: Waiting, result: NativeTurnResult): void {
    turn.done += result.consumed;
    if (result.error !== undefined) {
      void this.#fail(turn, translate(result.error));
      return;
    }
    try {
      turn.onProgress?.(turn.done, turn.tokens.length);
    } catch (error) {
      void this.#fail(turn, error);
      return;
    }
    if (turn.done === turn.tokens.length) {
      turn.settle({ token: result.token ?? -1 });
      return;
    }
    this.#waiting.unshift(turn); // the rest of the prompt, before all that came later
  }

  /** Takes back the parts of the prompt that were done. */
  async #fail(turn: Waiting, error: unknown): Promise<void> {
    try {
      if (turn.done > 0)
        await awaitNative(() => turn.session.truncate(turn.session.kvLen - turn.done));
    } catch {
      // disposed, or the device is lost: there is nothing to take back
    }
    turn.settle({ error });
  }
}
