import { checkInteger, checkObject, invalid } from './errors';
import type { Tensor } from './tensor';

/** Only the V rows of the `topK` highest scores of each query head enter the sum (arXiv 2501.13629, B.2). */
export interface SelectiveV {
  /** At least 1; of equal scores the earlier key wins. */
  topK: number;
  /** Let the kept weights add up to 1. Default false: the softmax runs over all keys, as the paper's text has it. */
  renormalize?: boolean;
}

/**
 * What {@link kernels}.attentionPrefill takes: q [batch, qLen, numQHeads, headDimQk], k [batch, kvLen, numKHeads, headDimQk],
 * v [batch, kvLen, numVHeads, headDimVo]. q and out are each f32, f16 or bf16; k and v each f32, f16, bf16, i8 or f8e4m3, in any pair. i8 and f8e4m3 come with scales,
 * one for each token and head: an element means itself times the scale of its row (`kernels.quantize` makes both).
 */
export interface AttentionPrefillArguments {
  /** [batch, qLen, numQHeads, headDimQk]; f32, f16 or bf16. */
  q: Tensor;
  /** [batch, kvLen, numKHeads, headDimQk]; numKHeads divides numQHeads. */
  k: Tensor;
  /** [batch, kvLen, numVHeads, headDimVo]; numVHeads divides numQHeads. */
  v: Tensor;
  /** bf16 [batch, kvLen, numKHeads]: needed where k is i8 or f8e4m3, and refused where it is not. */
  kScales?: Tensor;
  /** bf16 [batch, kvLen, numVHeads]: needed where v is i8 or f8e4m3, and refused where it is not. */
  vScales?: Tensor;
  /** Query i sees the keys j <= kvLen - qLen + i. Default false. */
  causal?: boolean;
  /** Default 1 / sqrt(headDimQk). */
  smScale?: number;
  /** i32 [batch], each from 0 to kvLen: how many keys each sequence has. Default: all. */
  kvLens?: Tensor;
  /** [batch, qLen, numQHeads, headDimVo]; default: a new tensor of the type of q. */
  out?: Tensor;
  /** f32 [batch, numQHeads, qLen], to be filled with log(sum(exp(smScale q.k))). */
  lse?: Tensor;
}

/**
 * What {@link kernels}.attentionDecode takes: one query per sequence. q [batch, numQHeads, headDimQk]; k and v, their types
 * and scales, as for prefill; out [batch, numQHeads, headDimVo].
 */
export interface AttentionDecodeArguments extends Omit<AttentionPrefillArguments, 'causal'> {
  /** [batch, numQHeads, headDimQk]; f32, f16 or bf16. */
  q: Tensor;
  /** [batch, numQHeads, headDimVo]; default: a new tensor of the type of q. */
  out?: Tensor;
  /** f32 [batch, numQHeads], to be filled with log(sum(exp(smScale q.k))), over all keys. */
  lse?: Tensor;
  /** Into how many parts the keys of a sequence are split; 0 (the default) lets the device choose. */
  numSplits?: number;
  /** Read only some V rows. Default: all of them. */
  selectiveV?: SelectiveV;
}

/** The two numbers that the addon takes; topK 0 is off. */
export function checkSelectiveV(selectiveV: SelectiveV | undefined): {
  topK: number;
  renormalize: boolean;
} {
  if (selectiveV === undefined) return { topK: 0, renormalize: false };
  checkObject('selectiveV', selectiveV);
  const { topK, renormalize = false } = selectiveV;
  checkInteger('selectiveV.topK', topK, 1);
  if (typeof renormalize !== 'boolean')
    throw invalid('selectiveV.renormalize', 'a boolean', renormalize);
  return { topK, renormalize };
}
