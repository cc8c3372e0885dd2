import type { NativeTensor } from './addon';
import type { Device } from './device';
import { awaitNative, callNative, invalid } from './errors';
import { native } from './internal';
import { checkReceiver } from './receiver';

/** Element types. f8e4m3 is the OCP format: no infinity, largest value 448. */
export type DType = 'f32' | 'f16' | 'bf16' | 'i32' | 'i8' | 'f8e4m3';

/**
 * A typed array to create a tensor from or to read one into. {@link Device.tensor} lists the typed
 * array of each dtype. The last type is a Float16Array, which Node 24 and newer have.
 */
export type TensorData =
  | Float32Array
  | Uint16Array
  | Uint8Array
  | Int8Array
  | Int32Array
  | Float16ArrayLike;

/** A Float16Array, whose type is not part of TypeScript's library for Node 20. */
export interface Float16ArrayLike extends ArrayBufferView {
  /** The name of the type. */
  readonly [Symbol.toStringTag]: 'Float16Array';
}

/**
 * An array in a device's memory, row-major, with the last axis contiguous. Created by
 * {@link Device.tensor} and by {@link kernels}. Methods throw or reject with ERR_DISPOSED after
 * `dispose`.
 */
export class Tensor implements Disposable {
  /** The device whose memory the tensor is in. */
  readonly device: Device;
  /** Type of the elements. */
  readonly dtype: DType;
  /** Sizes of the axes, outermost first. Frozen. */
  readonly shape: readonly number[];
  /** Size in bytes: number of elements times element size. */
  readonly byteLength: number;
  readonly #native: NativeTensor;

  private constructor(
    device: Device,
    dtype: DType,
    shape: readonly number[],
    data: TensorData | null | undefined,
  ) {
    if (!Array.isArray(shape)) throw invalid('shape', 'an array of integers', shape);
    this.device = device;
    this.dtype = dtype;
    this.shape = Object.freeze([...shape]);
    this.#native = callNative(() =>
      device[native].tensor({ dtype, shape: [...shape], data: data && nativeArray(dtype, data) }),
    );
    this.byteLength = this.#native.byteLength;
  }

  /**
   * `data`: undefined for zeros, null to leave the memory uninitialized.
   * @internal
   */
  static create(
    device: Device,
    dtype: DType,
    shape: readonly number[],
    data?: TensorData | null,
  ): Tensor {
    return new Tensor(device, dtype, shape, data);
  }

  /**
   * True only for an object that this class created. A Proxy of a tensor, or another object with
   * this prototype, has no native tensor.
   * @internal
   */
  static [Symbol.hasInstance](value: unknown): value is Tensor {
    return typeof value === 'object' && value !== null && #native in value;
  }

  /** @internal */
  get [native](): NativeTensor {
    return this.#native;
  }

  /**
   * Resolves to all elements in row-major order, converted to float32, as they are after all
   * earlier calls. Rejects with ERR_INVALID_ARGUMENT if a kernel found an invalid value in device
   * memory, ERR_DEVICE_UNAVAILABLE if the device is lost, ERR_DISPOSED.
   */
  async read(): Promise<Float32Array> {
    const out = new Float32Array(this.shape.reduce((product, size) => product * size, 1));
    await this.readInto(out);
    return out;
  }

  /**
   * Copies all elements into a typed array of the same length: a Float32Array (elements are
   * converted) or the typed array of the dtype. The array is written just before the promise
   * resolves. Rejects like `read`, and with ERR_INVALID_ARGUMENT if the array has another type or
   * length or becomes detached before then.
   */
  async readInto(array: TensorData): Promise<void> {
    return awaitNative(() => this.#native.readInto({ array: nativeArray(this.dtype, array) }));
  }

  /**
   * Replaces all elements. `array` has the type and length that `Device.tensor` requires, and is
   * copied before the call returns. Rejects with ERR_INVALID_ARGUMENT or ERR_DISPOSED.
   */
  async write(array: TensorData): Promise<void> {
    return awaitNative(() => this.#native.write({ array: nativeArray(this.dtype, array) }));
  }

  /** Frees the memory after the calls that use it are done. A second call does nothing. */
  dispose(): void {
    this.#native.dispose();
  }

  /** Calls `dispose`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

checkReceiver(Tensor, 'a tensor');

/** The addon does not know Float16Array: it gets the same bits as a Uint16Array. */
function nativeArray(dtype: DType, array: TensorData): ArrayBufferView {
  if (!ArrayBuffer.isView(array) || array[Symbol.toStringTag as never] !== 'Float16Array')
    return array;
  if (dtype !== 'f16') throw invalid('the array', `the typed array of ${dtype}`, array);
  return new Uint16Array(array.buffer, array.byteOffset, array.byteLength / 2);
}
