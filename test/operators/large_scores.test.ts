// Attention with scores of any magnitude: up to the largest float32 and beyond. The scores of these
// cases are exact in f32 in any order of summation, so the float64 reference applies with the usual
// tolerances.

import { type Device, kernels, type Tensor } from '../../lib/index';
import { coarsest, expectClose, tolerances } from '../support/compare';
import { onEveryDevice, reduced, withTensors } from '../support/devices';
import { type KvType, Random, toF8e4m3Bits } from '../support/numbers';
import { attention, dequantizeRows, type QuantizedRows } from '../support/reference';
import type { Types } from './attention_cases';

const [numQHeads, numKHeads, numVHeads] = [4, 1, 2];

interface Case {
  types: Types;
  headDim: number;
  smScale: number;
  /** Each score q.k is a code times q times kUnit times headDim, or times 1 if `oneDim`. */
  q: number;
  kUnit: number;
  /** For each key. Codes are small integers. */
  codes: number[];
  /** Only the first dimension of q and k is not zero. */
  oneDim?: boolean;
  /** Added to each score: the product of the second dimension, q times this. */
  offset?: number;
  qLen?: number;
  numSplits?: number;
  selectiveV?: { topK: number; renormalize?: boolean };
}

/** K or V with the given codes, as the reference reads it and as it is stored. */
function cache(type: KvType, codes: Float32Array, unit: number, rowLength: number) {
  if (type !== 'i8' && type !== 'f8e4m3') return { x: codes.map((code) => code * unit) };
  const values = type === 'i8' ? Int8Array.from(codes) : Uint8Array.from(codes, toF8e4m3Bits);
  const rows: QuantizedRows = { values, scales: new Float32Array(codes.length / rowLength).fill(unit) };
  return { x: dequantizeRows(rows), rows };
}

function inputs(c: Case) {
  const kvLen = c.codes.length;
  const qLen = c.qLen ?? 1;
  const random = new Random(kvLen + c.headDim);
  const dims = c.oneDim || c.offset !== undefined ? 1 : c.headDim;
  const q = new Float32Array(qLen * numQHeads * c.headDim);
  for (let row = 0; row < q.length; row += c.headDim) {
    // The signs of q and k are equal, so that all products of a score have the sign of the code.
    for (let d = 0; d < dims; d++) q[row + d] = d % 3 === 1 ? -c.q : c.q;
    if (c.offset !== undefined) q[row + 1] = c.q;
  }
  const kCodes = new Float32Array(kvLen * numKHeads * c.headDim);
  for (let row = 0; row < kvLen * numKHeads; row++) {
    const code = c.codes[Math.floor(row / numKHeads)] as number;
    for (let d = 0; d < dims; d++) kCodes[row * c.headDim + d] = d % 3 === 1 ? -code : code;
    if (c.offset !== undefined) kCodes[row * c.headDim + 1] = c.offset / c.kUnit;
  }
  const k = cache(c.types[1], kCodes, c.kUnit, c.headDim);
  const v = cache(c.types[2], random.integers(kvLen * numVHeads * c.headDim, -8, 8), 1 / 8, c.headDim);
  return { q, k, v, kvLen, qLen };
}

async function run(device: Device, c: Case): Promise<{ out: Float32Array; lse: Float32Array }> {
  const { q, k, v, kvLen, qLen } = inputs(c);
  const [qType, kType, vType] = c.types;
  return withTensors(device, async (tensors) => {
    const perQuery = c.qLen ? [1, qLen] : [1];
    const make = (type: KvType, shape: number[], { x, rows }: { x: Float32Array; rows?: QuantizedRows }) => [
      tensors.keep(device.tensor(type, shape, rows?.values ?? x)),
      rows && tensors.make('bf16', shape.slice(0, 3), rows.scales),
    ];
    const [kTensor, kScales] = make(kType, [1, kvLen, numKHeads, c.headDim], k) as [Tensor, Tensor | undefined];
    const [vTensor, vScales] = make(vType, [1, kvLen, numVHeads, c.headDim], v) as [Tensor, Tensor | undefined];
    const out = tensors.out(qType, [...perQuery, numQHeads, c.headDim]);
    const lse = tensors.out('f32', c.qLen ? [1, numQHeads, qLen] : [1, numQHeads]);
    const args = {
      q: tensors.make(qType, [...perQuery, numQHeads, c.headDim], q),
      k: kTensor,
      v: vTensor,
      kScales,
      vScales,
      smScale: c.smScale,
      out,
      lse,
    };
    if (c.qLen) await kernels.attentionPrefill({ ...args, causal: true });
    else await kernels.attentionDecode({ ...args, numSplits: c.numSplits, selectiveV: c.selectiveV });
    return { out: await out.read(), lse: await lse.read() };
  });
}

