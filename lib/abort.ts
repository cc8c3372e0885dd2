import { addon, type NativeCancel } from './addon';
import { aborted, awaitNative, callNative, invalid } from './errors';

type Signals = AbortSignal | undefined | readonly (AbortSignal | undefined)[];

/**
 * Throws ABORT_ERR if one of the signals is aborted, ERR_INVALID_ARGUMENT if one is not an
 * AbortSignal.
 */
export function throwIfAborted(signals: Signals): void {
  for (const signal of listOf(signals)) {
    if (signal.aborted) throw aborted('before the call');
  }
}

/**
 * Runs a native call that rejects early, with ABORT_ERR, when one of the signals is aborted. If one
 * is aborted already, does not make the call. Removes its listeners when the promise settles.
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
    if (signal === undefined) return false;
    // Not instanceof: a signal may come from another realm.
    if (typeof signal?.addEventListener === 'function') return true;
    throw invalid('signal', 'an AbortSignal', signal);
  });
}
