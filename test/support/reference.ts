// Defines each operator with plain float64 loops over row-major arrays, for clarity and not for
// speed. Sizes and axes have the names of csrc/backend/ops.h.

import type { Activation } from '../../lib/index';
import { fromBf16Bits, fromF8e4m3Bits, type Numbers, type QuantizedType, roundHalfEven, toF8e4m3Bits } from './numbers';

export interface SelectiveV {
  topK: number;
  renormalize?: boolean;
}

export interface AttentionInput {
  q: Numbers; // [batchSize, qLen, numQHeads, headDimQk]
  k: Numbers; // [batchSize, kvLen, numKHeads, headDimQk]
  v: Numbers; // [batchSize, kvLen, numVHeads, headDimVo]
  batchSize: number;
  qLen: number;
  kvLen: number;
  numQHeads: number;
  numKHeads: number;
  numVHeads: number;
  headDimQk: number;
  headDimVo: number;
  smScale?: number; // default 1 / sqrt(headDimQk)
  softcap?: number; // 0: none
  causal?: boolean; // query i sees keys j <= kvLens[b] - qLen + i
  window?: number; // of these, only the last `window` keys; 0: none
  kvLens?: readonly number[]; // default kvLen everywhere
  selectiveV?: SelectiveV;
}

/**
 * Softmax attention. Q head i reads K head floor(i numKHeads / numQHeads) and V head
 * floor(i numVHeads / numQHeads): equation 3 of the paper. A query that sees no key has the output
 * 0 and lse = -Infinity.
 * Returns out [batchSize, qLen, numQHeads, headDimVo] and lse [batchSize, numQHeads, qLen].
 */
export function attention(input: AttentionInput): { out: Float64Array; lse: Float64Array } {
  const { q, k, v, batchSize, qLen, kvLen, numQHeads, numKHeads, numVHeads, headDimQk, headDimVo } = input;
  const smScale = input.smScale ?? 1 / Math.sqrt(headDimQk);
  const out = new Float64Array(batchSize * qLen * numQHeads * headDimVo);
  const lse = new Float64Array(batchSize * numQHeads * qLen);
  for (let b = 0; b < batchSize; b++) {
    const length = input.kvLens?.[b] ?? kvLen;
    for (let i = 0; i < qLen; i++) {
      const visible = input.causal ? Math.min(length, length - qLen + i + 1) : length;
      const first = input.window ? Math.max(0, visible - input.window) : 0;
      for (let head = 0; head < numQHeads; head++) {
        const kHead = Math.floor((head * numKHeads) / numQHeads);
        const vHead = Math.floor((head * numVHeads) / numQHeads);
        const qRow = ((b * qLen + i) * numQHeads + head) * headDimQk;
        const scores: number[] = [];
        for (let j = first; j < visible; j++) {
          const kRow = ((b * kvLen + j) * numKHeads + kHead) * headDimQk;
          let dot = 0;
          for (let d = 0; d < headDimQk; d++) dot += (q[qRow + d] as number) * (k[kRow + d] as number);
          const score = smScale * dot;
          scores.push(input.softcap ? input.softcap * Math.tanh(score / input.softcap) : score);
        }
        const { weights, logSumExp } = softmax(scores);
        lse[(b * numQHeads + head) * qLen + i] = logSumExp;
        if (input.selectiveV) keepLargest(scores, weights, input.selectiveV);
        const outRow = ((b * qLen + i) * numQHeads + head) * headDimVo;
        for (let j = first; j < visible; j++) {
          const vRow = ((b * kvLen + j) * numVHeads + vHead) * headDimVo;
          const weight = weights[j - first] as number;
          if (input.selectiveV && weight === 0) continue; // dropped rows are not read
          for (let d = 0; d < headDimVo; d++)
            out[outRow + d] = (out[outRow + d] as number) + weight * (v[vRow + d] as number);
        }
      }
    }
  }
  return { out, lse };
}

function softmax(scores: number[]): { weights: number[]; logSumExp: number } {
  let max = Number.NEGATIVE_INFINITY;
  for (const score of scores) max = Math.max(max, score); // Math.max propagates NaN
  const weights = scores.map((score) => Math.exp(score - max));
  let sum = 0;
  for (const weight of weights) sum += weight;
  return { weights: weights.map((weight) => weight / sum), logSumExp: max + Math.log(sum) };
}

