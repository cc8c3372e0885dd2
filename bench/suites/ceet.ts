// Suite ceet: the grid of figure 2. Elapsed time of cache, attention and augmented Q, summed over the output tokens that
// follow a prefix, in all 26 layers of Sigma-1.5B, for Sigma and for STD (16 K heads, no augmented Q).
import { kernels, type Tensor } from '../../lib/index';
import { cacheBytes, sumOver } from '../arithmetic';
import { type Figure, figure } from '../figure';
import { type HeadShape, headsName, lengthName, SIGMA_15B_LAYERS, SIGMA_HEADS, STD_HEADS } from '../shapes';
import { type Bench, byKind, type Cell, type Suite } from '../suite';
import { rotations } from '../tensors';
import { decodeMemory, decodeWork, rotatedBytes, timeFigure, timeWorks, turnOf, type Work } from '../work';
import { savingFigure } from './ket';

const GRID = { outputs: [2, 4, 8, 16, 32, 64], prefixes: [0, 2, 4, 16, 32, 64] }; // in units of 1024 tokens
const QUICK_GRID = { outputs: [2, 16], prefixes: [0, 16] };
const POSITIONS = [64, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 98304, 131072];
const QUICK_POSITIONS = [64, 2048, 32768];
const Q_SIZE = 2048; // Sigma-1.5B: 32 heads of 64, equal to its hidden size
const AUG_Q_SIZE = 3072;
const WHO = { Sigma: SIGMA_HEADS, STD: STD_HEADS } as const;
type Who = keyof typeof WHO;
const PARTS = ['cache', 'attention', 'augmented Q'] as const;
type Part = (typeof PARTS)[number];
/** The sum that fewer K heads can reduce, and the sum of the paper, which includes augmented Q. */
const SUMS = { 'cache and attention': ['cache', 'attention'], total: PARTS } as const;
type What = Part | keyof typeof SUMS;

/** The text of the paper has the numbers of only one cell of figure 2. */
const PAPER: Partial<Record<What, number>> = { cache: 36.57, attention: 15.4, total: 33.36 };
const PAPER_LENGTH = 65536;
const TARGET = { what: 'cache and attention', prefix: 32768, atLeast: 33 };

function positionCell(bench: Bench, length: number): Cell {
  const name = `attention at ${lengthName(length)}`;
  return {
    name,
    seconds: bench.quick ? 0.8 : 4,
    bytes: decodeMemory(bench, SIGMA_HEADS, length) + decodeMemory(bench, STD_HEADS, length),
    async run() {
      const works = {
        Sigma: decodeWork(bench, { heads: SIGMA_HEADS, kvLen: length }),
        STD: decodeWork(bench, { heads: STD_HEADS, kvLen: length }),
      };
      const ms = await timeWorks(bench, works, bench.quick ? 0.3 : 3);
      const figures = (Object.keys(WHO) as Who[]).map((who) =>
        stepFigure(bench, who, 'attention', works[who], ms[who], { length }),
      );
      return { figures };
    },
  };
}

/** The time of one part of one step in one layer. */
function stepFigure(
  bench: Bench,
  who: Who,
  what: Part,
  work: Work,
  ms: Parameters<typeof timeFigure>[2],
  where: { length?: number } = {},
): Figure {
  const length = where.length === undefined ? '' : ` at ${lengthName(where.length)}`;
  return timeFigure(bench, work, ms, {
    name: `a layer's ${what}${length}, ${who}`,
    group: 'ceet step',
    at: { heads: headsName(WHO[who]), what, ...where },
  });
}

