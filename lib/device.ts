import { addon, type NativeDevice, type NativeDeviceInfo } from './addon';
import { awaitNative, callNative, DiffqkvError, invalid } from './errors';
import { createTensor, type DType, type Tensor, type TensorData } from './tensor';

/** 'auto': the first usable GPU, else the CPU. 'cuda': the first usable GPU. 'cuda:N': that GPU. */
export type DeviceId = 'auto' | 'cpu' | 'cuda' | `cuda:${number}`;

/** A device of this machine, usable or not. */
export interface DeviceInfo {
  /** 'cpu', 'cuda:0', ...; 'cuda' for the one entry that says why there is no GPU. */
  id: string;
  /** 'emulated' is the CUDA kernels as C++, in the tests' module alone. */
  kind: 'cpu' | 'cuda' | 'emulated';
  /** Of the CPU or GPU, as the system tells it. */
  name: string;
  /** Whether `openDevice` can open it. */
  usable: boolean;
  /** Why it is not usable, and the remedy. */
  reason?: string;
  /** Bytes; 0 where it cannot be asked. */
  totalMemory: number;
  /** Of a GPU: '9.0'. */
  computeCapability?: string;
  /** What else there is to say, in words: SIMD level, who computes the linear layers, threads, driver. */
  details: Record<string, string>;
}

/** What the kernels did that have run on `emulated`, the device of the tests' module, since `resetCounters()`. */
export interface DeviceCounters {
  /** Of global memory. Bytes that lanes of a warp share in one access count once. */
  bytesRead: number;
  /** Likewise, of global memory. */
  bytesWritten: number;
  /** Pieces of 32 bytes of global memory, read or written, for each access of a warp. */
  sectors: number;
  /** Passes over the banks of shared memory beyond those that an access needs for its bytes alone. */
  bankConflicts: number;
  /** Matrix instructions m16n8k16, each of a warp: 4096 FLOPs. */
  mmaOps: number;
}

/**
 * All devices: the CPU first, then every GPU. Where there is no usable GPU part, one entry 'cuda' says why. Throws
 * ERR_DEVICE_UNAVAILABLE where the native module is missing or does not load.
 */
export function listDevices(): DeviceInfo[] {
  return callNative(() => addon().listDevices());
}

export let nativeDevice: (device: Device) => NativeDevice;
let createDevice: (native: NativeDevice, fallbackReason: string | null) => Device;

/**
 * An open device. Calls on it run one after another on a thread of its own, in the order in which they were made;
 * nothing computes on the event loop. Copies and conversions in and out of typed arrays do run on the JS thread: hundreds
 * of MB at once will be felt. Disposing of it disposes of all that was made on it; calls made before are finished,
 * and later ones are ERR_DISPOSED.
 */
export class Device implements Disposable {
  /** 'cpu', 'cuda:0', ... */
  readonly id: string;
  /** What `listDevices` says of it. */
  readonly info: DeviceInfo;
  /** Why 'auto' took the CPU; null where it took a GPU, or where the device was asked for by id. */
  readonly fallbackReason: string | null;
  readonly #native: NativeDevice;

  static {
    nativeDevice = (device) => device.#native;
    createDevice = (native, fallbackReason) => new Device(native, fallbackReason);
  }

  private constructor(native: NativeDevice, fallbackReason: string | null) {
    this.#native = native;
    this.info = callNative(() => native.info);
    this.id = this.info.id;
    this.fallbackReason = fallbackReason;
  }

  /**
   * Makes a tensor of `shape` (integers of at least 0), zero where no `data` is given. `data` has one element for each
   * of the tensor's, row-major: a Float32Array for every float type (rounded to nearest, ties to even), or the raw typed
   * array of the type (f16 and bf16: Uint16Array, f8e4m3: Uint8Array, i8: Int8Array, i32: Int32Array). It is copied
   * before the call returns. Throws ERR_INVALID_ARGUMENT, ERR_OUT_OF_MEMORY, ERR_DISPOSED.
   */
  tensor(dtype: DType, shape: readonly number[], data?: TensorData): Tensor {
    if (data === null) throw invalid('data', 'a typed array', data);
    return createTensor(this, dtype, shape, data);
  }

