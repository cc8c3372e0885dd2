// Suite cuda: the rates of the CUDA kernels at the shapes of Sigma-1.5B and 10B. The limits are those of bench/gpu_ceilings.cu.
import { kernels, type Tensor } from '../../lib/index';
import { cacheBytes } from '../arithmetic';
import { type Figure, figure } from '../figure';
import { mapStats } from '../measure';
import { type HeadShape, SIGMA_HEADS, STD_HEADS, shapeName } from '../shapes';
import type { Bench, Cell, Suite } from '../suite';
import { rotations } from '../tensors';
import { decodeWork, prefillWork, rotatedBytes, timeWorks, turnOf, type Work } from '../work';

function matmulWork(bench: Bench, tokens: number, inFeatures: number, outFeatures: number): Work {
  const { pool, device, quick } = bench;
  const bytes = 2 * inFeatures * outFeatures;
  const weights = pool.take('bf16', [outFeatures, inFeatures], rotations(bytes, device, quick, 64));
  const x = pool.take('bf16', [tokens, inFeatures], 1)[0] as Tensor;
  const out = pool.take('bf16', [tokens, outFeatures], 2)[1] as Tensor;
  return {
    call: (turn) => kernels.matmul({ x, weight: turnOf(weights, turn), out }),
    bytes,
    flops: bytes * tokens,
  };
}

/** A bandwidth if `memory`, else a rate of the tensor cores. */
function rateCell(bench: Bench, name: string, memory: boolean, bytes: number, make: () => Work): Cell {
  return {
    name,
    seconds: 1,
    bytes,
    async run() {
      const work = make();
      const { ms } = await timeWorks(bench, { ms: work }, bench.quick ? 0.1 : 0.7);
      const rate = mapStats(ms, (value) => (memory ? work.bytes / value / 1e6 : (work.flops as number) / value / 1e9));
      const { readGbPerS, matrixGflopPerS } = bench.limits;
      const limit = memory ? readGbPerS : matrixGflopPerS && mapStats(matrixGflopPerS, (value) => value / 1000);
      const result: Figure = figure({
        name,
        value: rate.median,
        unit: memory ? 'GB/s' : 'TFLOP/s',
        limit: limit?.median ?? null,
        limitName: memory ? 'read bandwidth' : 'rate of mma.sync',
        better: 'more',
        target: null,
        samples: { ms, rate },
        bytes: work.bytes,
        flops: work.flops,
      });
      return { figures: [result] };
    },
  };
}

export const cudaSuite: Suite = {
  description: 'the CUDA kernels at the shapes of Sigma-1.5B and 10B, as rates',
  kinds: ['cuda', 'emulated'],
  plan(bench) {
    const { device, quick } = bench;
    const long = device.info.kind === 'cuda'; // the emulated device only shows that the suite runs
    const at128 = (heads: HeadShape): HeadShape => ({ ...heads, headDimQk: 128, headDimVo: 128 });
    const cells: Cell[] = [];
    for (const kvLen of long ? [2048, 4096, 16384, 32768, ...(quick ? [] : [131072])] : [256]) {
      for (const heads of [SIGMA_HEADS, STD_HEADS, at128(SIGMA_HEADS), at128(STD_HEADS)]) {
        const bytes = rotatedBytes(bench, kvLen * cacheBytes(heads));
        const name = `decode attention ${shapeName(heads)}, ${kvLen} tokens`;
        cells.push(rateCell(bench, name, true, bytes, () => decodeWork(bench, { heads, kvLen })));
      }
    }
    for (const length of long ? [512, 2048, ...(quick ? [] : [8192, 32768])] : [32]) {
      const prefill = (heads: HeadShape, causal: boolean): void => {
        const name = `prefill attention ${shapeName(heads)}, ${length} tokens${causal ? ', causal' : ''}`;
        cells.push(rateCell(bench, name, false, 0, () => prefillWork(bench, heads, length, causal)));
      };
      prefill(SIGMA_HEADS, true);
      prefill(SIGMA_HEADS, false);
      prefill(at128(SIGMA_HEADS), true);
    }
    const matrices = long
      ? [[2048, 6144] as const, [6144, 2048] as const, [4096, 14336] as const]
      : [[64, 96] as const];
    for (const [inFeatures, outFeatures] of matrices) {
      for (const tokens of long ? [1, 4, 8, 64, 512, 4096] : [1, 16]) {
        const name = `matmul ${tokens} x ${inFeatures} -> ${outFeatures}`;
        const make = () => matmulWork(bench, tokens, inFeatures, outFeatures);
        cells.push(rateCell(bench, name, tokens <= 8, rotatedBytes(bench, 2 * inFeatures * outFeatures), make));
      }
    }
    return { setup: { dtype: 'bf16', batchSize: 1 }, cells };
  },
};