/** The parts that do not depend on the length: storing a token's rows in the cache, and augmented Q. */
function constantCell(bench: Bench): Cell {
  const { pool, device, quick } = bench;
  return {
    name: 'augmented Q and cache',
    seconds: quick ? 0.8 : 4,
    bytes: rotatedBytes(bench, 6 * Q_SIZE * AUG_Q_SIZE),
    async run() {
      const weightBytes = 3 * 2 * Q_SIZE * AUG_Q_SIZE;
      const sets = rotations(weightBytes, device, quick);
      const inner = pool.take('bf16', [AUG_Q_SIZE, Q_SIZE], 2 * sets);
      const down = pool.take('bf16', [Q_SIZE, AUG_Q_SIZE], sets);
      const [x, out] = pool.take('bf16', [1, Q_SIZE], 2) as [Tensor, Tensor];
      const augmentedQ: Work = {
        call: (turn) =>
          kernels.augmentedQ({
            x,
            gate: turnOf(inner, 2 * (turn % sets)),
            up: turnOf(inner, 2 * (turn % sets) + 1),
            down: turnOf(down, turn),
            out,
          }),
        bytes: weightBytes,
      };
      const works = { augmentedQ, Sigma: storeWork(bench, SIGMA_HEADS), STD: storeWork(bench, STD_HEADS) };
      const ms = await timeWorks(bench, works, quick ? 0.3 : 3);
      return {
        figures: [
          stepFigure(bench, 'Sigma', 'augmented Q', augmentedQ, ms.augmentedQ),
          ...(Object.keys(WHO) as Who[]).map((who) => stepFigure(bench, who, 'cache', works[who], ms[who])),
        ],
      };
    },
  };
}

/** Copies the K row and the V row of one token. */
function storeWork({ pool }: Bench, heads: HeadShape): Work {
  const { numKHeads, numVHeads, headDimQk, headDimVo } = heads;
  const [token] = pool.take('i32', [1], 1) as [Tensor];
  const copies = [numKHeads * headDimQk, numVHeads * headDimVo].map((size) => {
    const from = pool.take('bf16', [1, size], 2)[1] as Tensor;
    return { from, to: pool.take('bf16', [1, size], 3)[2] as Tensor };
  });
  return {
    call: () => Promise.all(copies.map(({ from, to }) => kernels.embed({ table: from, tokens: token, out: to }))),
    bytes: 2 * cacheBytes(heads), // read and written
    under: 'copy',
  };
}

/** The grid, computed from the figures of the steps. Lengths beyond the measured ones have no figure. */
export function ceetGrid(measured: readonly Figure[], grid: typeof GRID, layers: number): Figure[] {
  const steps = measured.filter(({ group }) => group === 'ceet step');
  const figures: Figure[] = [];
  for (const output of grid.outputs.map((size) => size * 1024)) {
    for (const prefix of grid.prefixes.map((size) => size * 1024)) {
      const name = `CEET, ${lengthName(output)} after ${lengthName(prefix)}`;
      const sums = {} as Record<Who, Partial<Record<What, Figure>>>;
      for (const who of Object.keys(WHO) as Who[]) sums[who] = sumsOf(steps, who, name, prefix, output, layers);
      const { Sigma: sigma, STD: std } = sums;
      if (sigma.total === undefined || std.total === undefined) continue;
      figures.push(...Object.values(sigma), ...Object.values(std));
      for (const what of ['cache', 'attention', 'cache and attention', 'total'] as const) {
        const [ours, theirs] = [sigma[what], std[what]];
        if (ours === undefined || theirs === undefined) continue;
        const at = { output, prefix, what: `saving, ${what}` };
        const paper = output === PAPER_LENGTH && prefix === PAPER_LENGTH ? (PAPER[what] ?? null) : null;
        const aimed = what === TARGET.what && prefix === TARGET.prefix;
        const target = aimed ? ({ on: 'value', atLeast: TARGET.atLeast } as const) : null;
        const saved = savingFigure(
          { name: `${name}: saving, ${what}`, group: 'ceet', at, paper, target },
          ours,
          theirs,
        );
        // Augmented Q can cost more or less than K saves. Near a limit of 0 the share has no meaning.
        figures.push(what === 'total' ? { ...saved, share: null } : saved);
      }
    }
  }
  return figures;
}