/**
 * Selective V (paper, B.2): zeroes all weights except those of the topK highest scores. The earlier
 * of two equal scores wins.
 */
function keepLargest(scores: number[], weights: number[], { topK, renormalize }: SelectiveV): void {
  const order = scores.map((_, j) => j).sort((a, b) => (scores[b] as number) - (scores[a] as number) || a - b);
  for (const j of order.slice(topK)) weights[j] = 0;
  if (!renormalize) return;
  let sum = 0;
  for (const weight of weights) sum += weight;
  for (let j = 0; j < weights.length; j++) weights[j] = (weights[j] as number) / sum;
}

/** Rows of K or V as i8 or f8e4m3, each with a bf16 scale. */
export interface QuantizedRows {
  values: Int8Array | Uint8Array; // i8 values, or f8e4m3 codes
  scales: Float32Array; // [numRows]
}

const largest = { i8: 127, f8e4m3: 448 } as const;

/**
 * Quantizes each row of x [numRows, rowLength], f32 values, by its largest magnitude m: scale = m /
 * 127 or m / 448 in f32, rounded up to bf16; value = x / scale in f32, rounded to nearest, ties to
 * even. If m < 2^-100, scale and values are 0. If the row contains NaN or an infinity, values are 0
 * and the scale is NaN.
 */
export function quantizeRows(x: Float32Array, rowLength: number, type: QuantizedType): QuantizedRows {
  const { abs, fround, max } = Math;
  const scales = new Float32Array(x.length / rowLength);
  const values = type === 'i8' ? new Int8Array(x.length) : new Uint8Array(x.length);
  for (let row = 0; row < scales.length; row++) {
    const [start, end] = [row * rowLength, (row + 1) * rowLength];
    let m = 0;
    for (let i = start; i < end; i++) m = max(m, abs(x[i] as number)); // max propagates NaN
    if (!Number.isFinite(m)) scales[row] = Number.NaN;
    if (!(m >= 2 ** -100 && m < Infinity)) continue;
    const scale = bf16RoundedUp(fround(m / largest[type]));
    scales[row] = scale;
    for (let i = start; i < end; i++) {
      const quotient = fround((x[i] as number) / scale);
      values[i] = type === 'i8' ? roundHalfEven(quotient) : toF8e4m3Bits(quotient);
    }
  }
  return { values, scales };
}

/** The smallest bf16 that is not below a positive f32 value. */
function bf16RoundedUp(value: number): number {
  const bits = new Uint32Array(Float32Array.of(value).buffer)[0] as number;
  return fromBf16Bits((bits + 0xffff) >>> 16);
}

/** The values of rows without their scales. */
export function unscaledRows({ values }: QuantizedRows): Float32Array {
  if (values instanceof Int8Array) return new Float32Array(values);
  const { length } = values;
  const x = new Float32Array(length);
  for (let i = 0; i < length; i++) x[i] = fromF8e4m3Bits(values[i] as number);
  return x;
}

/** value * scale, row by row. Exact, because a product has at most 15 significant bits. */
export function dequantizeRows(rows: QuantizedRows): Float32Array {
  const x = unscaledRows(rows);
  const rowLength = x.length / rows.scales.length;
  for (let i = 0; i < x.length; i++) x[i] = (x[i] as number) * (rows.scales[(i / rowLength) | 0] as number);
  return x;
}

/** x [numTokens, inFeatures] weight [outFeatures, inFeatures] -> x weight^T [numTokens, outFeatures]. */
export function matmul(
  x: Numbers,
  weight: Numbers,
  numTokens: number,
  inFeatures: number,
  outFeatures: number,
): Float64Array {
  const out = new Float64Array(numTokens * outFeatures);
  for (let t = 0; t < numTokens; t++) {
    for (let o = 0; o < outFeatures; o++) {
      let dot = 0;
      for (let i = 0; i < inFeatures; i++)
        dot += (x[t * inFeatures + i] as number) * (weight[o * inFeatures + i] as number);
      out[t * outFeatures + o] = dot;
    }
  }
  return out;
}

