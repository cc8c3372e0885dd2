// One case of bench/counters.ts, and its tensors.
import type { Device, kernels, Tensor, TensorData } from '../lib/index';
import { randomBf16 } from './random';

/** The least work: every input is read once, every output is written once. */
export interface Work {
  bytesRead: number;
  bytesWritten: number;
  /** FLOPs of the products that tensor cores can compute; 0 without any. */
  flops: number;
}

export interface CountedCase {
  kernel: keyof typeof kernels;
  shape: string;
  work: Work;
  /** Makes the inputs, in `tensors`. Returns a function that makes the call. */
  prepare(tensors: TensorSet): () => Promise<unknown>;
}

const product = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

/** The tensors of one case. They are the same in every run, and disposed together. */
export class TensorSet {
  private readonly all: Tensor[] = [];

  constructor(private readonly device: Device) {}

  bf16(...shape: number[]): Tensor {
    return this.make('bf16', shape, randomBf16(product(shape), this.all.length + 1));
  }

  f32(...shape: number[]): Tensor {
    return this.make('f32', shape, Float32Array.from(randomBf16(product(shape), this.all.length + 1)));
  }

  i8(...shape: number[]): Tensor {
    return this.make('i8', shape, Int8Array.from(randomBf16(product(shape), this.all.length + 1)));
  }

  /** Eight elements in a word. */
  i4(rows: number, columns: number): Tensor {
    const words = new Int32Array(rows * (columns / 8)).map((_, i) => Math.imul(i + 1, 0x9e3779b1));
    return this.make('i32', [rows, columns / 8], words);
  }

  i32(values: number[]): Tensor {
    return this.make('i32', [values.length], Int32Array.from(values));
  }

  scales(...shape: number[]): Tensor {
    return this.make('bf16', shape, new Float32Array(product(shape)).fill(1 / 128));
  }

  keep(tensor: Tensor): Tensor {
    this.all.push(tensor);
    return tensor;
  }

  dispose(): void {
    for (const tensor of this.all) tensor.dispose();
  }

  private make(dtype: 'bf16' | 'f32' | 'i8' | 'i32', shape: number[], data: TensorData): Tensor {
    return this.keep(this.device.tensor(dtype, shape, data));
  }
}