function sumsOf(steps: readonly Figure[], who: Who, name: string, prefix: number, output: number, layers: number) {
  const sums: Partial<Record<What, Figure>> = {};
  const heads = headsName(WHO[who]);
  const make = (what: What, seconds: number, limit: number | null, bytes: number): Figure =>
    figure({
      name: `${name}: ${what}, ${who}`,
      value: seconds,
      unit: 's',
      better: 'less',
      limit,
      bytes,
      limitName: 'sum of the limits of the steps',
      target: null,
      samples: {},
      group: 'ceet',
      at: { heads, output, prefix, what },
    });
  for (const what of PARTS) {
    const own = steps.filter(({ at }) => at?.heads === heads && at.what === what);
    const over = (pick: (step: Figure) => number | null): number | null => {
      const points = own.map((step) => ({ length: Number(step.at?.length ?? Infinity), value: pick(step) }));
      if (points.some(({ value }) => value === null)) return null;
      return sumOver(points as { length: number; value: number }[], prefix, prefix + output);
    };
    if (what === 'augmented Q' && who === 'STD') continue; // STD has no augmented Q
    const value = over((step) => step.value);
    if (value === null) return {};
    const limit = over((step) => step.limit);
    const scale = layers / 1000;
    const bytes = over((step) => step.bytes ?? 0) ?? 0;
    sums[what] = make(what, value * scale, limit === null ? null : limit * scale, bytes * layers);
  }
  for (const [what, names] of Object.entries(SUMS) as [keyof typeof SUMS, readonly Part[]][]) {
    const parts = names.flatMap((name) => sums[name] ?? []);
    const add = (pick: (part: Figure) => number): number => parts.reduce((sum, part) => sum + pick(part), 0);
    const limited = parts.every(({ limit }) => limit !== null);
    sums[what] = make(
      what,
      add(({ value }) => value),
      limited ? add(({ limit }) => limit as number) : null,
      add(({ bytes }) => bytes as number),
    );
  }
  return sums;
}

export const ceetSuite: Suite = {
  description:
    'CEET (figure 2 of the paper): time of cache, attention and augmented Q by output and prefix, Sigma against STD',
  kinds: ['cuda', 'cpu', 'emulated'],
  plan(bench) {
    const positions = byKind(bench, {
      cuda: POSITIONS,
      cpu: bench.quick ? QUICK_POSITIONS : POSITIONS,
      emulated: [64, 256],
    });
    const small = bench.quick && bench.device.info.kind === 'cpu';
    const grid = small ? QUICK_GRID : byKind(bench, { cuda: GRID, cpu: GRID, emulated: QUICK_GRID });
    return {
      setup: {
        dtype: 'bf16',
        batchSize: 1,
        layers: SIGMA_15B_LAYERS,
        heads: { sigma: SIGMA_HEADS, std: STD_HEADS },
        augmentedQ: { sigma: { qSize: Q_SIZE, augQSize: AUG_Q_SIZE }, std: null },
        positions,
        method: {
          sums: 'measured for one layer at the positions, interpolated linearly, summed over the output tokens, times the layers',
          attention: 'kernels.attentionDecode',
          cache:
            "storing: a copy of a token's K row and V row by kernels.embed, because the append of the cache is not public; loading: none, because attention reads K and V in place",
          augmentedQ: 'kernels.augmentedQ, only for Sigma',
          total: 'with augmented Q, as in the paper; cache and attention without it, as for the limit of 37.5 %',
        },
        rotated: 'at most 256 sets of K and V: up to about 2k tokens they may fit into a large last-level cache',
        paper: 'arXiv 2501.13629 v2, section 3.3: savings at 64k output after a 64k prefix',
      },
      cells: [constantCell(bench), ...positions.map((length) => positionCell(bench, length))],
      derive: (measured) => ceetGrid(measured, grid, SIGMA_15B_LAYERS),
    };
  },
};
