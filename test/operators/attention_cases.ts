// The case table of attention. Prefill and decode use the same head counts, head sizes, types and
// kinds of input.

import { type FloatType, type KvType, Random, toF8e4m3Bits } from '../support/numbers';
import {
  type AttentionInput,
  dequantizeRows,
  type QuantizedRows,
  quantizeRows,
  type SelectiveV,
} from '../support/reference';

export type Heads = readonly [q: number, k: number, v: number];
export type Dims = readonly [qk: number, vo: number];
export type Types = readonly [q: FloatType, k: KvType, v: KvType];

/**
 * normal: N(0, 1/100). large: logits of order 100. huge: of order 1e4. tiny: scores of order 1e-40.
 * equal: all scores equal. ones: V = 1.
 */
export type InputKind = 'normal' | 'large' | 'huge' | 'tiny' | 'equal' | 'ones' | 'onesHuge';

export interface AttentionCase {
  heads: Heads;
  dims: Dims;
  types: Types;
  inputs: InputKind;
  batchSize: number;
  qLen: number;
  kvLen: number;
  kvLens?: number[];
  causal: boolean;
  window?: number;
  softcap?: number;
  numSplits?: number;
  selectiveV?: SelectiveV;
}

export const headCounts: Heads[] = [
  [32, 4, 16],
  [8, 8, 8],
  [8, 1, 2],
  [6, 6, 1],
  [12, 3, 6],
  [4, 4, 2],
  [12, 4, 6],
  [16, 2, 16],
  [9, 3, 3],
];
/** Of the latent vectors of MLA: MiniCPM3, DeepSeek and Youtu, with V apart and as K. */
const latentSizes: Dims[] = [
  [288, 288],
  [576, 512],
  [576, 576],
];
export const headSizes: Dims[] = [
  [8, 8],
  [32, 32],
  [64, 64],
  [96, 96],
  [128, 128],
  [64, 32],
  [32, 128],
  [80, 64],
];
export const sameTypes: Types[] = [
  ['f32', 'f32', 'f32'],
  ['bf16', 'bf16', 'bf16'],
  ['f16', 'f16', 'f16'],
];
export const mixedTypes: Types[] = [
  ['f32', 'bf16', 'f16'],
  ['bf16', 'f16', 'bf16'],
  ['bf16', 'bf16', 'f32'],
  ['f16', 'f32', 'f16'],
  ['f32', 'f32', 'bf16'],
];
export const lengths = [1, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129];

export function caseName(c: AttentionCase): string {
  const parts = [
    `${c.heads.join('/')} x ${c.dims[0] === c.dims[1] ? c.dims[0] : c.dims.join('/')}`,
    c.types.every((t) => t === c.types[0]) ? c.types[0] : c.types.join('/'),
  ];
  if (c.batchSize > 1) parts.push(`batch ${c.batchSize}`);
  parts.push(`${c.qLen} on ${c.kvLen}`);
  if (c.kvLens) parts.push(`kvLens ${c.kvLens.join(',')}`);
  if (c.causal) parts.push('causal');
  if (c.window) parts.push(`window ${c.window}`);
  if (c.softcap) parts.push(`softcap ${c.softcap}`);
  if (c.numSplits) parts.push(`${c.numSplits} splits`);
  if (c.selectiveV) parts.push(`top ${c.selectiveV.topK}${c.selectiveV.renormalize ? ' renormalized' : ''}`);
  if (c.inputs !== 'normal') parts.push(c.inputs);
  return parts.join(', ');
}

/** K or V as the reference reads it, and as it is stored if the type is i8 or f8e4m3. */
export interface CacheInput {
  x: Float32Array;
  rows?: QuantizedRows;
}

function isQuantized(type: KvType): type is 'i8' | 'f8e4m3' {
  return type === 'i8' || type === 'f8e4m3';
}

function normalCache(random: Random, length: number, scale: number, type: KvType, rowLength: number): CacheInput {
  if (!isQuantized(type)) return { x: random.normals(length, scale, type) };
  const rows = quantizeRows(random.normals(length, scale, 'f32'), rowLength, type);
  return { x: dequantizeRows(rows), rows };
}