function expected(c: Case) {
  const { q, k, v, kvLen, qLen } = inputs(c);
  const sizes = {
    batchSize: 1,
    qLen,
    kvLen,
    numQHeads,
    numKHeads,
    numVHeads,
    headDimQk: c.headDim,
    headDimVo: c.headDim,
  };
  const { smScale, selectiveV } = c;
  return attention({ q, k: k.x, v: v.x, ...sizes, smScale, causal: c.qLen !== undefined, selectiveV });
}

async function check(device: Device, c: Case, name: string): Promise<void> {
  const { out, lse } = expected(c);
  const actual = await run(device, c);
  try {
    expectClose(actual.out, out, tolerances[coarsest(...c.types)], c.headDim);
    expectClose(actual.lse, lse.map(Math.fround), tolerances.lse, 1);
  } catch (error) {
    throw new Error(`${name}: ${(error as Error).message}`);
  }
}

const typesList: Types[] = [
  ['f32', 'f32', 'f32'],
  ['bf16', 'bf16', 'bf16'],
  ['f16', 'f16', 'f16'],
  ['bf16', 'bf16', 'i8'],
  ['bf16', 'i8', 'f8e4m3'],
  ['f16', 'f8e4m3', 'i8'],
  ['f32', 'i8', 'i8'],
  ['bf16', 'f32', 'f16'],
];

const range = (length: number, code: (key: number) => number): number[] =>
  Array.from({ length }, (_, key) => code(key));
const random = new Random(3);
const draws = random.integers(200, -7, 7);
/** Codes of keys. In every pattern with ties, the ties at the maximum are in different splits and tiles. */
const patterns: [string, number[]][] = [
  ['all 7', range(131, () => 7)],
  ['all -7', range(131, () => -7)],
  ['one at the end', range(131, (key) => (key === 130 ? 7 : -7))],
  ['one at the start', range(70, (key) => (key === 0 ? 7 : -7))],
  ['alternating', range(97, (key) => (key % 2 === 0 ? -7 : 7))],
  ['rising', range(150, (key) => Math.floor(key / 10) - 7)],
  ['falling', range(150, (key) => 7 - Math.floor(key / 10))],
  ['random', range(161, (key) => draws[key] as number)],
];

/**
 * q, kUnit and smScale, powers of two, with which a code of 1 is a scaled score of 2^exponent. Codes
 * are below 8, and 7 * 2^125 is 3e38, near the largest float32. q and k in f16 are below 2^16.
 */
function sizesFor(types: Types, headDim: number, exponent: number): { q: number; kUnit: number; smScale: number } {
  const rest = exponent - Math.log2(headDim);
  if (!types.includes('f16')) return { q: 2 ** Math.floor(rest / 2), kUnit: 2 ** Math.ceil(rest / 2), smScale: 1 };
  return { q: 2 ** 12, kUnit: 2 ** 12, smScale: 2 ** (rest - 24) };
}

const calls: [string, Partial<Case>][] = [
  ['prefill', { qLen: 9 }],
  ['decode', {}],
  ['decode, 5 splits', { numSplits: 5 }],
  ['top 4', { selectiveV: { topK: 4 } }],
  ['top 4, renormalized, 5 splits', { selectiveV: { topK: 4, renormalize: true }, numSplits: 5 }],
];

