import type { NativeTensor } from './addon';
import { type Device, nativeDevice } from './device';
import { awaitNative, callNative, invalid } from './errors';

/** Element types. f8e4m3 is the OCP format: no infinity, largest value 448. */
export type DType = 'f32' | 'f16' | 'bf16' | 'i32' | 'i8' | 'f8e4m3';

/** A typed array that a tensor is made of or read into: see `Device.tensor` for which goes with which type. */
export type TensorData = Float32Array | Uint16Array | Uint8Array | Int8Array | Int32Array;

export let nativeTensor: (tensor: Tensor) => NativeTensor;
export let isTensor: (value: unknown) => value is Tensor;
export let createTensor: (device: Device, dtype: DType, shape: readonly number[], data?: TensorData | null) => Tensor;

/** An array in a device's memory, row-major, the last axis contiguous. Made by `device.tensor` and by the kernels. */
export class Tensor implements Disposable {
  readonly device: Device;
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Elements times element size. */
  readonly byteLength: number;
  readonly #native: NativeTensor;

  static {
    nativeTensor = (tensor) => tensor.#native;
    isTensor = (value): value is Tensor => typeof value === 'object' && value !== null && #native in value;
    createTensor = (device, dtype, shape, data) => new Tensor(device, dtype, shape, data);
  }

  private constructor(device: Device, dtype: DType, shape: readonly number[], data?: TensorData | null) {
    if (!Array.isArray(shape)) throw invalid('shape', 'an array of integers', shape);
    this.device = device;
    this.dtype = dtype;
    this.shape = Object.freeze([...shape]);
    this.#native = callNative(() => nativeDevice(device).tensor(dtype, [...shape], data));
    this.byteLength = this.#native.byteLength;
  }

  /** All elements as float32, whatever the type, as they are after the calls made before. */
  async read(): Promise<Float32Array> {
    const out = new Float32Array(this.shape.reduce((product, size) => product * size, 1));
    await this.readInto(out);
    return out;
  }

  /**
   * Fills a typed array with all elements: a Float32Array (converted), or the raw typed array of the type. It is written
   * just before the promise resolves. ERR_INVALID_ARGUMENT for another type or length, or where it is detached meanwhile.
   */
  async readInto(array: TensorData): Promise<void> {
    return awaitNative(() => this.#native.readInto(array));
  }

  /** Replaces all elements; `array` is as for `Device.tensor`, and copied before the call returns. */
  async write(array: TensorData): Promise<void> {
    return awaitNative(() => this.#native.write(array));
  }

  /** Frees the memory once the calls that use it are done. Again: does nothing. */
  dispose(): void {
    this.#native.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
