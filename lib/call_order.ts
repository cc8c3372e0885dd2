import { onAbort } from './abort';
import { aborted, translate } from './errors';

interface Waiting {
  kind: 'call' | 'generation';
  start(): void;
}

/**
 * Keeps the calls on a session in the order in which they were made. The device queues native
 * calls, so several may be under way. A generation makes many native calls and uses the session by
 * itself: it starts when the calls before it are done, and later calls start after its end.
 */
export class CallOrder {
  readonly #waiting: Waiting[] = [];
  #isGenerating = false;
  #numCalls = 0; // native calls that are not done

  /**
   * Makes a native call when its turn comes: at once, unless a generation runs or waits. Translates
   * its error. Rejects with ABORT_ERR if the signal is aborted while the call waits.
   */
  call<T>(work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    if (!this.#isGenerating && this.#waiting.length === 0) return this.#make(work);
    return new Promise((resolve, reject) => {
      this.#enqueue('call', signal, {
        // Makes the call in this very step, so that no later call precedes it.
        start: () => resolve(this.#make(work)),
        abort: () => reject(aborted('before the call began')),
      });
    });
  }

  /**
   * Resolves when a generation may use the session, to a function that ends its turn. If the signal
   * is aborted first, resolves at once: the generation must not use the session then.
   */
  generation(signal: AbortSignal): Promise<() => void> {
    if (signal.aborted) return Promise.resolve(() => {});
    return new Promise((resolve) => {
      this.#enqueue('generation', signal, {
        start: () => {
          this.#isGenerating = true;
          resolve(() => {
            this.#isGenerating = false;
            this.#advance();
          });
        },
        abort: () => resolve(() => {}),
      });
    });
  }

  async #make<T>(work: () => Promise<T>): Promise<T> {
    this.#numCalls++;
    try {
      return await work();
    } catch (error) {
      throw translate(error);
    } finally {
      this.#numCalls--;
      this.#advance();
    }
  }

  #enqueue(
    kind: Waiting['kind'],
    signal: AbortSignal | undefined,
    { start, abort }: { start(): void; abort(): void },
  ): void {
    const stopListening = onAbort(signal, () => {
      stopListening();
      this.#waiting.splice(this.#waiting.indexOf(entry), 1);
      abort();
      this.#advance();
    });
    const entry: Waiting = {
      kind,
      start: () => {
        stopListening();
        start();
      },
    };
    this.#waiting.push(entry);
    this.#advance();
  }

  /** Starts what may start now. */
  #advance(): void {
    while (!this.#isGenerating) {
      const next = this.#waiting[0];
      if (next === undefined || (next.kind === 'generation' && this.#numCalls > 0)) return;
      this.#waiting.shift();
      next.start();
    }
  }
}