  /**
   * Resolves when all calls made before are done. Rejects with what a kernel found wrong in device memory meanwhile
   * (ERR_INVALID_ARGUMENT), ERR_DEVICE_UNAVAILABLE where the device is lost, ERR_DISPOSED.
   */
  async synchronize(): Promise<void> {
    return awaitNative(() => this.#native.synchronize());
  }

  /**
   * Runs `work`, waits for its promise, and resolves to the milliseconds on the device's own clock between a time stamp
   * queued before it and one queued after it: CUDA events on a GPU, the wall clock on the CPU. What `work` throws is passed
   * on; rejects otherwise as `synchronize` does.
   */
  async time(work: () => Promise<unknown> | unknown): Promise<number> {
    if (typeof work !== 'function') throw invalid('work', 'a function', work);
    const start = callNative(() => this.#native.recordEvent());
    await work();
    const stop = callNative(() => this.#native.recordEvent());
    return awaitNative(() => this.#native.elapsedMs(start, stop));
  }

  /** Of kernels that have run (`synchronize()` first). null before the first `resetCounters()`, and on every device but `emulated`. */
  get counters(): DeviceCounters | null {
    return callNative(() => this.#native.counters());
  }

  /**
   * Sets the counters to 0. From the first time on until the device is disposed, kernels are counted, which makes them slower.
   * Those that are queued now count too: `synchronize()` first. Throws ERR_DEVICE_UNAVAILABLE on every device but `emulated`.
   */
  resetCounters(): void {
    callNative(() => this.#native.resetCounters());
  }

  /** Frees the device, its tensors, models and sessions, once the calls that were made are done. Again: does nothing. */
  dispose(): void {
    this.#native.dispose();
  }

  /** `dispose`, for `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Opens a device. Rejects with ERR_DEVICE_UNAVAILABLE where it is not there or cannot be used, and says why. 'auto' (the
 * default) takes the CPU then, gives the reason in `fallbackReason`, and warns once where there is a GPU that cannot be used.
 */
export async function openDevice(id: DeviceId = 'auto'): Promise<Device> {
  if (typeof id !== 'string') throw invalid('device id', "'auto', 'cpu', 'cuda' or 'cuda:N'", id);
  if (id !== 'auto') return createDevice(await awaitNative(() => addon().openDevice(id)), null);
  const gpus = listDevices().filter(({ kind }) => kind === 'cuda');
  const reasons = gpus.filter(({ usable }) => !usable).map(reasonOf);
  let there = gpus.some(isThere);
  for (const gpu of gpus.filter(({ usable }) => usable)) {
    try {
      return createDevice(await awaitNative(() => addon().openDevice(gpu.id)), null);
    } catch (error) {
      if (!(error instanceof DiffqkvError)) throw error;
      reasons.push(`${gpu.id}: ${error.message}`);
      there = true;
    }
  }
  const reason = reasons.join('; ');
  if (there) warnOnce(reason);
  return createDevice(await awaitNative(() => addon().openDevice('cpu')), reason);
}

function reasonOf({ id, name, reason }: NativeDeviceInfo): string {
  return id === 'cuda' ? String(reason) : `${id} (${name}): ${reason}`;
}

// A driver without a GPU to show is no GPU; one that is too old to be asked stands for a GPU.
function isThere({ id, details }: NativeDeviceInfo): boolean {
  return id !== 'cuda' || details.driver !== undefined;
}

const warned = new Set<string>();

function warnOnce(reason: string): void {
  if (warned.has(reason)) return;
  warned.add(reason);
  process.emitWarning(`the GPU is not used, the CPU is: ${reason}`, {
    type: 'DiffqkvWarning',
    code: 'DIFFQKV_FALLBACK',
  });
}