/**
 * Small multiples of `unit`, as exact in i8 and f8e4m3 as possible: the scales are powers of two
 * that differ between rows.
 */
function exactCache(x: Float32Array, unit: number, type: KvType, rowLength: number): CacheInput {
  if (!isQuantized(type)) return { x };
  const scales = new Float32Array(x.length / rowLength).map((_, row) => unit * 2 ** -(row % 3));
  const codes = x.map((value, i) => value / (scales[Math.floor(i / rowLength)] as number));
  const values = type === 'i8' ? Int8Array.from(codes) : Uint8Array.from(codes, toF8e4m3Bits);
  const rows = { values, scales };
  return { x: dequantizeRows(rows), rows };
}

/** The inputs of a case, rounded to their types. The seed depends on the case. */
export function attentionInput(c: AttentionCase): AttentionInput & {
  q: Float32Array;
  k: Float32Array;
  v: Float32Array;
  kRows?: QuantizedRows;
  vRows?: QuantizedRows;
} {
  let seed = 17;
  for (const character of caseName(c)) seed = (Math.imul(seed, 31) + character.charCodeAt(0)) | 0;
  const random = new Random(seed);
  const [numQHeads, numKHeads, numVHeads] = c.heads;
  const [headDimQk, headDimVo] = c.dims;
  const [qType, kType, vType] = c.types;
  const { batchSize, qLen, kvLen, causal, kvLens, window, softcap, selectiveV } = c;
  const qCount = batchSize * qLen * numQHeads * headDimQk;
  const kCount = batchSize * kvLen * numKHeads * headDimQk;
  const vCount = batchSize * kvLen * numVHeads * headDimVo;
  const ones = c.inputs === 'ones' || c.inputs === 'onesHuge';
  const v = ones
    ? exactCache(new Float32Array(vCount).fill(1), 1, vType, headDimVo)
    : normalCache(random, vCount, 0.1, vType, headDimVo);
  let q: Float32Array;
  let k: CacheInput;
  let smScale: number | undefined;
  switch (c.inputs) {
    case 'large':
    case 'huge':
    case 'onesHuge': {
      // With small integers and a power of two as the scale, the scores are exact in f32 in any
      // order of summation. So the case tests the softmax at that size, and not the rounding of the
      // scores.
      const limit = Math.max(1, Math.floor(Math.sqrt(2000 / Math.sqrt(headDimQk))));
      q = random.integers(qCount, -limit, limit);
      k = exactCache(random.integers(kCount, -limit, limit), 1, kType, headDimQk);
      smScale = c.inputs === 'large' ? 1 / 8 : 16;
      break;
    }
    case 'tiny':
      q = random.normals(qCount, 1e-20, qType);
      k = normalCache(random, kCount, 1e-20, kType, headDimQk);
      break;
    case 'equal':
      q = new Float32Array(qCount).fill(0.5);
      k = exactCache(new Float32Array(kCount).fill(0.25), 0.25, kType, headDimQk);
      break;
    default:
      q = random.normals(qCount, 0.1, qType);
      k = normalCache(random, kCount, 0.1, kType, headDimQk);
  }
  return {
    q,
    k: k.x,
    v: v.x,
    kRows: k.rows,
    vRows: v.rows,
    batchSize,
    qLen,
    kvLen,
    numQHeads,
    numKHeads,
    numVHeads,
    headDimQk,
    headDimVo,
    causal,
    kvLens,
    window,
    softcap,
    selectiveV,
    smScale,
  };
}

const usual = {
  heads: [8, 2, 4] as Heads,
  dims: [64, 64] as Dims,
  inputs: 'normal' as InputKind,
  batchSize: 1,
  causal: true,
};

