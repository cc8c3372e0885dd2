import { addon, type NativeCancel } from './addon';
import { aborted, awaitNative, callNative, invalid } from './errors';

/** What {@link onAbort} calls for one signal. */
interface Subscription {
  callbacks: Set<() => void>;
  listener(): void;
}

const subscriptions = new WeakMap<AbortSignal, Subscription>();

/**
 * Calls `callback` when `signal` is aborted, unless the returned function is called first. Each
 * signal gets one listener, however many callbacks it has: node warns about more than ten. The
 * listener is removed with the last callback. Throws ERR_INVALID_ARGUMENT if `signal` is not an
 * AbortSignal.
 */
export function onAbort(signal: AbortSignal | undefined, callback: () => void): () => void {
  if (signal === undefined) return () => {};
  const { callbacks } = subscriptions.get(signal) ?? subscribe(signal);
  const entry = () => callback(); // distinct for each call
  callbacks.add(entry);
  return () => {
    if (callbacks.delete(entry) && callbacks.size === 0) unsubscribe(signal);
  };
}

function subscribe(signal: AbortSignal): Subscription {
  const callbacks = new Set<() => void>();
  const listener = () => {
    for (const callback of [...callbacks]) callback();
  };
  withSignal(signal, () => signal.addEventListener('abort', listener));
  const subscription = { callbacks, listener };
  subscriptions.set(signal, subscription);
  return subscription;
}

function unsubscribe(signal: AbortSignal): void {
  const subscription = subscriptions.get(signal) as Subscription;
  subscriptions.delete(signal);
  withSignal(signal, () => signal.removeEventListener('abort', subscription.listener));
}

/**
 * Whether the signal is aborted. Throws ERR_INVALID_ARGUMENT if `signal` is neither undefined nor an
 * AbortSignal.
 */
export function isAborted(signal: AbortSignal | undefined): boolean {
  if (signal === undefined) return false;
  return withSignal(signal, () => {
    // Not instanceof: a signal may come from another realm.
    if (typeof signal.addEventListener !== 'function') throw new TypeError('not an AbortSignal');
    return signal.aborted === true;
  });
}

/** Like {@link isAborted}, but throws ABORT_ERR if the signal is aborted. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (isAborted(signal)) throw aborted('before the call');
}

/**
 * Runs a native call that rejects early, with ABORT_ERR, when the signal is aborted. If it is
 * aborted already, does not make the call. Removes its listener when the promise settles.
 */
export async function withCancel<T>(
  signal: AbortSignal | undefined,
  call: (cancel: NativeCancel | undefined) => Promise<T>,
): Promise<T> {
  throwIfAborted(signal);
  if (signal === undefined) return awaitNative(() => call(undefined));
  const cancel = callNative(() => addon().createCancel());
  const stopListening = onAbort(signal, () => cancel.cancel());
  try {
    return await awaitNative(() => call(cancel));
  } finally {
    stopListening();
  }
}

/** Calls `use`. Whatever it throws means that the object is no AbortSignal. */
function withSignal<T>(signal: AbortSignal, use: () => T): T {
  try {
    return use();
  } catch {
    throw invalid('signal', 'an AbortSignal', signal);
  }
}
