// Suite selective-v: decode attention that only reads the V rows of the 100 highest scores (appendix B.2), against dense.
import { cacheBytes, selectiveBytes } from '../arithmetic';
import { figure } from '../figure';
import { headsName, lengthName, SIGMA_HEADS } from '../shapes';
import { type Bench, byKind, type Cell, type Suite } from '../suite';
import { decodeMemory, decodeWork, timeFigure, timeWorks } from '../work';

const TOP_K = 100;
const GRID = [2048, 4096, 8192, 16384, 32768, 65536, 131072];

function cell(bench: Bench, kvLen: number): Cell {
  const name = `decode attention at ${lengthName(kvLen)}`;
  return {
    name,
    seconds: bench.quick ? 0.7 : 3,
    bytes: decodeMemory(bench, SIGMA_HEADS, kvLen),
    async run() {
      const works = {
        dense: decodeWork(bench, { heads: SIGMA_HEADS, kvLen }),
        selective: decodeWork(bench, { heads: SIGMA_HEADS, kvLen, topK: TOP_K }),
      };
      const ms = await timeWorks(bench, works, bench.quick ? 0.3 : 2);
      const group = 'selective v';
      const at = { heads: headsName(SIGMA_HEADS), length: kvLen };
      return {
        figures: [
          timeFigure(bench, works.dense, ms.dense, { name: `${name}, dense`, group, at: { ...at, what: 'dense' } }),
          timeFigure(bench, works.selective, ms.selective, {
            name: `${name}, selective V of top ${TOP_K}`,
            group,
            at: { ...at, what: `top ${TOP_K}` },
          }),
          figure({
            name: `${name}, selective V over dense`,
            value: ms.selective.median / ms.dense.median,
            unit: '',
            better: 'less',
            limit: selectiveBytes(SIGMA_HEADS, kvLen, TOP_K) / (kvLen * cacheBytes(SIGMA_HEADS)),
            limitName: 'bytes over bytes',
            target: null,
            samples: { selectiveMs: ms.selective, denseMs: ms.dense },
            group,
            at: { ...at, what: 'ratio' },
          }),
        ],
      };
    },
  };
}

export const selectiveVSuite: Suite = {
  description: `selective V: top ${TOP_K} against dense decode attention, 2k to 128k tokens`,
  kinds: ['cuda', 'cpu', 'emulated'],
  plan(bench) {
    const kvLens = byKind(bench, { cuda: GRID, cpu: bench.quick ? [2048, 32768] : GRID, emulated: [256] });
    return {
      setup: { dtype: 'bf16', batchSize: 1, heads: SIGMA_HEADS, topK: TOP_K, renormalize: false, kvLens },
      cells: kvLens.map((kvLen) => cell(bench, kvLen)),
    };
  },
};