export function prefillCases(reduced: boolean): AttentionCase[] {
  const cases: AttentionCase[] = [];
  const add = (c: Partial<AttentionCase> & Pick<AttentionCase, 'qLen' | 'kvLen' | 'types'>): void =>
    void cases.push({ ...usual, ...c });
  for (const types of sameTypes) {
    for (const heads of reduced ? headCounts.slice(0, 5) : headCounts) add({ types, heads, qLen: 33, kvLen: 65 });
    for (const dims of headSizes) add({ types, dims, qLen: 17, kvLen: 70 });
    for (const dims of latentSizes)
      add({ types, heads: [4, 1, 1], dims, qLen: 3, kvLen: 70, batchSize: 2, kvLens: [70, 2] });
    for (const length of reduced ? [1, 17, 65, 129] : lengths)
      add({ types, heads: [4, 1, 2], dims: [32, 32], qLen: length, kvLen: length });
    for (const length of reduced ? [33] : [7, 33, 64, 65, 129])
      add({ types, heads: [4, 1, 2], qLen: 5, kvLen: length, causal: false });
    for (const inputs of ['large', 'huge', 'tiny', 'equal', 'ones', 'onesHuge'] as const) {
      add({ types, inputs, qLen: 20, kvLen: 150 });
      add({ types, inputs, qLen: 3, kvLen: 150, causal: false, heads: [6, 6, 1], dims: [32, 128] });
    }
    for (const causal of [false, true]) {
      add({ types, causal, batchSize: 4, qLen: 9, kvLen: 40, kvLens: [40, 0, 17, 9] });
      // Shorter than qLen: some rows see no key.
      add({ types, causal, batchSize: 3, qLen: 9, kvLen: 40, kvLens: [4, 1, 9] });
    }
    if (!reduced) {
      add({ types, qLen: 1, kvLen: 513 });
      add({ types, qLen: 70, kvLen: 300, batchSize: 2, heads: [12, 3, 6], dims: [128, 128] });
      add({ types, qLen: 200, kvLen: 520, heads: [32, 4, 16] });
    }
  }
  for (const types of mixedTypes) {
    add({ types, qLen: 33, kvLen: 65 });
    add({ types, qLen: 6, kvLen: 40, heads: [12, 4, 6], dims: [32, 128], batchSize: 2, kvLens: [40, 13] });
  }
  return cases;
}

export function decodeCases(reduced: boolean): AttentionCase[] {
  const cases: AttentionCase[] = [];
  const add = (c: Partial<AttentionCase> & Pick<AttentionCase, 'kvLen' | 'types'>): void =>
    void cases.push({ ...usual, causal: false, qLen: 1, ...c });
  for (const types of sameTypes) {
    for (const heads of reduced ? headCounts.slice(0, 5) : headCounts) {
      add({ types, heads, kvLen: 200, batchSize: 2 });
      add({ types, heads, kvLen: 300, selectiveV: { topK: 20 } });
    }
    for (const dims of headSizes) add({ types, dims, kvLen: 150, batchSize: 2, kvLens: [150, 77] });
    for (const dims of latentSizes) {
      add({ types, heads: [4, 1, 1], dims, kvLen: 70, batchSize: 2, kvLens: [70, 0] });
      add({ types, heads: [4, 1, 1], dims, kvLen: 70, selectiveV: { topK: 9 } });
    }
    for (const length of reduced ? [1, 17, 65, 129] : lengths)
      add({ types, heads: [8, 1, 2], dims: [32, 32], kvLen: length });
    for (const numSplits of [1, 2, 3, 7, 64]) {
      add({ types, numSplits, kvLen: 61 }); // 64 splits: more splits than keys
      add({ types, numSplits, batchSize: 3, kvLen: 61, kvLens: [61, 0, 5], heads: [12, 3, 6] });
    }
    for (const inputs of ['large', 'huge', 'tiny', 'equal', 'ones', 'onesHuge'] as const) {
      add({ types, inputs, kvLen: 500 });
      add({ types, inputs, kvLen: 500, numSplits: 7, heads: [6, 6, 1], dims: [32, 128] });
    }
    add({ types, batchSize: 5, kvLen: 90, kvLens: [90, 0, 1, 64, 33] });
    for (const selectiveV of [
      { topK: 1 },
      { topK: 5 },
      { topK: 5, renormalize: true },
      { topK: 100 },
      { topK: 100, renormalize: true },
      { topK: 5000 },
    ]) {
      add({ types, selectiveV, kvLen: 400, batchSize: 2, kvLens: [400, 60] });
      add({ types, selectiveV, kvLen: 130, heads: [4, 4, 2], dims: [32, 128], numSplits: 3 });
    }
    // Hundreds of ties: the earlier keys are kept.
    add({ types, inputs: 'equal', kvLen: 300, selectiveV: { topK: 7 } });
    add({ types, inputs: 'equal', kvLen: 300, selectiveV: { topK: 7, renormalize: true }, numSplits: 5 });
    add({ types, inputs: 'huge', kvLen: 700, dims: [8, 8], selectiveV: { topK: 50 } });
    add({ types, inputs: 'onesHuge', kvLen: 700, selectiveV: { topK: 3, renormalize: true } });
    if (!reduced) {
      add({ types, kvLen: 4097, heads: [32, 4, 16] });
      add({ types, kvLen: 2050, heads: [32, 4, 16], dims: [128, 128], selectiveV: { topK: 100 } });
    }
  }
  for (const types of mixedTypes) {
    add({ types, kvLen: 200, batchSize: 2 });
    add({ types, kvLen: 140, heads: [12, 4, 6], dims: [32, 128], numSplits: 3, kvLens: [101] });
    add({ types, kvLen: 140, heads: [32, 4, 16], selectiveV: { topK: 10 } });
  }
  return cases;
}

