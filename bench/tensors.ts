// Random tensors, which are kept between cells because filling gigabytes takes longer than a measurement.
import * as fs from 'node:fs';

import type { Device, DType, Tensor } from '../lib/index';
import { availableMemory } from './machine';
import { randomBf16 } from './random';

const BYTES: Record<DType, number> = { f32: 4, f16: 2, bf16: 2, i32: 4, i8: 1, f8e4m3: 1 };
const PATTERN = 1_000_003; // prime, so that no two rows of a tensor are equal
const GPU_ROTATION = 512 * 2 ** 20; // several times the L2 cache of a GPU
const FALLBACK_CACHE = 64 * 2 ** 20;

export const bytesOf = (dtype: DType, shape: readonly number[]): number =>
  shape.reduce((product, size) => product * size, BYTES[dtype]);

/** Bytes of the CPU's last-level cache, or a common size if the system does not report it. */
export function lastLevelCache(folder = '/sys/devices/system/cpu/cpu0/cache'): number {
  try {
    const sizes = fs
      .readdirSync(folder)
      .filter((name) => name.startsWith('index'))
      .map((name) => {
        const text = fs.readFileSync(`${folder}/${name}/size`, 'utf8').trim();
        return Number.parseInt(text, 10) * (text.endsWith('M') ? 2 ** 20 : 2 ** 10);
      });
    return Math.max(FALLBACK_CACHE / 8, ...sizes.filter(Number.isFinite));
  } catch {
    return FALLBACK_CACHE;
  }
}

/** Bytes of all inputs that calls of one kind alternate between, so that none is in a cache when it is used again. */
export function rotationBytes(device: Device, quick: boolean): number {
  const { kind } = device.info;
  if (kind === 'emulated') return 0;
  return kind === 'cuda' ? GPU_ROTATION : lastLevelCache() * (quick ? 1.25 : 2);
}

/** The number of sets of inputs, of `bytes` each, that calls alternate between. */
export function rotations(bytes: number, device: Device, quick: boolean, most = 256): number {
  return Math.max(1, Math.min(most, Math.ceil(rotationBytes(device, quick) / bytes)));
}

export class TensorPool {
  private readonly lists = new Map<string, Tensor[]>(); // the least recently used first
  private staging = new Uint16Array(0);

  constructor(private readonly device: Device) {}

  /** Device memory for a cell, including memory that the pool can release. */
  capacity(): number {
    const { kind, totalMemory } = this.device.info;
    return kind === 'cuda' ? totalMemory * 0.85 : (availableMemory() + this.bytes()) * 0.8;
  }

  /** `count` tensors of a shape, random for bf16 and zero for other types. */
  take(dtype: DType, shape: readonly number[], count: number): Tensor[] {
    const key = `${dtype} ${shape.join(',')}`;
    const list = this.lists.get(key) ?? [];
    this.lists.delete(key);
    this.lists.set(key, list);
    while (list.length < count) {
      const size = shape.reduce((product, axis) => product * axis, 1);
      list.push(this.device.tensor(dtype, shape, dtype === 'bf16' ? this.random(size) : undefined));
    }
    return list.slice(0, count);
  }

  /** Releases the least recently used tensors until the pool has at most `bytes`. */
  trim(bytes: number): void {
    let held = this.bytes();
    for (const [key, list] of this.lists) {
      if (held <= bytes) break;
      for (const tensor of list) {
        held -= tensor.byteLength;
        tensor.dispose();
      }
      this.lists.delete(key);
    }
    if (bytes === 0) this.staging = new Uint16Array(0);
  }

  private bytes(): number {
    return [...this.lists.values()].flat().reduce((sum, { byteLength }) => sum + byteLength, 0);
  }

  private random(count: number): Uint16Array {
    if (this.staging.length < count) {
      const filled = this.staging.length > 0 ? this.staging : randomBf16(PATTERN, 1);
      const grown = new Uint16Array(Math.max(count, PATTERN));
      for (let at = 0; at < grown.length; at += filled.length)
        grown.set(filled.subarray(0, Math.min(filled.length, grown.length - at)), at);
      this.staging = grown;
    }
    return this.staging.subarray(0, count);
  }
}
