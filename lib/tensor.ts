import type { NativeTensor } from './addon';
import { type Device, nativeDevice } from './device';
import { awaitNative, callNative, invalid } from './errors';

/** Element types. f8e4m3 is the OCP format: no infinity, largest value 448. */
export type DType = 'f32' | 'f16' | 'bf16' | 'i32' | 'i8' | 'f8e4m3';

/** A typed array that a tensor is made of or read into: see `Device.tensor` for which goes with which type. */
export type TensorData = Float32Array | Uint16Array | Uint8Array | Int8Array | Int32Array;

export let nativeTensor: (tensor: Tensor) => NativeTensor;
export let isTensor: (value: unknown) => value is Tensor;
export let createTensor: (
  device: Device,
  dtype: DType,
  shape: readonly number[],
  data?: TensorData | null,
) => Tensor;

/**
 * An array in a device's memory, row-major, the last axis contiguous. Made by {@link Device.tensor} and by {@link kernels}. Use
 * after `dispose` is ERR_DISPOSED.
 */
export class Tensor implements Disposable {
  /** Where it lies. */
  readonly device: Device;
  /** Type of the elements. */
  readonly dtype: DType;
  /** Sizes of the axes, from the outermost; frozen. */
  readonly shape: readonly number[];
  /** Bytes: elements times element size. */
  readonly byteLength: number;
  readonly #native: NativeTensor;

  static {
    nativeTensor = (tensor) => tensor.#native;
    isTensor = (value): value is Tensor =>
      typeof value === 'object' && value !== null && #native in value;
    createTensor = (device, dtype, shape, data) => new Tensor(device, dtype, shape, data);
  }

  private constructor(
    device: Device,
    dtype: DType,
    shape: readonly number[],
    data?: TensorData | null,
  ) {
    if (!Array.isArray(shape)) throw invalid('shape', 'an array of integers', shape);
    this.device = device;
    this.dtype = dtype;
    this.shape = Object.freeze([...shape]);
    this.#native = callNative(() => nativeDevice(device).tensor(dtype, [...shape], data));
    this.byteLength = this.#native.byteLength;
  }

  /**
   * All elements as float32, whatever the type, row-major, as they are after the calls made before. Rejects with what a
   * kernel found wrong meanwhile (ERR_INVALID_ARGUMENT), ERR_DEVICE_UNAVAILABLE where the device is lost, ERR_DISPOSED.
   */
  async read(): Promise<Float32Array> {
    const out = new Float32Array(this.shape.reduce((product, size) => product * size, 1));
    await this.readInto(out);
    return out;
  }

  /**
   * Fills a typed array with all elements: a Float32Array (converted), or the raw typed array of the type. It is written
   * just before the promise resolves. Rejects as `read` does, and with ERR_INVALID_ARGUMENT for another type or length, or
   * where the array is detached meanwhile.
   */
  async readInto(array: TensorData): Promise<void> {
    return awaitNative(() => this.#native.readInto(array));
  }

  /** Replaces all elements; `array` is as for `Device.tensor`, and copied before the call returns. ERR_INVALID_ARGUMENT, ERR_DISPOSED. */
  async write(array: TensorData): Promise<void> {
    return awaitNative(() => this.#native.write(array));
  }

  /** Frees the memory once the calls that use it are done. Again: does nothing. */
  dispose(): void {
    this.#native.dispose();
  }

  /** `dispose`, for `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
