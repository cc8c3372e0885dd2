// The two sides of the comparison with GroupQueryAttention of onnxruntime: the same numbers in two layouts.
import * as fs from 'node:fs';
import * as path from 'node:path';

import { type Device, kernels, type Tensor } from '../../lib/index';
import { f16FromBf16 } from './checkpoint';
import { type GqaShape, groupQueryAttentionModel } from './onnx';
import { Worker } from './worker';

export const NUM_Q_HEADS = 32;
export const DIM = 64;
const ORT_TYPES = { f32: 'float32', f16: 'float16', bf16: 'bfloat16' };

export type Type = keyof typeof ORT_TYPES;

/** The same numbers in each type: bf16 numbers that f16 represents exactly. */
function bits(bf16: Uint16Array, type: Type): Uint16Array | Float32Array {
  if (type === 'bf16') return bf16;
  if (type === 'f32') return new Float32Array(Uint32Array.from(bf16, (value) => value << 16).buffer);
  return f16FromBf16(bf16);
}

/** Converts [kvLen, heads, dim] (diffqkv) to [heads, length, dim] (onnxruntime). Rows beyond kvLen are zero. */
function headsFirst(cache: Uint16Array, heads: number, length: number): Uint16Array {
  const out = new Uint16Array(heads * length * DIM);
  const rows = Math.min(length, cache.length / heads / DIM);
  for (let row = 0; row < rows; ++row)
    for (let head = 0; head < heads; ++head) {
      const from = (row * heads + head) * DIM;
      out.set(cache.subarray(from, from + DIM), (head * length + row) * DIM);
    }
  return out;
}

export class Ours {
  private readonly caches: { k: Tensor; v: Tensor }[];
  private readonly q: Tensor;
  private readonly out: Tensor;
  private turn = 0;

  constructor(
    device: Device,
    type: Type,
    q: Uint16Array,
    k: Uint16Array,
    v: Uint16Array,
    heads: number,
    copies: number,
  ) {
    const shape = [1, k.length / heads / DIM, heads, DIM];
    this.q = device.tensor(type, [1, NUM_Q_HEADS, DIM], bits(q, type));
    this.out = device.tensor(type, [1, NUM_Q_HEADS, DIM]);
    const [kBits, vBits] = [bits(k, type), bits(v, type)];
    this.caches = Array.from({ length: copies }, () => ({
      k: device.tensor(type, shape, kBits),
      v: device.tensor(type, shape, vBits),
    }));
  }

  async call(): Promise<Tensor> {
    this.turn = (this.turn + 1) % this.caches.length;
    return await kernels.attentionDecode({
      q: this.q,
      out: this.out,
      ...(this.caches[this.turn] as { k: Tensor; v: Tensor }),
    });
  }

  /** Milliseconds of each of consecutive calls by the clock of the caller, as for the peer. */
  async time(calls: number): Promise<number[]> {
    const ms = [];
    for (let i = 0; i < calls; ++i) {
      const since = performance.now();
      await this.call();
      ms.push(performance.now() - since);
    }
    return ms;
  }

  dispose(): void {
    for (const tensor of [this.q, this.out, ...this.caches.flatMap(({ k, v }) => [k, v])]) tensor.dispose();
  }
}

/** onnxruntime with one type and one way to pass the cache. Throws if it has no kernel. */
export async function openPeer(
  folder: string,
  shape: GqaShape,
  cache: { k: Uint16Array; v: Uint16Array; q: Uint16Array },
  threads: number,
  copies: number,
) {
  const { type, pastLen, kvLen, numKAndVHeads: heads } = shape;
  const write = (name: string, data: Uint16Array) => fs.writeFileSync(path.join(folder, name), bits(data, type));
  const newRow = (data: Uint16Array) => data.subarray((kvLen - 1) * heads * DIM);
  const past = (data: Uint16Array) => headsFirst(data.subarray(0, (kvLen - 1) * heads * DIM), heads, pastLen);
  write('query', cache.q);
  write('key', newRow(cache.k));
  write('value', newRow(cache.v));
  write('past_key', past(cache.k));
  write('past_value', past(cache.v));
  const model = path.join(folder, 'model.onnx');
  fs.writeFileSync(model, groupQueryAttentionModel(shape));
  const worker = Worker.open('onnxruntime.mjs', 'onnxruntime-node');
  try {
    const { version } = await worker.call<{ version: string }>('open', { threads, model });
    await worker.call('load', { folder, type: ORT_TYPES[type], shape, copies, shared: pastLen === kvLen });
    const { values } = await worker.call<{ values: number[] }>('output');
    return { worker, version, values };
  } catch (error) {
    worker.close();
    throw error;
  }
}

export function decodeHalves(values: number[], type: Type): number[] {
  if (type === 'f32') return values;
  return values.map((half) => {
    if (type === 'bf16') return new Float32Array(Uint32Array.of(half << 16).buffer)[0] as number;
    const [exponent, fraction] = [(half >> 10) & 31, half & 1023];
    const magnitude = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
    return half & 0x8000 ? -magnitude : magnitude;
  });
}
