import type { NativeDevice, NativeTensor } from './addon';
import {
  type AttentionDecodeArguments,
  type AttentionPrefillArguments,
  checkSelectiveV,
} from './attention';
import { nativeDevice } from './device';
import { awaitNative, checkObject, invalid, refuseNull } from './errors';
import { createTensor, type DType, isTensor, nativeTensor, type Tensor } from './tensor';

export {
  type AttentionDecodeArguments,
  type AttentionPrefillArguments,
  checkSelectiveV,
  type SelectiveV,
} from './attention';

/**
 * The operators of the model, called directly. Each resolves to its output: `out` where given, else a new tensor of the
 * type of its first input (`quantize`: of `dtype`). Tensors are row-major and of one device. Q head i reads K head
 * floor(i numKHeads / numQHeads) and V head floor(i numVHeads / numQHeads); numQHeads must be a multiple of both. What
 * does not fit is ERR_INVALID_ARGUMENT, and ERR_DISPOSED what is disposed. Tensors are f32, f16 or bf16, where nothing else
 * is said.
 */
export const kernels = {
  /**
   * Softmax attention of many queries: out = softmax(smScale q k^T) v (arXiv 2501.13629, equation 3). A query that sees
   * no key gives 0, and -Infinity in `lse`.
   */
  async attentionPrefill(args: AttentionPrefillArguments): Promise<Tensor> {
    checkObject('arguments', args);
    const { q, k, v, kScales, vScales, causal = false, smScale, kvLens, out, lse } = args;
    refuseNull('smScale', 'a number', smScale);
    const [b, l, h] = axes('q', q, 4);
    return run(q, out, q?.dtype, [b, l, h, axes('v', v, 4)[3]], (device, to) =>
      device.attentionPrefill(
        native('q', q),
        native('k', k),
        native('v', v),
        optional('kScales', kScales),
        optional('vScales', vScales),
        to,
        optional('lse', lse),
        optional('kvLens', kvLens),
        causal,
        smScale,
      ),
    );
  },

  /**
   * Softmax attention of one query per sequence (arXiv 2501.13629, equation 3; selective V: its B.2): out [batch, numQHeads,
   * headDimVo]; `lse` is [batch, numQHeads], over all keys.
   */
  async attentionDecode(args: AttentionDecodeArguments): Promise<Tensor> {
    checkObject('arguments', args);
    const {
      q,
      k,
      v,
      kScales,
      vScales,
      smScale,
      kvLens,
      numSplits = 0,
      selectiveV,
      out,
      lse,
    } = args;
    refuseNull('smScale', 'a number', smScale);
    const { topK, renormalize } = checkSelectiveV(selectiveV);
    const [b, h] = axes('q', q, 3);
    return run(q, out, q?.dtype, [b, h, axes('v', v, 4)[3]], (device, to) =>
      device.attentionDecode(
        native('q', q),
        native('k', k),
        native('v', v),
        optional('kScales', kScales),
        optional('vScales', vScales),
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

  /**
   * Symmetric quantisation of each row (the last axis) of x, f32, f16 or bf16 of 2 to 4 axes, by its largest magnitude m:
   * scale = m / 127 for i8 or m / 448 for f8e4m3, computed in f32 and rounded up to bf16, and value = x / scale, divided in
   * f32 and rounded to nearest, ties to even. Where m is below 2^-100, scale and values are 0. A row with a NaN or an
   * infinity has values of 0 and the scale NaN, so that all of it reads as NaN. Resolves to `values`, of type `dtype` and the
   * shape of x (`out` where given), and `scales`, bf16, of the shape of x without its last axis.
   */
  async quantize(args: {
    x: Tensor;
    dtype: 'i8' | 'f8e4m3';
    out?: Tensor;
    scales?: Tensor;
  }): Promise<{
    /** Of type `dtype`, and the shape of x. */
    values: Tensor;
    /** bf16, of the shape of x without its last axis. */
    scales: Tensor;
  }> {
    checkObject('arguments', args);
    const { x, dtype, out, scales: given } = args;
    native('x', x);
    if (dtype !== 'i8' && dtype !== 'f8e4m3') throw invalid('dtype', "'i8' or 'f8e4m3'", dtype);
    optional('out', out);
    if (out !== undefined && out.dtype !== dtype)
      throw invalid('the type of out', `${dtype}, as dtype`, out.dtype);
    const scales =
      given === undefined ? createTensor(x.device, 'bf16', x.shape.slice(0, -1), null) : given;
    try {
      const values = await run(x, out, dtype, x.shape, (device, to) =>
        device.quantize(native('x', x), to, native('scales', scales)),
      );
      return { values, scales };
    } catch (error) {
      if (given === undefined) scales.dispose();
      throw error;
    }
  },

  /**
   * down( silu(x gate^T) * (x up^T) ): x [tokens, qDim], gate and up [augQ, qDim], down [qDim, augQ] -> [tokens, qDim]
   * (arXiv 2501.13629, section 2). gate, up and down are of one type.
   */
  async augmentedQ(args: {
    x: Tensor;
    gate: Tensor;
    up: Tensor;
    down: Tensor;
    out?: Tensor;
  }): Promise<Tensor> {
    checkObject('arguments', args);
    const { x, gate, up, down, out } = args;
    return run(x, out, x?.dtype, [axes('x', x, 2)[0], axes('down', down, 2)[0]], (device, to) =>
      device.augmentedQ(
        native('x', x),
        native('gate', gate),
        native('up', up),
        native('down', down),
        to,
      ),
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
   * [tokens, hidden] is given, x is added to it in place first, and h = residual. `eps` is at least 0. -> [tokens, hidden]
   */
  async rmsNorm(args: {
    x: Tensor;
    weight: Tensor;
    eps: number;
    residual?: Tensor;
    out?: Tensor;
  }): Promise<Tensor> {
    checkObject('arguments', args);
    const { x, weight, eps, residual, out } = args;
    return run(x, out, x?.dtype, x?.shape, (device, to) =>
      device.rmsNorm(
        native('x', x),
        native('weight', weight),
        to,
        optional('residual', residual),
        eps,
      ),
    );
  },

  /**
   * Rotates the pairs (d, d + headDim/2) of each head by positions[t] theta^(-2d/headDim) radians (arXiv 2104.09864):
   * x [tokens, heads, headDim] with headDim even, positions i32 [tokens], theta at least 1. `out`, of the type of x, may be x.
   */
  async rope(args: { x: Tensor; positions: Tensor; theta: number; out?: Tensor }): Promise<Tensor> {
    checkObject('arguments', args);
    const { x, positions, theta, out } = args;
    return run(x, out, x?.dtype, x?.shape, (device, to) =>
      device.rope(native('x', x), native('positions', positions), to, theta),
    );
  },

  /** silu(gate) * up, elementwise, with silu(a) = a / (1 + exp(-a)) (arXiv 2002.05202); one shape and type. `out` may be gate or up. */
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
    return run(
      table,
      out,
      table?.dtype,
      [axes('tokens', tokens, 1)[0], axes('table', table, 2)[1]],
      (device, to) => device.embed(native('table', table), native('tokens', tokens), to),
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
