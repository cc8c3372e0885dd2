// Suite cpu: the CPU device at the shape of Sigma-1.5B. The limits are the read bandwidth of the memory and the matrix rate
// of oneDNN, both measured between the samples. Its figures have targets.
import type { Suite } from '../suite';
import { measureAttention } from './cpu_attention';
import { measureModel } from './cpu_model';

export const cpuSuite: Suite = {
  description: 'decode, prefill and decode attention at the shape of Sigma-1.5B, each with its target',
  kinds: ['cpu'],
  plan(bench) {
    const { ceilings, quick, pool } = bench;
    if (ceilings === null) throw new Error('suite cpu needs the limits of the CPU, but the run does not measure any');
    return {
      setup: {},
      cells: [
        {
          name: 'model',
          seconds: quick ? 8 : 85,
          bytes: 0,
          run: () => {
            pool.trim(0); // the model gets as many layers as fit
            return measureModel(bench, ceilings);
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
