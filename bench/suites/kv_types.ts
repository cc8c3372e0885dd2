// Suite kv-types: decode attention over every pair of element types of the K and V cache.
import { type DType, kernels, type Tensor } from '../../lib/index';
import { cacheBytes, decodeFlops } from '../arithmetic';
import { figure } from '../figure';
import { headsName, lengthName, SIGMA_HEADS } from '../shapes';
import { type Bench, byKind, type Cell, type Suite } from '../suite';
import { rotations } from '../tensors';
import { decodeMemory, decodeWork, roomFor, rotatedBytes, timeFigure, timeWorks, turnOf, type Work } from '../work';

const TYPES = ['bf16', 'i8', 'f8e4m3'] as const;
type CacheType = (typeof TYPES)[number];

interface Rows {
  values: Tensor;
  scales?: Tensor;
}

/** Makes the caches of a cell. Quantized rows are kept for the next cells. */
class Caches {
  private readonly made = new Map<string, Rows[]>();

  constructor(
    private readonly bench: Bench,
    private readonly kvLen: number,
  ) {}

  async rows(type: CacheType, numHeads: number, dim: number, count: number): Promise<Rows[]> {
    const { pool } = this.bench;
    const shape = [1, roomFor(this.kvLen), numHeads, dim];
    if (type === 'bf16') return pool.take('bf16', shape, count).map((values) => ({ values }));
    const key = `${type} ${numHeads}`;
    const rows = this.made.get(key) ?? [];
    this.made.set(key, rows);
    const [x] = pool.take('bf16', shape, 1) as [Tensor];
    while (rows.length < count) rows.push(await kernels.quantize({ x, dtype: type }));
    return rows.slice(0, count);
  }

  dispose(): void {
    for (const { values, scales } of [...this.made.values()].flat()) {
      values.dispose();
      scales?.dispose();
    }
    this.made.clear();
  }
}

function cell(bench: Bench, caches: Caches, kvLen: number, kType: CacheType, vType: CacheType): Cell {
  const name = `decode attention at ${lengthName(kvLen)}, K ${kType}, V ${vType}`;
  const bytesPerToken = cacheBytes(SIGMA_HEADS, kType as DType, vType as DType);
  const bytes = kvLen * bytesPerToken;
  return {
    name,
    seconds: bench.quick ? 0.6 : 3,
    // The quantized rows of other cells may still be allocated.
    bytes: 2 * rotatedBytes(bench, bytes) + decodeMemory(bench, SIGMA_HEADS, kvLen),
    async run() {
      const { numQHeads, numKHeads, numVHeads, headDimQk, headDimVo } = SIGMA_HEADS;
      const sets = rotations(bytes, bench.device, bench.quick);
      const k = await caches.rows(kType, numKHeads, headDimQk, sets);
      const v = await caches.rows(vType, numVHeads, headDimVo, sets);
      const [q, out] = bench.pool.take('bf16', [1, numQHeads, headDimQk], 2) as [Tensor, Tensor];
      const kvLens = bench.device.tensor('i32', [1], Int32Array.of(kvLen));
      const pair: Work = {
        call: (turn) =>
          kernels.attentionDecode({
            q,
            k: turnOf(k, turn).values,
            kScales: turnOf(k, turn).scales,
            v: turnOf(v, turn).values,
            vScales: turnOf(v, turn).scales,
            kvLens,
            out,
          }),
        bytes,
        flops: decodeFlops(SIGMA_HEADS, kvLen),
      };
      // Alternates with bf16: disturbances of the machine affect the ratio less than the times.
      const dense = decodeWork(bench, { heads: SIGMA_HEADS, kvLen });
      const ms = await timeWorks(bench, { pair, dense }, bench.quick ? 0.25 : 2);
      const group = 'kv types';
      const at = { heads: headsName(SIGMA_HEADS), length: kvLen, k: kType, v: vType };
      const time = timeFigure(bench, pair, ms.pair, { name, group, at: { ...at, what: 'time' } });
      if (kType === 'bf16' && vType === 'bf16') return { figures: [time] };
      const ratio = figure({
        name: `${name}, over bf16`,
        value: ms.pair.median / ms.dense.median,
        unit: '',
        better: 'less',
        limit: bytesPerToken / cacheBytes(SIGMA_HEADS),
        limitName: 'bytes over bytes',
        target: null,
        samples: { ms: ms.pair, bf16Ms: ms.dense },
        group,
        at: { ...at, what: 'ratio' },
      });
      return { figures: [time, ratio] };
    },
  };
}

export const kvTypesSuite: Suite = {
  description: 'decode attention over K and V caches with every pair of bf16, i8 and f8e4m3',
  kinds: ['cuda', 'cpu', 'emulated'],
  plan(bench) {
    const kvLen = byKind(bench, { cuda: 32768, cpu: 32768, emulated: 128 });
    const caches = new Caches(bench, kvLen);
    return {
      setup: {
        batchSize: 1,
        heads: SIGMA_HEADS,
        kvLen,
        scales: 'a bf16 for each token and head, included in the bytes',
      },
      cells: TYPES.flatMap((kType) => TYPES.map((vType) => cell(bench, caches, kvLen, kType, vType))),
      dispose: async () => caches.dispose(),
    };
  },
};
