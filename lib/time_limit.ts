import { type Context, createContext, Script } from 'node:vm';
import { addon } from './addon';
import { callNative, DiffqkvError } from './errors';

// A function that runs on, in a template or a regular expression, can be stopped from a script of node:vm alone.
let context: (Context & { work?: () => unknown }) | undefined;
const script = new Script('work()');

/**
 * Runs what a checkpoint has programmed: its chat template, its patterns. Throws ERR_INVALID_CHECKPOINT, with `what` in the
 * message, where that takes more than `milliseconds`: it may never end, and the event loop stands still meanwhile. Costs some
 * 0.2 ms. Node watches the time on a thread, and ends the process where it cannot have one: so it is tried beforehand, and ERR_OUT_OF_MEMORY.
 */
export function withTimeLimit<T>(what: string, milliseconds: number, work: () => T): T {
  callNative(() => addon().demandThread());
  context ??= createContext({});
  const before = context.work;
  context.work = work;
  try {
    return script.runInContext(context, { timeout: milliseconds }) as T;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_SCRIPT_EXECUTION_TIMEOUT') throw error;
    throw new DiffqkvError(
      'ERR_INVALID_CHECKPOINT',
      `${what} takes more than ${milliseconds / 1000} s, and was stopped`,
    );
  } finally {
    context.work = before;
  }
}
