/** The codes of all errors that this package makes. */
export type ErrorCode =
  | 'ERR_INVALID_ARGUMENT'
  | 'ERR_DEVICE_UNAVAILABLE'
  | 'ERR_OUT_OF_MEMORY'
  | 'ERR_INVALID_CHECKPOINT'
  | 'ERR_UNSUPPORTED_MODEL'
  | 'ERR_KV_CACHE_FULL'
  | 'ERR_DISPOSED'
  | 'ABORT_ERR'
  | 'ERR_INTERNAL';

/**
 * What this package throws and rejects with. The message gives the value, the limit and the way out; the call that
 * failed leaves its objects usable.
 *
 * | code | when |
 * |---|---|
 * | ERR_INVALID_ARGUMENT | wrong type, shape, dtype, head counts, token outside the vocabulary, NaN |
 * | ERR_DEVICE_UNAVAILABLE | no such device, no driver, driver too old, no kernel for this GPU |
 * | ERR_OUT_OF_MEMORY | an allocation failed; the device stays usable |
 * | ERR_INVALID_CHECKPOINT | a missing, truncated or malformed file, or a tensor that does not fit |
 * | ERR_UNSUPPORTED_MODEL | another architecture, dtype or feature |
 * | ERR_KV_CACHE_FULL | prefill or decode past maxKvLen, or past the kvCacheBytes of the model; the cache is as before |
 * | ERR_DISPOSED | use after dispose |
 * | ABORT_ERR | the signal fired; `name` is 'AbortError' |
 * | ERR_INTERNAL | a defect of this package: please report it |
 */
export class DiffqkvError extends Error {
  /** Which of the table above; stable, where messages are not. */
  readonly code: ErrorCode;

  /** `name` becomes 'AbortError' for ABORT_ERR, else 'DiffqkvError'. */
  constructor(code: ErrorCode, message: string) {
    super(message);
    this.code = code;
    this.name = code === 'ABORT_ERR' ? 'AbortError' : 'DiffqkvError';
  }
}

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

// The addon's errors are made where no JavaScript runs, so they have no stack, and in the realm that loaded the addon.
export function translate(error: unknown): unknown {
  if (error instanceof DiffqkvError || typeof error !== 'object' || error === null) return error;
  const { code, message } = error as { code?: unknown; message?: unknown };
  // Of node-addon-api itself, which has no codes.
  if (code === undefined && message === 'std::bad_alloc')
    return new DiffqkvError(
      'ERR_OUT_OF_MEMORY',
      'the process is out of host memory; free what is not needed',
    );
  return typeof code === 'string' && codes.has(code)
    ? new DiffqkvError(code as ErrorCode, String(message))
    : error;
}

/** Calls the addon; its errors come out as DiffqkvError. */
export function callNative<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw translate(error);
  }
}

/** The same for calls that return a promise; everything that fails rejects. */
export async function awaitNative<T>(call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw translate(error);
  }
}

/** ERR_INVALID_ARGUMENT: "`name` must be `wanted`, not ...". */
export function invalid(name: string, wanted: string, value: unknown): DiffqkvError {
  return new DiffqkvError('ERR_INVALID_ARGUMENT', `${name} must be ${wanted}, not ${show(value)}`);
}

function show(value: unknown): string {
  if (typeof value === 'string')
    return JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}...` : value);
  if (typeof value === 'function') return 'a function';
  if (typeof value !== 'object' || value === null)
    return typeof value === 'bigint' ? `${value}n` : String(value);
  return Array.isArray(value)
    ? `an array of ${value.length}`
    : Object.prototype.toString.call(value).slice(1, -1);
}

/** Throws ERR_INVALID_ARGUMENT unless `value` is an object (not null, an array or a function). */
export function checkObject(name: string, value: unknown): void {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw invalid(name, 'an object', value);
}

/** Throws ERR_INVALID_ARGUMENT where `value` is null: to leave an option out is undefined. */
export function refuseNull(name: string, wanted: string, value: unknown): void {
  if (value === null) throw invalid(name, wanted, value);
}

/** Throws ERR_INVALID_ARGUMENT unless `value` is a boolean. */
export function checkBoolean(name: string, value: unknown): void {
  if (typeof value !== 'boolean') throw invalid(name, 'a boolean', value);
}

/** Throws ERR_INVALID_ARGUMENT unless `value` is an integer in [min, max]. */
export function checkInteger(
  name: string,
  value: unknown,
  min: number,
  max: number = Number.MAX_SAFE_INTEGER,
): void {
  if (!Number.isSafeInteger(value) || (value as number) < min || (value as number) > max) {
    throw invalid(
      name,
      max === Number.MAX_SAFE_INTEGER
        ? `an integer of at least ${min}`
        : `an integer from ${min} to ${max}`,
      value,
    );
  }
}
