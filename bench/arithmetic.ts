// The bytes and FLOPs that operators need at least, and the sums of the paper.
import type { DType, ModelConfig } from '../lib/index';
import type { HeadShape } from './shapes';

/** Bytes of one row of a head in a cache of this type, including its scale (a bf16). */
export function rowBytes(type: DType, dim: number): number {
  if (type === 'i8' || type === 'f8e4m3') return dim + 2;
  return dim * (type === 'f32' || type === 'i32' ? 4 : 2);
}

/** Bytes of one token in the cache of one layer (equation 1). */
export function cacheBytes(heads: HeadShape, kType: DType = 'bf16', vType: DType = 'bf16'): number {
  const { numKHeads, numVHeads, headDimQk, headDimVo } = heads;
  return numKHeads * rowBytes(kType, headDimQk) + numVHeads * rowBytes(vType, headDimVo);
}

/** The same of a model. */
export function modelCacheBytes(config: ModelConfig, kType: DType = 'bf16', vType: DType = 'bf16'): number {
  const { headDimK, numVHeads, vSharesK } = config;
  return cacheBytes({ ...config, headDimQk: headDimK, numVHeads: vSharesK ? 0 : numVHeads }, kType, vType);
}

/** Bytes that decode attention must read with selective V: all K, and up to `topK` V rows for each query head. */
export function selectiveBytes(heads: HeadShape, kvLen: number, topK: number): number {
  const { numQHeads, numKHeads, numVHeads, headDimQk, headDimVo } = heads;
  const vRows = Math.min(topK * numQHeads, kvLen * numVHeads);
  return kvLen * numKHeads * rowBytes('bf16', headDimQk) + vRows * rowBytes('bf16', headDimVo);
}

/** FLOPs of one query of every head over `kvLen` keys. */
export function decodeFlops({ numQHeads, headDimQk, headDimVo }: HeadShape, kvLen: number): number {
  return 2 * numQHeads * (headDimQk + headDimVo) * kvLen;
}

/** FLOPs of the attention of `length` tokens to each other. If `causal`, a token only attends to itself and earlier ones. */
export function prefillFlops(heads: HeadShape, length: number, causal: boolean): number {
  return decodeFlops(heads, 1) * length * (causal ? (length + 1) / 2 : length);
}

/** Length of the cache at each output token, which includes the token's own K and V. */
export function outputLengths(prefix: number, outputTokens: number): number[] {
  return Array.from({ length: outputTokens }, (_, i) => prefix + i + 1);
}

/** The saving of `ours` relative to `theirs`, in percent. */
export function saving(ours: number, theirs: number): number {
  return (1 - ours / theirs) * 100;
}

/** A quantity at one length. */
export interface Point {
  length: number;
  value: number;
}

/**
 * The sum of a quantity over the lengths from + 1, ..., to. Between two known lengths it is interpolated linearly; below
 * the shortest it is that of the shortest. Null if `to` exceeds the longest.
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

/**
 * Number of weights in the linear layers of one layer: those of K and V, which every token needs, and the rest. q_proj is
 * folded into augmented Q.
 */
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

/** FLOPs of a prefill that returns the logits of the last token. In the last layer the other tokens only need K and V. */
export function modelPrefillFlops(config: ModelConfig, tokens: number): number {
  const { numLayers, numWindowLayers, slidingWindow = 0, hiddenSize, vocabSize } = config;
  const { keyValue, rest } = layerWeights(config);
  const linear = 2 * (tokens * (numLayers * keyValue + (numLayers - 1) * rest) + rest + hiddenSize * vocabSize);
  const attention = (numLayers - 1) * prefillFlops(config, tokens, true) + decodeFlops(config, tokens);
  // Pairs of a query and a key that a window hides.
  const hidden = Math.max(0, tokens - slidingWindow);
  const unread = slidingWindow > 0 ? (numWindowLayers * hidden * (hidden + 1)) / 2 : 0;
  return linear + attention - unread * decodeFlops(config, 1);
}

/**
 * Bytes that a decode step reads: every weight once, and the caches of all sequences. Of an embedding that is not tied it
 * reads one row only, which is not counted.
 */
export function stepBytes(config: ModelConfig, weightBytes: number, kvLens: readonly number[]): number {
  const embedding = config.tieWordEmbeddings ? 0 : 2 * config.vocabSize * config.hiddenSize;
  const { numLayers, numWindowLayers, slidingWindow = Infinity } = config;
  const rows = (length: number) =>
    (numLayers - numWindowLayers) * length + numWindowLayers * Math.min(length, slidingWindow);
  const cached = kvLens.reduce((sum, length) => sum + rows(length), 0);
  return weightBytes - embedding + cached * modelCacheBytes(config);
}
