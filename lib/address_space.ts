import { readFileSync } from 'node:fs';
import { DiffqkvError } from './errors';

const PAGE_BYTES = 4096; // at least; larger pages make the result too large

/**
 * Bytes of address space that this process may still use (ulimit -v). Infinity without a limit, or
 * on a system that does not have /proc.
 */
export function addressSpaceLeft(): number {
  try {
    const limits = readFileSync('/proc/self/limits', 'latin1');
    const limit = /^Max address space +(\d+)/m.exec(limits)?.[1];
    if (limit === undefined) return Number.POSITIVE_INFINITY;
    const pages = Number(readFileSync('/proc/self/statm', 'latin1').split(' ')[0]);
    return Number(limit) - pages * PAGE_BYTES;
  } catch {
    return Number.POSITIVE_INFINITY;
  }
}

const THREAD_BYTES = 64 * 2 ** 20;

/**
 * Throws ERR_OUT_OF_MEMORY if there is no address space for a thread, because V8 ends the process if
 * it cannot reserve that. `user` says what the thread is for.
 */
export function checkThreadSpace(user: string): void {
  const left = addressSpaceLeft();
  if (left >= THREAD_BYTES) return;
  throw new DiffqkvError(
    'ERR_OUT_OF_MEMORY',
    `the address space has ${left} bytes left, and a thread for ${user} needs ` +
      `${THREAD_BYTES}: raise the limit (ulimit -v)`,
  );
}
