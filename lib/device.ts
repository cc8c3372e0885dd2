import { addon, type NativeDevice, type NativeDeviceInfo } from './addon';
import { awaitNative, callNative, checkInteger, DiffqkvError, invalid } from './errors';
import { native } from './internal';
import { readOptions } from './options';
import { checkReceiver } from './receiver';
import { type DType, Tensor, type TensorData } from './tensor';

/** 'auto': the first usable GPU, else the CPU. 'cuda': the first usable GPU. 'cuda:N': GPU N. */
export type DeviceId = 'auto' | 'cpu' | 'cuda' | `cuda:${number}`;

/** A device of this machine, usable or not. */
export interface DeviceInfo {
  /** 'cpu', 'cuda:0', ...; 'cuda' for the one entry that says why there is no GPU. */
  id: string;
  /** Which backend runs its operators. */
  kind: 'cpu' | 'cuda';
  /** Name of the CPU or GPU as the operating system or driver reports it. */
  name: string;
  /** Whether `openDevice` can open it. */
  usable: boolean;
  /** If not usable: the cause and the remedy. */
  reason?: string;
  /** Bytes of memory; 0 if unknown. */
  totalMemory: number;
  /** Compute capability of a GPU, for example '9.0'. */
  computeCapability?: string;
  /** Further properties: SIMD level, library for linear layers, threads, driver version. */
  details: Record<string, string>;
}

/**
 * Lists all devices: the CPU first, then every GPU. If no GPU can be listed, one entry 'cuda' has
 * the reason. Throws ERR_DEVICE_UNAVAILABLE if the native module is missing or cannot be loaded.
 */
export function listDevices(): DeviceInfo[] {
  return callNative(() => addon().listDevices());
}

/**
 * An open device. Its calls run one after another, in the order in which they were made, on a
 * thread of the device: nothing computes on the event loop. Only copies and conversions to and from
 * typed arrays run on the JavaScript thread; hundreds of MB at once block it noticeably.
 */
export class Device implements Disposable {
  /** 'cpu', 'cuda:0', ... */
  readonly id: string;
  /** This device's entry of `listDevices`. */
  readonly info: DeviceInfo;
  /** Why 'auto' chose the CPU. Null if it chose a GPU or if the device was opened by another id. */
  readonly fallbackReason: string | null;
  readonly #native: NativeDevice;

  private constructor(device: NativeDevice, fallbackReason: string | null) {
    this.#native = device;
    this.info = callNative(() => device.info);
    this.id = this.info.id;
    this.fallbackReason = fallbackReason;
  }

  /** @internal */
  static async open(
    id: string,
    fallbackReason: string | null,
    options: DeviceOptions = {},
  ): Promise<Device> {
    const device = await awaitNative(() => addon().openDevice({ id, ...options }));
    return new Device(device, fallbackReason);
  }

  /**
   * True only for an object that this class created. A Proxy of a device, or another object with
   * this prototype, has no native device.
   * @internal
   */
  static [Symbol.hasInstance](value: unknown): value is Device {
    return typeof value === 'object' && value !== null && #native in value;
  }

  /** @internal */
  get [native](): NativeDevice {
    return this.#native;
  }

  /**
   * Creates a tensor of `shape` (integers of at least 0), zero-filled if `data` is omitted. `data`
   * has as many elements as the tensor, in row-major order. It is a Float32Array for any float type
   * (rounded to nearest, ties to even) or the typed array of the dtype: Uint16Array for f16 and
   * bf16, Float16Array for f16, Uint8Array for f8e4m3, Int8Array for i8, Int32Array for i32. It is
   * copied before the call returns. Throws ERR_INVALID_ARGUMENT, ERR_OUT_OF_MEMORY or ERR_DISPOSED.
   */
  tensor(dtype: DType, shape: readonly number[], data?: TensorData): Tensor {
    if (data === null) throw invalid('data', 'a typed array', data);
    return Tensor.create(this, dtype, shape, data);
  }

