import { readFileSync } from 'node:fs';

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
