// Suite ket: kernel execution time (KET), the grid of table 15 of the paper: decode attention for 10 output tokens in all 26
// layers, with the heads of Sigma and of STD. Decode attention is one kernel here, whose last block combines the splits, so
// there are no separate split and combine times. The clock of the device runs from the first call to the end of the last. If
// a kernel takes less time than its launch, as on a GPU with a short prefix, the result is the time of the launches.
import { cacheBytes, outputLengths, saving } from '../arithmetic';
import { type Figure, figure } from '../figure';
import { type HeadShape, headsName, lengthName, SIGMA_15B_LAYERS, SIGMA_HEADS, STD_HEADS } from '../shapes';
import { type Bench, byKind, type Cell, type Suite } from '../suite';
import { decodeMemory, decodeWork, timeFigure, timeWorks } from '../work';

const OUTPUT_TOKENS = 10;
const TARGET_PREFIX = 32768;
const TARGET_SAVING = 33;

/** Table 15, in ms: STD and Sigma, split and combine kernels together. */
const PAPER: Record<number, { std: number; sigma: number; saving: number }> = {
  2048: { std: 4.41, sigma: 4.34, saving: 1.39 },
  4096: { std: 6.59, sigma: 5.4, saving: 18.02 },
  16384: { std: 17.2, sigma: 13.1, saving: 23.35 },
  32768: { std: 29.5, sigma: 22.1, saving: 25.31 },
};

/** The most that Sigma can save (equation 2), in percent. */
export const SAVING_LIMIT = saving(cacheBytes(SIGMA_HEADS), cacheBytes(STD_HEADS));

export function savingFigure(
  input: Pick<Figure, 'name' | 'group' | 'at'> & Partial<Figure>,
  ours: Figure,
  theirs: Figure,
): Figure {
  const limit = ours.limit !== null && theirs.limit !== null ? saving(ours.limit, theirs.limit) : SAVING_LIMIT;
  return figure({
    value: saving(ours.value, theirs.value),
    unit: '%',
    better: 'more',
    limit,
    limitName: 'bytes over bytes',
    target: null,
    // The times that the saving is computed from.
    samples: Object.fromEntries(
      [ours, theirs].flatMap(({ samples }, i) =>
        Object.values(samples).map((stats) => [i === 0 ? 'sigma' : 'std', stats] as const),
      ),
    ),
    ...input,
  });
}

function ketCell(bench: Bench, prefix: number, layers: number): Cell {
  const name = `KET at ${lengthName(prefix)}`;
  const lengths = outputLengths(prefix, OUTPUT_TOKENS);
  const kvLen = prefix + OUTPUT_TOKENS;
  return {
    name,
    seconds: bench.quick ? 1.5 : 4 + prefix / 2000,
    bytes: decodeMemory(bench, SIGMA_HEADS, kvLen) + decodeMemory(bench, STD_HEADS, kvLen),
    async run() {
      const works = {
        sigma: decodeWork(bench, { heads: SIGMA_HEADS, kvLen, lengths }),
        std: decodeWork(bench, { heads: STD_HEADS, kvLen, lengths }),
      };
      // A sample has the calls of all output tokens in `layers` layers.
      const ms = await timeWorks(bench, works, bench.quick ? 0.5 : 15, OUTPUT_TOKENS * layers);
      const times = OUTPUT_TOKENS * SIGMA_15B_LAYERS;
      const paper = PAPER[prefix];
      const total = (who: 'sigma' | 'std', heads: HeadShape): Figure => {
        const label = who === 'sigma' ? 'Sigma' : 'STD';
        return timeFigure(
          bench,
          works[who],
          ms[who],
          {
            name: `${name}, ${label} ${headsName(heads)}`,
            group: 'ket',
            at: { heads: headsName(heads), prefix, what: 'total' },
            paper: paper?.[who] ?? null,
          },
          { times },
        );
      };
      const sigma = total('sigma', SIGMA_HEADS);
      const std = total('std', STD_HEADS);
      const saved = savingFigure(
        {
          name: `${name}, saving`,
          group: 'ket',
          at: { prefix, what: 'saving' },
          paper: paper?.saving ?? null,
          target: prefix === TARGET_PREFIX ? { on: 'value', atLeast: TARGET_SAVING } : null,
        },
        sigma,
        std,
      );
      return { figures: [sigma, std, saved] };
    },
  };
}

export const ketSuite: Suite = {
  description:
    'KET (table 15 of the paper): time of decode attention for 10 output tokens in 26 layers, Sigma against STD',
  kinds: ['cuda', 'cpu', 'emulated'],
  plan(bench) {
    const grid = [2048, 4096, 16384, 32768];
    const prefixes = byKind(bench, { cuda: grid, cpu: bench.quick ? [2048, 32768] : grid, emulated: [64] });
    const layers = bench.quick || bench.device.info.kind === 'emulated' ? 1 : SIGMA_15B_LAYERS;
    return {
      setup: {
        dtype: 'bf16',
        batchSize: 1,
        heads: { sigma: SIGMA_HEADS, std: STD_HEADS },
        prefixes,
        outputTokens: OUTPUT_TOKENS,
        layers: SIGMA_15B_LAYERS,
        layersMeasured: layers,
        method:
          'milliseconds of the device clock for all calls of kernels.attentionDecode, including gaps between them; K and V are ' +
          `rotated through more memory than the caches hold; ${layers === SIGMA_15B_LAYERS ? 'all layers are measured' : `${layers} layer is measured and counted ${SIGMA_15B_LAYERS} times`}`,
        paper: 'table 15 of arXiv 2501.13629 v2, on an H100; split and combine kernels together',
      },
      cells: prefixes.map((prefix) => ketCell(bench, prefix, layers)),
    };
  },
};
