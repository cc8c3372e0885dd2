// What must be moved and computed, and the sums of the paper: arithmetic alone.
import type { DType, ModelConfig } from '../lib/index';
import type { HeadShape } from './shapes';

/** Bytes of one row of a head in a cache of this type, its scale (a bf16) included. */
export function rowBytes(type: DType, dim: number): number {
  if (type === 'i8' || type === 'f8e4m3') return dim + 2;
  return dim * (type === 'f32' || type === 'i32' ? 4 : 2);
}

/** Bytes that one token takes in the cache of one layer (equation 1). */
export function cacheBytes(heads: HeadShape, kType: DType = 'bf16', vType: DType = 'bf16'): number {
  const { numKHeads, numVHeads, headDimQk, headDimVo } = heads;
  return numKHeads * rowBytes(kType, headDimQk) + numVHeads * rowBytes(vType, headDimVo);
}

/** Bytes that decode attention must read with selective V: all K, and `topK` V rows for each query head at most. */
export function selectiveBytes(heads: HeadShape, kvLen: number, topK: number): number {
  const { numQHeads, numKHeads, numVHeads, headDimQk, headDimVo } = heads;
  const vRows = Math.min(topK * numQHeads, kvLen * numVHeads);
  return kvLen * numKHeads * rowBytes('bf16', headDimQk) + vRows * rowBytes('bf16', headDimVo);
}

/** FLOPs of one query of every head over `kvLen` keys. */
export function decodeFlops({ numQHeads, headDimQk, headDimVo }: HeadShape, kvLen: number): number {
  return 2 * numQHeads * (headDimQk + headDimVo) * kvLen;
}

/** FLOPs of `length` queries over themselves; causal: only over the keys that each one sees. */
export function prefillFlops(heads: HeadShape, length: number, causal: boolean): number {
  return decodeFlops(heads, 1) * length * (causal ? (length + 1) / 2 : length);
}

/** Lengths of the cache that the output tokens meet: each has its own key and value in it. */
export function outputLengths(prefix: number, outputTokens: number): number[] {
  return Array.from({ length: outputTokens }, (_, i) => prefix + i + 1);
}

/** How much less `ours` is than `theirs`, in percent. */
export function saving(ours: number, theirs: number): number {
  return (1 - ours / theirs) * 100;
}

/** A quantity at one length. */
export interface Point {
  length: number;
  value: number;
}

/**
 * The sum over the lengths from + 1 ... to of a quantity known at some lengths: between two of them it lies on their line,
 * below the shortest it is that of the shortest. Null where `to` is past the longest.
 */
export function sumOver(points: readonly Point[], from: number, to: number): number | null {
  const sorted = [...points].sort((a, b) => a.length - b.length);
  const first = sorted[0];
  const last = sorted[sorted.length - 1];
  if (first === undefined || last === undefined || to > last.length) return null;
  let sum = first.value * Math.max(0, Math.min(to, first.length) - from);
  for (let i = 1; i < sorted.length; ++i) {
    const [a, b] = [sorted[i - 1] as Point, sorted[i] as Point];
    const low = Math.max(from, a.length);
    const high = Math.min(to, b.length);
    if (high <= low) continue;
    const at = (length: number) => a.value + ((b.value - a.value) * (length - a.length)) / (b.length - a.length);
    sum += ((high - low) * (at(low + 1) + at(high))) / 2; // an arithmetic series
  }
  return sum;
}

/** Weights of the linear layers of one layer: K and V, which every token needs, and the rest. q_proj is folded into augmented Q. */
export function layerWeights(config: ModelConfig): { keyValue: number; rest: number } {
  const { hiddenSize, intermediateSize, augQSize, numQHeads, numKHeads, numVHeads, headDimQk, headDimK, headDimVo } =
    config;
  const query =
    augQSize === 0 ? hiddenSize * numQHeads * headDimQk : augQSize * (2 * hiddenSize + numQHeads * headDimQk);
  return {
    keyValue: hiddenSize * (numKHeads * headDimK + numVHeads * headDimVo),
    rest: query + hiddenSize * numQHeads * headDimVo + 3 * hiddenSize * intermediateSize,
  };
}

/** FLOPs of a prefill that gives the last token's logits: in the last layer the others need no more than their K and V. */
export function modelPrefillFlops(config: ModelConfig, tokens: number): number {
  const { numLayers, hiddenSize, vocabSize } = config;
  const { keyValue, rest } = layerWeights(config);
  const linear = 2 * (tokens * (numLayers * keyValue + (numLayers - 1) * rest) + rest + hiddenSize * vocabSize);
  return linear + (numLayers - 1) * prefillFlops(config, tokens, true) + decodeFlops(config, tokens);
}

/** Bytes that a decode step reads: every weight once (of an embedding of its own, one row), and the caches of all sequences. */
export function stepBytes(config: ModelConfig, weightBytes: number, kvLens: readonly number[]): number {
  const embedding = config.tieWordEmbeddings ? 0 : 2 * config.vocabSize * config.hiddenSize;
  const cached = kvLens.reduce((sum, length) => sum + length, 0) * config.numLayers;
  return weightBytes - embedding + cached * cacheBytes({ ...config, headDimQk: config.headDimK });
}
