/**
 * Escapes control characters, by default all, as `\x1b`. Messages quote files that others have
 * written, and a terminal executes control characters.
 */
export function escapeControls(text: string, pattern = /\p{Cc}/gu): string {
  return text.replace(pattern, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, '0')}`);
}

/** The codes of all errors that this package creates. */
export type ErrorCode =
  | 'ERR_INVALID_ARGUMENT'
  | 'ERR_DEVICE_UNAVAILABLE'
  | 'ERR_OUT_OF_MEMORY'
  | 'ERR_INVALID_CHECKPOINT'
  | 'ERR_UNSUPPORTED_MODEL'
  | 'ERR_KV_CACHE_FULL'
  | 'ERR_SESSION_FILE'
  | 'ERR_DISPOSED'
  | 'ERR_MODEL_NOT_FOUND'
  | 'ERR_ACCESS_DENIED'
  | 'ERR_NETWORK'
  | 'ERR_INVALID_DOWNLOAD'
  | 'ERR_CACHE'
  | 'ABORT_ERR'
  | 'ERR_INTERNAL';

/**
 * The error that this package throws and rejects with. The message states the value, the limit and
 * the remedy. The objects of a failed call stay usable.
 *
 * | code | when |
 * |---|---|
 * | ERR_INVALID_ARGUMENT | wrong type, shape, dtype or head count, a token out of range, NaN |
 * | ERR_DEVICE_UNAVAILABLE | unknown or lost device, no usable driver, no kernel for the GPU |
 * | ERR_OUT_OF_MEMORY | an allocation failed |
 * | ERR_INVALID_CHECKPOINT | a file is missing or malformed, a tensor has the wrong shape |
 * | ERR_UNSUPPORTED_MODEL | an unsupported architecture, format, dtype or feature; NaN logits |
 * | ERR_KV_CACHE_FULL | maxKvLen or the model's kvCacheBytes is exceeded; the cache is unchanged |
 * | ERR_SESSION_FILE | a session's file cannot be written or read, was changed, or is of another model |
 * | ERR_DISPOSED | use after dispose |
 * | ERR_MODEL_NOT_FOUND | no such model or revision on the hub, or offline and not downloaded |
 * | ERR_ACCESS_DENIED | the hub requires another access token, or that its license is accepted |
 * | ERR_NETWORK | the hub cannot be reached, or answers with an error, also after retries |
 * | ERR_INVALID_DOWNLOAD | the hub's answer is malformed, or a file has another hash or size |
 * | ERR_CACHE | the cache of downloads cannot be read or written, or its disk is full |
 * | ABORT_ERR | the signal was aborted; `name` is 'AbortError' |
 * | ERR_INTERNAL | a bug in this package: please report it |
 */
export class DiffqkvError extends Error {
  /** One of the codes in the table above. Codes are stable; messages are not. */
  readonly code: ErrorCode;

  /**
   * Escapes control characters of the message other than newline and tab. `name` is 'AbortError' if
   * the code is ABORT_ERR, else 'DiffqkvError'.
   */
  constructor(code: ErrorCode, message: string) {
    super(escapeControls(message, /[^\P{Cc}\n\t]/gu));
    this.code = code;
    this.name = code === 'ABORT_ERR' ? 'AbortError' : 'DiffqkvError';
  }
}

/** The codes that the addon uses. */
const codes: ReadonlySet<string> = new Set<ErrorCode>([
  'ERR_INVALID_ARGUMENT',
  'ERR_DEVICE_UNAVAILABLE',
  'ERR_OUT_OF_MEMORY',
  'ERR_INVALID_CHECKPOINT',
  'ERR_UNSUPPORTED_MODEL',
  'ERR_KV_CACHE_FULL',
  'ERR_DISPOSED',
  'ABORT_ERR',
  'ERR_INTERNAL',
]);

/** ERR_INVALID_ARGUMENT: "`name` must be `expected`, not `value`". */
export function invalid(name: string, expected: string, value: unknown): DiffqkvError {
  return invalidArgument(`${name} must be ${expected}, not ${show(value)}`);
}

/** ERR_INVALID_ARGUMENT for a message that {@link invalid} cannot express. */
export function invalidArgument(message: string): DiffqkvError {
  return new DiffqkvError('ERR_INVALID_ARGUMENT', message);
}

/** ERR_INVALID_CHECKPOINT: "`path`: `problem`". */
export function invalidCheckpoint(path: string, problem: string): DiffqkvError {
  return new DiffqkvError('ERR_INVALID_CHECKPOINT', `${path}: ${problem}`);
}

/** ERR_UNSUPPORTED_MODEL: "`path`: `problem`". */
export function unsupportedModel(path: string, problem: string): DiffqkvError {
  return new DiffqkvError('ERR_UNSUPPORTED_MODEL', `${path}: ${problem}`);
}

/** ABORT_ERR. `when` completes "the signal was aborted ...". */
export function aborted(when: string): DiffqkvError {
  return new DiffqkvError('ABORT_ERR', `the signal was aborted ${when}`);
}

/**
 * Converts an error of the addon to a DiffqkvError. The addon creates its errors where no
 * JavaScript runs, so they have no stack, and they belong to the realm that loaded the addon.
 * Returns any other value unchanged.
 */
export function translate(error: unknown): unknown {
  if (error instanceof DiffqkvError || typeof error !== 'object' || error === null) return error;
  const { code, message } = error as { code?: unknown; message?: unknown };
  // node-addon-api throws this one itself, without a code.
  if (code === undefined && message === 'std::bad_alloc') {
    return new DiffqkvError(
      'ERR_OUT_OF_MEMORY',
      'the process is out of host memory: dispose of objects that are not needed',
    );
  }
  return typeof code === 'string' && codes.has(code)
    ? new DiffqkvError(code as ErrorCode, String(message))
    : error;
}

/** Calls the addon and translates what it throws. */
export function callNative<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw translate(error);
  }
}

/** Like {@link callNative} for a call that returns a promise. A synchronous error rejects too. */
export async function awaitNative<T>(call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw translate(error);
  }
}

function show(value: unknown): string {
  if (typeof value === 'string') {
    return JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}...` : value);
  }
  if (typeof value === 'function') return 'a function';
  if (typeof value === 'bigint') return `${value}n`;
  if (typeof value !== 'object' || value === null) return String(value);
  try {
    if (Array.isArray(value)) return `an array of ${value.length}`;
    return Object.prototype.toString.call(value).slice(1, -1);
  } catch {
    return 'an object'; // a getter or a Proxy threw
  }
}

