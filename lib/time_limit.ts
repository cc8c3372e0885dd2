import { type Context, createContext, Script } from 'node:vm';
import { addon } from './addon';
import { callNative, DiffqkvError } from './errors';

// Only a script of node:vm can be stopped while it runs, so `work` is called from one.
let context: (Context & { work?: () => unknown }) | undefined;
const script = new Script('work()');

/**
 * Runs a regular expression of a checkpoint. It may never end, and it blocks the event loop. Throws ERR_INVALID_CHECKPOINT if it takes more than
 * `milliseconds`; `what` is the subject of the message. Costs about 0.2 ms.
 *
 * Node measures the time on another thread, and aborts the process if it cannot start one. So this
 * first checks that a thread can be started, and throws ERR_OUT_OF_MEMORY if not.
 */
export function withTimeLimit<T>(what: string, milliseconds: number, work: () => T): T {
  callNative(() => addon().demandThread());
  context ??= createContext({});
  const outer = context.work; // calls may be nested
  context.work = work;
  try {
    return script.runInContext(context, { timeout: milliseconds }) as T;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_SCRIPT_EXECUTION_TIMEOUT') throw error;
    throw new DiffqkvError(
      'ERR_INVALID_CHECKPOINT',
      `${what} was stopped after ${milliseconds / 1000} s, the time limit`,
    );
  } finally {
    context.work = outer;
  }
}
