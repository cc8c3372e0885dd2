// Suite cpu: the CPU device at the shape of Sigma-1.5B, beside the memory's read bandwidth and oneDNN's matmul rate, both
// measured between the samples. Its figures have targets.
import type { Suite } from '../suite';
import { measureAttention } from './cpu_attention';
import { measureModel } from './cpu_model';

export const cpuSuite: Suite = {
  description: 'decode, prefill and decode attention at the shape of Sigma-1.5B, each with its target',
  kinds: ['cpu'],
  async plan(bench) {
    const { ceilings, quick, pool } = bench;
    if (ceilings === null) {
      const skipped = 'it is measured against the program of bench/ceilings, which `diffqkv build` makes';
      const run = async () => ({ figures: [], skipped });
      return { setup: {}, cells: ['model', 'attention'].map((name) => ({ name, seconds: 0, bytes: 0, run })) };
    }
    const info = await ceilings.info();
    if (info.onednn === '')
      bench.progress('oneDNN is not installed: its rate cannot be measured and prefill stands without a limit');
    return {
      setup: {},
      cells: [
        {
          name: 'model',
          seconds: quick ? 8 : 85,
          bytes: 0,
          run: () => {
            pool.trim(0); // as many layers as fit are measured
            return measureModel(bench, ceilings, info.onednn !== '');
          },
        },
        {
          name: 'attention',
          seconds: quick ? 6 : 35,
          bytes: 4e9,
          run: () => measureAttention(bench, ceilings),
        },
      ],
    };
  },
};