/** Throws ERR_INVALID_ARGUMENT unless `value` is an object (not null, an array or a function). */
export function checkObject(name: string, value: unknown): void {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw invalid(name, 'an object', value);
  }
}

/** Throws ERR_INVALID_ARGUMENT if `value` is null. An option is omitted by undefined only. */
export function checkNotNull(name: string, expected: string, value: unknown): void {
  if (value === null) throw invalid(name, expected, value);
}

/** Throws ERR_INVALID_ARGUMENT unless `value` is a boolean. */
export function checkBoolean(name: string, value: unknown): void {
  if (typeof value !== 'boolean') throw invalid(name, 'a boolean', value);
}

/** Throws ERR_INVALID_ARGUMENT unless `value` is a group size of quantized weights. */
export function checkGroupSize(name: string, value: unknown): void {
  if (value !== 32 && value !== 64 && value !== 128) throw invalid(name, '32, 64 or 128', value);
}

/** Throws ERR_INVALID_ARGUMENT unless `value` is undefined or a function. */
export function checkCallback(name: string, value: unknown): void {
  if (value !== undefined && typeof value !== 'function') throw invalid(name, 'a function', value);
}

/** Throws ERR_INVALID_ARGUMENT unless `value` is an integer in [min, max]. */
export function checkInteger(
  name: string,
  value: unknown,
  min: number,
  max: number = Number.MAX_SAFE_INTEGER,
): void {
  if (Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max) return;
  const range = max === Number.MAX_SAFE_INTEGER ? `of at least ${min}` : `from ${min} to ${max}`;
  throw invalid(name, `an integer ${range}`, value);
}