/** The probability that a standard normal number exceeds a >= 0. */
function normalTail(a: number): number {
  const density = Math.exp((-a * a) / 2) / Math.sqrt(2 * Math.PI);
  if (a < 2.5) {
    // density (a + a^3 / 3 + a^5 / (3 5) + ...) is the probability of [0, a].
    let sum = 0;
    for (let term = a, n = 1; term > 1e-18 * sum; n += 2, term *= (a * a) / n) sum += term;
    return 0.5 - density * sum;
  }
  // The continued fraction density / (a + 1 / (a + 2 / (a + 3 / ...))).
  let fraction = a;
  for (let n = 200; n >= 1; n--) fraction = a + n / fraction;
  return density / fraction;
}

/** The activations of csrc/backend/activation.h. */
export const activations = {
  silu: (x) => x / (1 + Math.exp(-x)),
  gelu: (x) => x * (x < 0 ? normalTail(-x) : 1 - normalTail(x)),
  gelu_tanh: (x) => x / (1 + Math.exp(-2 * Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  relu: (x) => Math.max(x, 0),
  relu2: (x) => Math.max(x, 0) ** 2,
} as const satisfies Record<Activation, (x: number) => number>;

export function addBias(x: Numbers, bias: Numbers): Float64Array {
  return Float64Array.from(x, (value, i) => value + (bias[i % bias.length] as number));
}

export function softcap(x: Numbers, cap: number): Float64Array {
  return Float64Array.from(x, (value) => cap * Math.tanh(value / cap));
}

/** activation(gate) * up, or activation(up) without a gate. */
export function gatedActivation(gate: Numbers | null, up: Numbers, activation: Activation = 'silu'): Float64Array {
  const function_ = activations[activation];
  return Float64Array.from(up, (value, i) => (gate ? function_(gate[i] as number) * value : function_(value)));
}

export interface GatedMlpInput {
  x: Numbers; // [numTokens, inFeatures]
  gate: Numbers | null; // [innerSize, inFeatures]
  up: Numbers; // [innerSize, inFeatures]
  down: Numbers; // [outFeatures, innerSize]
  numTokens: number;
  inFeatures: number;
  innerSize: number;
  outFeatures: number;
  activation?: Activation;
}

/**
 * Augmented Q (paper, section 2) and, with other matrices, a layer's FFN: (activation(x gate^T) *
 * (x up^T)) down^T, or activation(x up^T) down^T without a gate.
 */
export function augmentedQ(input: GatedMlpInput): Float64Array {
  const { x, gate, up, down, numTokens, inFeatures, innerSize, outFeatures } = input;
  const inner = gatedActivation(
    gate && matmul(x, gate, numTokens, inFeatures, innerSize),
    matmul(x, up, numTokens, inFeatures, innerSize),
    input.activation,
  );
  return matmul(inner, down, numTokens, innerSize, outFeatures);
}

/**
 * h = residual + x if there is a residual, else x; out = h / sqrt(mean(h^2) + eps) * weight, per
 * token.
 */
export function rmsNorm(
  x: Numbers,
  weight: Numbers,
  eps: number,
  residual?: Numbers,
): { out: Float64Array; residual: Float64Array } {
  const hiddenSize = weight.length;
  const h = Float64Array.from(x, (value, i) => value + (residual?.[i] ?? 0));
  const out = new Float64Array(x.length);
  for (let row = 0; row < x.length; row += hiddenSize) {
    let sum = 0;
    for (let i = 0; i < hiddenSize; i++) sum += (h[row + i] as number) ** 2;
    const scale = 1 / Math.sqrt(sum / hiddenSize + eps);
    for (let i = 0; i < hiddenSize; i++) out[row + i] = (h[row + i] as number) * scale * (weight[i] as number);
  }
  return { out, residual: h };
}

export interface Llama3RopeScaling {
  factor: number;
  low_freq_factor: number;
  high_freq_factor: number;
  original_max_position_embeddings: number;
}

/**
 * The frequencies of RoPE, theta^(-2d / headDim), d < headDim / 2. Llama 3's scaling divides those
 * with wavelengths above original_max / low_freq_factor by factor, keeps those below original_max /
 * high_freq_factor, and interpolates linearly in original_max / wavelength between the two.
 */
export function ropeFrequencies(headDim: number, theta: number, scaling?: Llama3RopeScaling): Float64Array {
  return Float64Array.from({ length: headDim / 2 }, (_, d) => {
    const frequency = theta ** ((-2 * d) / headDim);
    if (!scaling) return frequency;
    const turns = scaling.original_max_position_embeddings * (frequency / (2 * Math.PI));
    if (turns < scaling.low_freq_factor) return frequency / scaling.factor;
    if (turns > scaling.high_freq_factor) return frequency;
    const mix = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
    return (1 - mix) * (frequency / scaling.factor) + mix * frequency;
  });
}

/**
 * Rotate-half RoPE of x [numTokens, numHeads, headDim]: dims d and d + headDim / 2 rotate by
 * position * frequency[d].
 */
export function rope(
  x: Numbers,
  positions: ArrayLike<number>,
  numHeads: number,
  headDim: number,
  frequencies: Numbers,
): Float64Array {
  const out = new Float64Array(x.length);
  const half = headDim / 2;
  for (let t = 0; t < positions.length; t++) {
    for (let head = 0; head < numHeads; head++) {
      const row = (t * numHeads + head) * headDim;
      for (let d = 0; d < half; d++) {
        const angle = (positions[t] as number) * (frequencies[d] as number);
        const a = x[row + d] as number;
        const b = x[row + d + half] as number;
        out[row + d] = a * Math.cos(angle) - b * Math.sin(angle);
        out[row + d + half] = b * Math.cos(angle) + a * Math.sin(angle);
      }
    }
  }
  return out;
}

/** Looks up a row of table [vocabSize, hiddenSize] for each token and multiplies it by scale. */
export function embed(table: Numbers, tokens: ArrayLike<number>, hiddenSize: number, scale = 1): Float64Array {
  const out = new Float64Array(tokens.length * hiddenSize);
  for (let t = 0; t < tokens.length; t++) {
    const row = (tokens[t] as number) * hiddenSize;
    for (let i = 0; i < hiddenSize; i++) out[t * hiddenSize + i] = scale * (table[row + i] as number);
  }
  return out;
}

export function logSumExp(values: Numbers): number {
  return softmax(Array.from(values)).logSumExp;
}

/**
 * The logarithm of softmax(logits). NaN throughout if a logit is NaN or +Infinity, or if none is finite.
 */
export function logProbs(logits: Numbers): Float64Array {
  let largest = Number.NEGATIVE_INFINITY;
  for (const x of logits) largest = Math.max(x, largest);
  let sum = 0;
  for (const x of logits) sum += Math.exp(x - largest);
  return Float64Array.from(logits, (x) => x - largest - Math.log(sum));
}

/** The `count` tokens of the largest logits, the largest first, of equal ones the lowest token first. */
export function topTokens(logits: Numbers, count: number): number[] {
  const order = Array.from(logits, (_, token) => token);
  order.sort((a, b) => (logits[b] as number) - (logits[a] as number) || a - b);
  return order.slice(0, count);
}

/** A quantized weight: integers, i8 or eight i4 in each 32-bit word, and scales of groups. */
export interface PackedWeight {
  values: Int8Array | Int32Array; // i8 [rows, padded columns], or i32 [rows, padded columns / 8]
  scales: Float32Array; // [rows, columns / groupSize], rounded up
  rows: number;
  columns: number;
  groupSize: number;
}

/** The integer of an element of a quantized weight. Rows are padded to a multiple of 32 columns. */
export function packedInteger({ values, columns }: PackedWeight, row: number, column: number): number {
  const padded = Math.ceil(columns / 32) * 32;
  const i = row * padded + column;
  if (values instanceof Int8Array) return values[i] as number;
  const e = i % 8;
  return (((values[(i - e) / 8] as number) >>> (16 * (e % 2) + 4 * (e >> 1))) & 15) - 8;
}

/** The values of a quantized weight, [rows, columns]: scale of the group times integer. */
export function dequantizeWeight(weight: PackedWeight): Float64Array {
  const { scales, rows, columns, groupSize } = weight;
  const groups = Math.ceil(columns / groupSize);
  return Float64Array.from({ length: rows * columns }, (_, i) => {
    const [row, column] = [Math.floor(i / columns), i % columns];
    return (scales[row * groups + Math.floor(column / groupSize)] as number) * packedInteger(weight, row, column);
  });
}
