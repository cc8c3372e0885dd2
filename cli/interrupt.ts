/** The exit status after Ctrl-C: 128 + SIGINT. */
export const INTERRUPTED = 130;

/**
 * Calls `work` with a signal that Ctrl-C aborts. A second Ctrl-C ends the process. Resolves to the
 * exit status: 0, or 130 after Ctrl-C.
 */
export async function interruptible(work: (signal: AbortSignal) => Promise<void>): Promise<number> {
  const interrupt = new AbortController();
  const onInterrupt = () => {
    if (interrupt.signal.aborted) process.exit(INTERRUPTED);
    interrupt.abort();
  };
  process.on('SIGINT', onInterrupt);
  try {
    await work(interrupt.signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ABORT_ERR') throw error;
    if (interrupt.signal.aborted) process.stderr.write('\n'); // after the ^C that the terminal printed
  } finally {
    process.off('SIGINT', onInterrupt);
  }
  return interrupt.signal.aborted ? INTERRUPTED : 0;
}