const kvTypes: KvType[] = ['f32', 'f16', 'bf16', 'i8', 'f8e4m3'];
const everyPair = kvTypes.flatMap((k) => kvTypes.map((v) => [k, v] as const));
/** The pairs that caches are meant for: K as precise as Q with a coarser V, or both coarse. */
const cacheTypes: Types[] = [
  ['bf16', 'bf16', 'i8'],
  ['bf16', 'bf16', 'f8e4m3'],
  ['bf16', 'i8', 'f8e4m3'],
  ['f16', 'f16', 'i8'],
  ['f16', 'f16', 'f8e4m3'],
  ['f16', 'f8e4m3', 'i8'],
];
/**
 * Every other item of a list. Two neighbors in cacheTypes, or bf16 and f16 of the same pair,
 * together cover the list.
 */
function part<T>(list: readonly T[], typesIndex: number): T[] {
  return list.filter((_, i) => i % 2 === typesIndex % 2);
}
const cacheHeadSizes: Dims[] = [
  [32, 32],
  [64, 64],
  [96, 96],
  [128, 128],
  [256, 256],
  [64, 32],
  [32, 128],
  [80, 64],
];

/** Pairs of K and V types that cover all types. */
export function kvTypePrefillCases(reduced: boolean): AttentionCase[] {
  const cases: AttentionCase[] = [];
  const add = (c: Partial<AttentionCase> & Pick<AttentionCase, 'qLen' | 'kvLen' | 'types'>): void =>
    void cases.push({ ...usual, ...c });
  for (const [k, v] of everyPair) {
    add({ types: ['bf16', k, v], qLen: 19, kvLen: 70, batchSize: 2, kvLens: [70, 23] });
    add({ types: ['f32', k, v], qLen: 4, kvLen: 33, heads: [6, 6, 1], dims: [32, 64], causal: false });
  }
  for (const [i, types] of cacheTypes.entries()) {
    for (const heads of part(reduced ? headCounts.slice(0, 4) : headCounts, i))
      add({ types, heads, qLen: 9, kvLen: 65 });
    for (const dims of part(reduced ? cacheHeadSizes.slice(3, 7) : cacheHeadSizes, i))
      add({ types, dims, qLen: 9, kvLen: 70 });
    for (const length of part(reduced ? [17, 65] : [1, 7, 63, 64, 65, 129], i))
      add({ types, heads: [4, 1, 2], dims: [32, 32], qLen: length, kvLen: length });
    for (const inputs of part(['large', 'huge', 'tiny', 'equal', 'ones', 'onesHuge'] as const, i))
      add({ types, inputs, qLen: 5, kvLen: 150 });
    for (const causal of [false, true])
      add({ types, causal, batchSize: 4, qLen: 9, kvLen: 40, kvLens: [40, 0, 17, 4] });
    if (!reduced && i % 2 === 0) add({ types, qLen: 20, kvLen: 200, heads: [32, 4, 16] });
  }
  return cases;
}