  /**
   * Resolves when all earlier calls are done. Rejects with ERR_INVALID_ARGUMENT if a kernel found
   * an invalid value in device memory, ERR_DEVICE_UNAVAILABLE if the device is lost, ERR_DISPOSED.
   */
  async synchronize(): Promise<void> {
    return awaitNative(() => this.#native.synchronize());
  }

  /**
   * Calls `work`, waits for its promise, and resolves to the time in milliseconds between two time
   * stamps in the device's queue, one before `work` and one after it. The clock is CUDA events on
   * a GPU and the wall clock on the CPU. Rejects with the error of `work`, and like `synchronize`.
   */
  async time(work: () => Promise<unknown> | unknown): Promise<number> {
    if (typeof work !== 'function') throw invalid('work', 'a function', work);
    const start = callNative(() => this.#native.recordEvent());
    await work();
    const stop = callNative(() => this.#native.recordEvent());
    return awaitNative(() => this.#native.elapsedMs({ start, stop }));
  }

  /**
   * Disposes of the device and of its tensors, models and sessions. Earlier calls complete; later
   * calls fail with ERR_DISPOSED. A second call does nothing.
   */
  dispose(): void {
    this.#native.dispose();
  }

  /** Calls `dispose`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

checkReceiver(Device, 'a device');

/** Options of {@link openDevice}. */
export interface DeviceOptions {
  /**
   * Number of threads of the CPU device, from 1 to 1024. Default: `OMP_NUM_THREADS`, or the CPUs of
   * the affinity mask of the process; at most the CPUs of its control group. `openDevice('auto')`
   * uses it if it opens the CPU; another device rejects it.
   */
  threads?: number;
}

/**
 * Opens a device. Rejects with ERR_DEVICE_UNAVAILABLE, and the reason, if the device does not exist
 * or cannot be used. The default 'auto' then opens the CPU instead and sets `fallbackReason`. If
 * the machine has a GPU that cannot be used, it also emits a process warning, once per reason.
 */
export async function openDevice(
  id: DeviceId = 'auto',
  options: DeviceOptions = {},
): Promise<Device> {
  if (typeof id !== 'string') throw invalid('device id', "'auto', 'cpu', 'cuda' or 'cuda:N'", id);
  const { threads } = readOptions('options', options, { threads: true });
  if (threads !== undefined) checkInteger('threads', threads, 1, MAX_THREADS);
  if (id !== 'auto') return Device.open(id, null, { threads });
  const gpus = listDevices().filter(({ kind }) => kind === 'cuda');
  const reasons = gpus.filter(({ usable }) => !usable).map(reasonOf);
  let gpuExists = gpus.some(indicatesGpu);
  for (const gpu of gpus.filter(({ usable }) => usable)) {
    try {
      return await Device.open(gpu.id, null);
    } catch (error) {
      if (!(error instanceof DiffqkvError)) throw error;
      reasons.push(`${gpu.id}: ${error.message}`);
      gpuExists = true;
    }
  }
  const reason = reasons.join('; ');
  if (gpuExists) warnOnce(reason);
  return Device.open('cpu', reason, { threads });
}

function reasonOf({ id, name, reason }: NativeDeviceInfo): string {
  return id === 'cuda' ? String(reason) : `${id} (${name}): ${reason}`;
}

// The entry 'cuda' stands for a missing GPU. If it names a driver, the driver was too old to list
// devices: assume that a GPU exists.
function indicatesGpu({ id, details }: NativeDeviceInfo): boolean {
  return id !== 'cuda' || details.driver !== undefined;
}

const MAX_THREADS = 1024;

const warned = new Set<string>();

function warnOnce(reason: string): void {
  if (warned.has(reason)) return;
  warned.add(reason);
  process.emitWarning(`using the CPU because the GPU cannot be used: ${reason}`, {
    type: 'DiffqkvWarning',
    code: 'DIFFQKV_FALLBACK',
  });
}
