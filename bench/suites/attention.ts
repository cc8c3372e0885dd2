// Suite attention: decode and prefill over head counts, head sizes, lengths and batch sizes, in bf16.
import { cacheBytes } from '../arithmetic';
import { type HeadShape, headShape, headsName, lengthName, shapeName } from '../shapes';
import { type Bench, type BenchKind, byKind, type Cell, isTrial, type Suite } from '../suite';
import { decodeMemory, decodeWork, prefillWork, timeFigure, timeWorks } from '../work';

const HEADS = [
  [32, 4, 16], // Sigma
  [32, 16, 16], // STD
  [32, 8, 8], // Llama 3's GQA
  [32, 32, 32], // MHA
  [8, 1, 4],
] as const;

interface Sizes {
  sizes: number[];
  decode: { batchSize: number; kvLens: number[] }[];
  prefill: { batchSize: number; lengths: number[] }[];
}

const FULL: Record<BenchKind, Sizes> = {
  cuda: {
    sizes: [64, 128],
    decode: [
      { batchSize: 1, kvLens: [2048, 8192, 32768, 131072] },
      { batchSize: 16, kvLens: [2048, 8192, 32768] },
    ],
    prefill: [
      { batchSize: 1, lengths: [512, 2048, 8192, 32768] },
      { batchSize: 8, lengths: [2048] },
    ],
  },
  cpu: {
    sizes: [64, 128],
    decode: [
      { batchSize: 1, kvLens: [2048, 8192, 32768] },
      { batchSize: 8, kvLens: [2048, 8192] },
    ],
    prefill: [
      { batchSize: 1, lengths: [512, 2048, 8192] },
      { batchSize: 4, lengths: [512] },
    ],
  },
  trial: { sizes: [64], decode: [{ batchSize: 1, kvLens: [128] }], prefill: [{ batchSize: 1, lengths: [32] }] },
};

const QUICK: Sizes = {
  sizes: [64],
  decode: [{ batchSize: 1, kvLens: [32768] }],
  prefill: [{ batchSize: 1, lengths: [512] }],
};

function decodeCell(bench: Bench, heads: HeadShape, kvLen: number, batchSize: number): Cell {
  const batch = batchSize === 1 ? '' : `, batch ${batchSize}`;
  const name = `decode attention ${shapeName(heads)}, ${lengthName(kvLen)} tokens${batch}`;
  return {
    name,
    seconds: bench.quick ? 0.4 : 1.5,
    bytes: decodeMemory(bench, heads, kvLen, batchSize),
    async run() {
      const work = decodeWork(bench, { heads, kvLen, batchSize });
      const { ms } = await timeWorks(bench, { ms: work }, bench.quick ? 0.2 : 1);
      const at = { heads: headsName(heads), size: heads.headDimQk, length: kvLen, batch: batchSize };
      return { figures: [timeFigure(bench, work, ms, { name, group: 'attention decode', at })] };
    },
  };
}

function prefillCell(bench: Bench, heads: HeadShape, length: number, batchSize: number): Cell {
  const batch = batchSize === 1 ? '' : `, batch ${batchSize}`;
  const name = `prefill attention ${shapeName(heads)}, ${lengthName(length)} tokens, causal${batch}`;
  return {
    name,
    seconds: bench.quick ? 0.3 : 2,
    bytes: batchSize * length * (cacheBytes(heads) * 3 + 4 * heads.numQHeads * heads.headDimQk),
    async run() {
      const work = prefillWork(bench, heads, length, true, batchSize);
      const { ms } = await timeWorks(bench, { ms: work }, bench.quick ? 0.2 : 1);
      const at = { heads: headsName(heads), size: heads.headDimQk, length, batch: batchSize };
      return { figures: [timeFigure(bench, work, ms, { name, group: 'attention prefill', at })] };
    },
  };
}

export const attentionSuite: Suite = {
  description: 'decode and prefill attention over head counts, head sizes, lengths and batch sizes',
  kinds: ['cuda', 'cpu', 'trial'],
  plan(bench) {
    const full = byKind(bench, FULL);
    const { sizes, decode, prefill } = bench.quick && !isTrial(bench.device) ? QUICK : full;
    const shapes = sizes.flatMap((size) => HEADS.map((counts) => headShape(counts, size)));
    const cells = [
      ...decode.flatMap(({ batchSize, kvLens }) =>
        kvLens.flatMap((kvLen) => shapes.map((heads) => decodeCell(bench, heads, kvLen, batchSize))),
      ),
      ...prefill.flatMap(({ batchSize, lengths }) =>
        lengths.flatMap((length) => shapes.map((heads) => prefillCell(bench, heads, length, batchSize))),
      ),
    ];
    return { setup: { dtype: 'bf16', ...(bench.quick ? QUICK : full) }, cells };
  },
};