export function kvTypeDecodeCases(reduced: boolean): AttentionCase[] {
  const cases: AttentionCase[] = [];
  const add = (c: Partial<AttentionCase> & Pick<AttentionCase, 'kvLen' | 'types'>): void =>
    void cases.push({ ...usual, causal: false, qLen: 1, ...c });
  for (const [k, v] of everyPair) {
    add({ types: ['bf16', k, v], kvLen: 140, batchSize: 2, kvLens: [140, 37] });
    add({ types: ['f32', k, v], kvLen: 61, heads: [6, 6, 1], dims: [32, 64], numSplits: 3 });
    add({ types: ['f16', k, v], kvLen: 90, selectiveV: { topK: 9 } });
  }
  for (const [i, types] of cacheTypes.entries()) {
    for (const heads of part(reduced ? headCounts.slice(0, 4) : headCounts, i)) {
      add({ types, heads, kvLen: 130, batchSize: 2 });
      add({ types, heads, kvLen: 110, selectiveV: { topK: 20 } });
    }
    for (const dims of part(reduced ? cacheHeadSizes.slice(3, 7) : cacheHeadSizes, i)) {
      add({ types, dims, kvLen: 150, batchSize: 2, kvLens: [150, 77] });
      add({ types, dims, kvLen: 150, selectiveV: { topK: 33, renormalize: true } });
    }
    for (const length of part(reduced ? [17, 65] : [1, 7, 63, 64, 65, 129], i))
      add({ types, heads: [8, 1, 2], dims: [32, 32], kvLen: length });
    for (const numSplits of part(reduced ? [2, 7] : [1, 2, 7, 64], i))
      add({ types, numSplits, batchSize: 3, kvLen: 61, kvLens: [61, 0, 5], heads: [12, 3, 6] });
    for (const inputs of part(['large', 'huge', 'tiny', 'equal', 'ones', 'onesHuge'] as const, i))
      add({ types, inputs, kvLen: 300, numSplits: i % 3 === 0 ? 7 : undefined });
    for (const topK of [1, 5, 100, 299, 300]) {
      add({ types, kvLen: 300, batchSize: 2, kvLens: [300, 60], selectiveV: { topK, renormalize: topK !== 5 } });
      if (topK !== 1) add({ types, inputs: 'equal', kvLen: 300, selectiveV: { topK }, numSplits: 3 }); // ties
    }
    add({ types, inputs: 'huge', kvLen: 300, dims: [32, 32], selectiveV: { topK: 50 } });
    add({ types, inputs: 'onesHuge', kvLen: 300, selectiveV: { topK: 3, renormalize: true } });
    if (!reduced && i % 2 === 0) add({ types, kvLen: 700, heads: [32, 4, 16] });
  }
  return cases;
}

const everyWindow = [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000];

/** Prefill with a window, with a soft cap, and with both. */
export function windowPrefillCases(reduced: boolean): AttentionCase[] {
  const cases: AttentionCase[] = [];
  const add = (c: Partial<AttentionCase> & Pick<AttentionCase, 'qLen' | 'kvLen' | 'types'>): void =>
    void cases.push({ ...usual, ...c });
  for (const types of sameTypes) {
    for (const window of reduced ? [1, 33, 64] : everyWindow) {
      add({ types, window, qLen: 150, kvLen: 150, heads: [2, 1, 2], dims: [8, 8] });
      add({ types, window, qLen: 20, kvLen: 210, batchSize: 3, kvLens: [210, 133, 17] }); // a chunk
    }
    for (const heads of reduced ? headCounts.slice(0, 4) : headCounts)
      add({ types, heads, window: 40, softcap: 0.01, qLen: 33, kvLen: 130 });
    for (const dims of reduced ? cacheHeadSizes.slice(2, 5) : headSizes)
      add({ types, dims, window: 20, softcap: 0.01, qLen: 17, kvLen: 70 });
    for (const causal of [false, true]) {
      add({ types, causal, softcap: 0.01, qLen: 9, kvLen: 140 });
      add({ types, causal, softcap: 30, inputs: 'large', qLen: 9, kvLen: 140 });
      add({ types, causal, softcap: 50, inputs: 'huge', qLen: 9, kvLen: 140 });
    }
    add({ types, window: 90, softcap: 30, inputs: 'large', qLen: 20, kvLen: 250, heads: [6, 6, 1], dims: [32, 128] });
    // Shorter than qLen: some rows see no key.
    add({ types, window: 3, batchSize: 4, qLen: 9, kvLen: 40, kvLens: [40, 0, 4, 9] });
    if (!reduced) {
      add({ types, window: 200, qLen: 200, kvLen: 500 });
      add({ types, window: 700, qLen: 1, kvLen: 1500 });
    }
  }
  for (const types of [...mixedTypes, ...everyPair.map(([k, v]) => ['bf16', k, v] as const)]) {
    add({ types, window: 33, qLen: 19, kvLen: 150, batchSize: 2, kvLens: [150, 23] });
    add({ types, softcap: 30, inputs: 'large', qLen: 9, kvLen: 70 });
  }
  for (const types of cacheTypes)
    for (const dims of cacheHeadSizes.slice(1, 5)) add({ types, dims, window: 50, softcap: 0.01, qLen: 9, kvLen: 90 });
  return cases;
}

