import { addon, type NativeCancel } from './addon';
import { awaitNative, callNative, DiffqkvError, invalid } from './errors';

type Signals = AbortSignal | undefined | readonly (AbortSignal | undefined)[];

/** Throws ABORT_ERR where the signal has fired, and ERR_INVALID_ARGUMENT where it is no AbortSignal. */
export function throwIfAborted(signals: Signals): void {
  for (const signal of listOf(signals)) {
    if (signal.aborted)
      throw new DiffqkvError('ABORT_ERR', 'the signal was aborted before the call');
  }
}

/**
 * Runs a native call that ends early, with ABORT_ERR, when one of the signals fires. Where one has fired already, the
 * call is not made. Listeners are gone when the promise settles.
 */
export async function withCancel<T>(
  signals: Signals,
  call: (cancel: NativeCancel | undefined) => Promise<T>,
): Promise<T> {
  throwIfAborted(signals);
  const list = listOf(signals);
  if (list.length === 0) return awaitNative(() => call(undefined));
  const cancel = callNative(() => addon().createCancel());
  const onAbort = () => cancel.cancel();
  for (const signal of list) signal.addEventListener('abort', onAbort);
  try {
    return await awaitNative(() => call(cancel));
  } finally {
    for (const signal of list) signal.removeEventListener('abort', onAbort);
  }
}

function listOf(signals: Signals): AbortSignal[] {
  const list = Array.isArray(signals) ? signals : [signals];
  return list.filter((signal): signal is AbortSignal => {
    // By its shape: a signal may come from another realm.
    if (signal === undefined || typeof signal?.addEventListener === 'function')
      return signal !== undefined;
    throw invalid('signal', 'an AbortSignal', signal);
  });
}