onEveryDevice((device) => {
  for (const [call, options] of calls) {
    describe(call, () => {
      const byTypes = typesList.map((types) => [types.join('/'), types] as const);
      it.each(byTypes)('scores of 4e9 to 3e38: %s', async (_, types) => {
        let sign = 1;
        for (const [pattern, codes] of patterns) {
          for (const headDim of reduced ? [8, 64] : [8, 64, 128, 256]) {
            for (const exponent of reduced ? [30, 125] : [30, 80, 125]) {
              sign = -sign;
              const sizes = sizesFor(types, headDim, exponent);
              const c = { types, headDim, codes, ...sizes, smScale: sign * sizes.smScale, ...options };
              await check(device(), c, `${pattern}, ${headDim} dims, 2^${exponent}, sign ${sign}`);
            }
          }
          sign = -sign;
        }
      });

      // The largest score is about 2^22, where the unit of a float32 is 1/2, or about 768 or 708. Scores
      // differ by multiples of 1/2.
      it.each(byTypes.filter(([, types]) => !isQuantized(types[1])))(
        'large scores with small differences: %s',
        async (_, types) => {
          for (const [pattern, codes] of patterns) {
            for (const [smScale, offset] of [
              [2 ** -8, 2 ** 15],
              [-(2 ** -8), 2 ** 15],
              [2 ** -8, 12],
              [2 ** -8, 11.0625],
            ] as const) {
              const q = offset === 2 ** 15 ? 2 ** 15 : 2 ** 14;
              const kUnit = offset === 2 ** 15 ? 2 ** -8 : 2 ** -7;
              const c = { types, headDim: 32, q, kUnit, codes, smScale, offset, ...options };
              await check(device(), c, `${pattern}, smScale ${smScale}, offset ${offset}`);
            }
          }
        },
      );

      it('scaled scores and scales beyond float32', async () => {
        for (const types of typesList.slice(0, 3)) {
          for (const headDim of [8, 64]) {
            const c = { types, headDim, codes: patterns[5]?.[1] as number[], oneDim: true, ...options };
            const big = types[0] === 'f16' ? 2 ** 12 : 2 ** 60;
            const smScale = types[0] === 'f16' ? 2 ** 120 : 2 ** 100;
            await check(device(), { ...c, q: big, kUnit: big, smScale }, 'scaled scores'); // lse is Infinity
            for (const smScale of [3e38, -3e38, 0]) {
              await check(device(), { ...c, q: 1, kUnit: 2 ** -3, smScale }, `smScale ${smScale}`);
            }
          }
        }
      });

      // A product q.k beyond float32 is an infinite score. Then the reference has K = +-Infinity.
      it.each(['f32', 'bf16', 'f16'] as const)('infinite scores: %s', async (type) => {
        const types: Types = [type, type, type];
        const finite = range(131, () => -1);
        const infinities: [keys: number[], value: number][] = [
          [[3, 100], Number.NEGATIVE_INFINITY],
          [[3], Number.POSITIVE_INFINITY],
          [[130], Number.POSITIVE_INFINITY],
          [range(131, (key) => key), Number.NEGATIVE_INFINITY],
        ];
        for (const headDim of [8, 64]) {
          for (const smScale of [0.5, -0.5]) {
            const base = { types, headDim, smScale, q: Math.sign(smScale), oneDim: true, ...options };
            for (const [keys, value] of infinities) {
              const codes = finite.map((code, key) => (keys.includes(key) ? value : code));
              const c = { ...base, kUnit: 1, codes };
              await check(device(), c, `${headDim} dims, smScale ${smScale}, ${value} at ${keys.length} keys`);
              if (type === 'f16') continue; // products of two f16 fit
              const huge = codes.map((code) => (Number.isFinite(code) ? 0 : Math.sign(code)));
              const actual = await run(device(), { ...base, q: base.q * 2 ** 100, kUnit: 2 ** 100, codes: huge });
              const zero = codes.map((code) => (Number.isFinite(code) ? 0 : code));
              const wanted = expected({ ...c, codes: zero });
              expectClose(actual.out, wanted.out, tolerances[type], headDim);
              expectClose(actual.lse, wanted.lse, tolerances.lse, 1);
            }
          }
        }
      });
    });
  }
});

function isQuantized(type: KvType): boolean {
  return type === 'i8' || type === 'f8e4m3';
}