/** The same for decode. */
export function windowDecodeCases(reduced: boolean): AttentionCase[] {
  const cases: AttentionCase[] = [];
  const add = (c: Partial<AttentionCase> & Pick<AttentionCase, 'kvLen' | 'types'>): void =>
    void cases.push({ ...usual, causal: false, qLen: 1, ...c });
  for (const types of sameTypes) {
    for (const window of reduced ? [1, 33, 64, 129] : everyWindow) {
      add({ types, window, kvLen: 300, batchSize: 4, kvLens: [300, 128, 0, 65] });
      add({ types, window, kvLen: 300, selectiveV: { topK: 40 } });
    }
    for (const numSplits of [1, 2, 7, 64]) {
      add({ types, numSplits, window: 61, batchSize: 3, kvLen: 230, kvLens: [230, 61, 5], heads: [12, 3, 6] });
      add({ types, numSplits, window: 150, kvLen: 230, selectiveV: { topK: 100, renormalize: true } });
    }
    for (const heads of reduced ? headCounts.slice(0, 4) : headCounts) {
      add({ types, heads, window: 100, softcap: 0.01, kvLen: 200, batchSize: 2 });
      add({ types, heads, window: 100, softcap: 0.01, kvLen: 300, selectiveV: { topK: 20 } });
    }
    for (const dims of reduced ? cacheHeadSizes.slice(2, 5) : headSizes)
      add({ types, dims, window: 70, softcap: 0.01, kvLen: 150, batchSize: 2, kvLens: [150, 77] });
    for (const selectiveV of [undefined, { topK: 30 }]) {
      add({ types, selectiveV, softcap: 0.01, kvLen: 200 });
      add({ types, selectiveV, softcap: 30, inputs: 'large', kvLen: 200 });
      add({ types, selectiveV, window: 130, softcap: 30, inputs: 'large', kvLen: 300, numSplits: 3 });
    }
    add({ types, softcap: 50, inputs: 'huge', kvLen: 200 });
    // Of equal scores, the first keys of the window are kept.
    add({ types, inputs: 'equal', window: 90, kvLen: 300, selectiveV: { topK: 7 } });
    if (!reduced) add({ types, window: 1024, kvLen: 2060, heads: [32, 4, 16] });
  }
  for (const types of [...mixedTypes, ...everyPair.map(([k, v]) => ['bf16', k, v] as const)]) {
    add({ types, window: 33, kvLen: 150, batchSize: 2, kvLens: [150, 23] });
    add({ types, window: 100, kvLen: 150, selectiveV: { topK: 20 } });
    add({ types, softcap: 30, inputs: 'large', kvLen: 70 });
  }
  for (const types of cacheTypes) {
    for (const dims of cacheHeadSizes.slice(1, 5)) {
      add({ types, dims, window: 50, softcap: 0.01, kvLen: 90 });
      add({ types, dims, window: 70, kvLen: 190, selectiveV: { topK: 33, renormalize: true } });
    }
  }
  return cases;
}
