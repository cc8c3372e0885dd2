import type { NativeDevice, NativeTensor } from './addon';
import { nativeDevice } from './device';
import { awaitNative, checkInteger, checkObject, invalid, refuseNull } from './errors';
import { createTensor, type DType, isTensor, nativeTensor, type Tensor } from './tensor';

/** Only the V rows of the `topK` highest scores of each query head enter the sum (arXiv 2501.13629, B.2). */
export interface SelectiveV {
  /** At least 1; of equal scores the earlier key wins. */
  topK: number;
  /** Let the kept weights add up to 1. Default false: the softmax runs over all keys, as the paper's text has it. */
  renormalize?: boolean;
}

/** q [batch, qLen, numQHeads, headDimQk], k [batch, kvLen, numKHeads, headDimQk], v [batch, kvLen, numVHeads, headDimVo]. */
export interface AttentionPrefillArguments {
  q: Tensor;
  k: Tensor;
  v: Tensor;
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

/** q [batch, numQHeads, headDimQk], k [batch, kvLen, numKHeads, headDimQk], v [batch, kvLen, numVHeads, headDimVo]. */
export interface AttentionDecodeArguments extends Omit<AttentionPrefillArguments, 'causal'> {
  /** Into how many parts the keys of a sequence are split; 0 (the default) lets the device choose. */
  numSplits?: number;
  selectiveV?: SelectiveV;
}

/**
 * The operators of the model, called directly. Each resolves to its output: `out` where given, else a new tensor of the
 * type of its first input. Tensors are row-major and of one device. Q head i reads K head floor(i numKHeads / numQHeads)
 * and V head floor(i numVHeads / numQHeads); numQHeads must be a multiple of both. What does not fit is
 * ERR_INVALID_ARGUMENT, and ERR_DISPOSED what is disposed.
 */
export const kernels = {
  /**
   * Softmax attention of many queries: out = softmax(smScale q k^T) v (arXiv 2501.13629, equation 3). A query that sees
   * no key gives 0, and -Infinity in `lse`.
   */
  async attentionPrefill(args: AttentionPrefillArguments): Promise<Tensor> {
    checkObject('arguments', args);
    const { q, k, v, causal = false, smScale, kvLens, out, lse } = args;
    refuseNull('smScale', 'a number', smScale);
    const [b, l, h] = axes('q', q, 4);
    return run(q, out, q?.dtype, [b, l, h, axes('v', v, 4)[3]], (device, to) =>
      device.attentionPrefill(
        native('q', q),
        native('k', k),
        native('v', v),
        to,
        optional('lse', lse),
        optional('kvLens', kvLens),
        causal,
        smScale,
      ),
    );
  },

  /** Softmax attention of one query per sequence: out [batch, numQHeads, headDimVo]; `lse` is [batch, numQHeads], over all keys. */
  async attentionDecode(args: AttentionDecodeArguments): Promise<Tensor> {
    checkObject('arguments', args);
    const { q, k, v, smScale, kvLens, numSplits = 0, selectiveV, out, lse } = args;
    refuseNull('smScale', 'a number', smScale);
    const { topK, renormalize } = checkSelectiveV(selectiveV);
    const [b, h] = axes('q', q, 3);
    return run(q, out, q?.dtype, [b, h, axes('v', v, 4)[3]], (device, to) =>
      device.attentionDecode(
        native('q', q),
        native('k', k),
        native('v', v),
        to,
        optional('lse', lse),
        optional('kvLens', kvLens),
        smScale,
        numSplits,
        topK,
        renormalize,
      ),
    );
  },

  /** down( silu(x gate^T) * (x up^T) ): x [tokens, qDim], gate and up [augQ, qDim], down [qDim, augQ] (arXiv 2501.13629, section 2). */
  async augmentedQ(args: { x: Tensor; gate: Tensor; up: Tensor; down: Tensor; out?: Tensor }): Promise<Tensor> {
    checkObject('arguments', args);
    const { x, gate, up, down, out } = args;
    return run(x, out, x?.dtype, [axes('x', x, 2)[0], axes('down', down, 2)[0]], (device, to) =>
      device.augmentedQ(native('x', x), native('gate', gate), native('up', up), native('down', down), to),
    );
  },

  /** x weight^T: x [tokens, in], weight [out, in] -> [tokens, out]. Sums in float32. */
  async matmul(args: { x: Tensor; weight: Tensor; out?: Tensor }): Promise<Tensor> {
    checkObject('arguments', args);
    const { x, weight, out } = args;
    return run(x, out, x?.dtype, [axes('x', x, 2)[0], axes('weight', weight, 2)[0]], (device, to) =>
      device.matmul(native('x', x), native('weight', weight), to),
    );
  },

  /**
   * h / sqrt(mean(h^2) + eps) * weight (arXiv 1910.07467): x [tokens, hidden], weight [hidden]. h = x; where `residual`
   * [tokens, hidden] is given, x is added to it in place first, and h = residual.
   */
  async rmsNorm(args: { x: Tensor; weight: Tensor; eps: number; residual?: Tensor; out?: Tensor }): Promise<Tensor> {
    checkObject('arguments', args);
    const { x, weight, eps, residual, out } = args;
    return run(x, out, x?.dtype, x?.shape, (device, to) =>
      device.rmsNorm(native('x', x), native('weight', weight), to, optional('residual', residual), eps),
    );
  },

  /**
   * Rotates the pairs (d, d + headDim/2) of each head by positions[t] theta^(-2d/headDim) radians (arXiv 2104.09864):
   * x [tokens, heads, headDim], positions i32 [tokens]. `out` may be x.
   */
  async rope(args: { x: Tensor; positions: Tensor; theta: number; out?: Tensor }): Promise<Tensor> {
    checkObject('arguments', args);
    const { x, positions, theta, out } = args;
    return run(x, out, x?.dtype, x?.shape, (device, to) =>
      device.rope(native('x', x), native('positions', positions), to, theta),
    );
  },

  /** silu(gate) * up, elementwise, with silu(a) = a / (1 + exp(-a)); one shape and type. `out` may be gate or up. */
  async siluMul(args: { gate: Tensor; up: Tensor; out?: Tensor }): Promise<Tensor> {
    checkObject('arguments', args);
    const { gate, up, out } = args;
    return run(gate, out, gate?.dtype, gate?.shape, (device, to) =>
      device.siluMul(native('gate', gate), native('up', up), to),
    );
  },

  /** Rows of a table: table [vocab, hidden], tokens i32 [tokens], each from 0 to vocab - 1 -> [tokens, hidden]. */
  async embed(args: { table: Tensor; tokens: Tensor; out?: Tensor }): Promise<Tensor> {
    checkObject('arguments', args);
    const { table, tokens, out } = args;
    return run(table, out, table?.dtype, [axes('tokens', tokens, 1)[0], axes('table', table, 2)[1]], (device, to) =>
      device.embed(native('table', table), native('tokens', tokens), to),
    );
  },
};

function native(name: string, value: Tensor): NativeTensor {
  if (!isTensor(value)) throw invalid(name, 'a tensor', value);
  return nativeTensor(value);
}

function optional(name: string, value: Tensor | undefined): NativeTensor | undefined {
  return value === undefined ? undefined : native(name, value);
}

// The sizes from which the shape of the output is made. The addon checks that all shapes fit.
function axes(name: string, value: Tensor, rank: number): readonly number[] {
  native(name, value);
  if (value.shape.length !== rank)
    throw invalid(`the shape of ${name}`, `of ${rank} axes`, `[${value.shape.join(', ')}]`);
  return value.shape;
}

async function run(
  first: Tensor,
  out: Tensor | undefined,
  dtype: DType,
  shape: readonly (number | undefined)[],
  call: (device: NativeDevice, out: NativeTensor) => Promise<void>,
): Promise<Tensor> {
  native('the first tensor', first);
  const to = out === undefined ? createTensor(first.device, dtype, shape as number[], null) : out;
  try {
    const nativeOut = native('out', to);
    await awaitNative(() => call(nativeDevice(first.device), nativeOut));
  } catch (error) {
    if (out === undefined) to.dispose();
    throw error;
  }
  return to;
}

/** The two numbers that the addon takes; topK 0 is off. */
export function checkSelectiveV(selectiveV: SelectiveV | undefined): { topK: number; renormalize: boolean } {
  if (selectiveV === undefined) return { topK: 0, renormalize: false };
  checkObject('selectiveV', selectiveV);
  const { topK, renormalize = false } = selectiveV;
  checkInteger('selectiveV.topK', topK, 1);
  if (typeof renormalize !== 'boolean') throw invalid('selectiveV.renormalize', 'a boolean', renormalize);
  return { topK, renormalize };
}
