// The devices that the tests run on: the CPU, and `cuda` and `emulated` if they exist. A missing
// device shows as a skipped test, never as a passed one. DIFFQKV_TEST_DEVICES in the environment,
// e.g. `cpu,emulated`, selects devices.

import { type Device, listDevices, openDevice, type Tensor } from '../../lib/index';
import type { FloatType } from './numbers';

/**
 * True in runs with every kind of case but fewer sizes: on `emulated` in npm test, and once per
 * instruction set.
 */
export const reduced = process.env.DIFFQKV_TEST_REDUCED === '1';

/** For tests of host code that are slow on the emulated device. A reduced run on it skips them. */
export const long = reduced && process.env.DIFFQKV_TEST_DEVICES === 'emulated' ? it.skip : it;

const wanted = process.env.DIFFQKV_TEST_DEVICES?.split(',');

/** Runs `body` once per usable device. `device()` is valid inside tests and hooks. */
export function onEveryDevice(body: (device: () => Device) => void): void {
  const listed = listDevices();
  for (const kind of ['cpu', 'cuda', 'emulated'] as const) {
    if (wanted && !wanted.includes(kind)) continue;
    const ofKind = listed.filter((info) => (info.kind as string) === kind);
    const usable = ofKind.filter((info) => info.usable);
    if (usable.length === 0) {
      if (kind === 'cpu') throw new Error('the CPU device is missing');
      if (wanted) throw new Error(`DIFFQKV_TEST_DEVICES names ${kind}, which is not available: ${ofKind[0]?.reason}`);
      describe(kind, () => {
        it.skip(`SKIPPED: ${ofKind[0]?.reason ?? `no ${kind} device in this build`}`, () => {});
      });
      continue;
    }
    describe.each(usable.map((info) => info.id))('%s', (id) => {
      let opened: Device | undefined;
      beforeAll(async () => {
        opened = await openDevice(id as Parameters<typeof openDevice>[0]);
      });
      afterAll(() => opened?.dispose());
      body(() => opened as Device);
    });
  }
}

/** A tensor of NaN elements, so that a comparison detects what a kernel does not write. */
export function unwritten(device: Device, type: FloatType, shape: number[]): Tensor {
  const length = shape.reduce((product, size) => product * size, 1);
  return device.tensor(type, shape, new Float32Array(length).fill(Number.NaN));
}

/** Creates tensors for one call and disposes of them together. */
export class Tensors {
  private readonly made: Tensor[] = [];
  constructor(private readonly device: Device) {}

  make(type: FloatType | 'i32', shape: number[], data: Float32Array | Int32Array): Tensor {
    return this.keep(this.device.tensor(type, shape, data));
  }

  out(type: FloatType, shape: number[]): Tensor {
    return this.keep(unwritten(this.device, type, shape));
  }

  keep(tensor: Tensor): Tensor {
    this.made.push(tensor);
    return tensor;
  }

  dispose(): void {
    for (const tensor of this.made) tensor.dispose();
  }
}

/** Runs `work` with a set of tensors and always disposes them. */
export async function withTensors<T>(device: Device, work: (tensors: Tensors) => Promise<T>): Promise<T> {
  const tensors = new Tensors(device);
  try {
    return await work(tensors);
  } finally {
    tensors.dispose();
  }
}

/** The error that `work` throws or rejects with. Fails the test if there is none. */
export async function errorOf(work: () => unknown): Promise<Error & { code?: string }> {
  try {
    await work();
  } catch (error) {
    return error as Error & { code?: string };
  }
  throw new Error('expected an error, but there was none');
}

/**
 * The error of a call with an invalid value in device memory (a token or a length). The CPU throws
 * it in the call, a GPU at the latest when the result is read.
 */
export function errorOfRead(device: Device, work: () => Promise<Tensor>): Promise<Error & { code?: string }> {
  return errorOf(async () => {
    const result = await work();
    if (device.info.kind === 'cpu') return;
    try {
      await result.read();
    } finally {
      result.dispose();
    }
  });
}
