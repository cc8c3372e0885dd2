// The type of what the tests' module exports besides NativeAddon (module.cc).

import type { Counting } from '../../bench/counters';
import { addon } from '../../lib/addon';

export interface Emulation extends Counting {
  /**
   * Makes calls of the emulated CUDA runtime fail with `status`, a cudaError_t: those of the function `call` from the
   * `first` one on, counted from 1, `times` in all. '*' is any function; 'kernel' fails while a kernel runs. Replaces the
   * fault before it, and returns how often that one's call has come since it was set.
   */
  fault(call: string, first: number, times: number, status: number): number;
  /**
   * Runs attention with windows over paged caches in which the pages before all windows are null pointers. Returns what
   * differs from contiguous caches, or ''.
   */
  checkWindowPages(device: string): string;
  /**
   * The limits of this process by the control groups of the files below `root`/proc and `root`/sys: bytes of memory, and
   * CPUs. Null: no limit.
   */
  controlGroupLimits(root: string): { total: number | null; available: number | null; cpus: number | null };
}

export const emulation = (): Emulation => (addon() as unknown as { emulation: Emulation }).emulation;
