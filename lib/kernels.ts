import type { NativeDevice, NativeSelectiveV, NativeTensor } from './addon';
import {
  awaitNative,
  checkBoolean,
  checkGroupSize,
  checkInteger,
  checkNotNull,
  invalid,
  invalidArgument,
} from './errors';
import { native } from './internal';
import { type OptionNames, readOptions } from './options';
import { type DType, Tensor } from './tensor';

/**
 * Selective V: each query reads only the V rows of its highest scores (arXiv 2501.13629, B.2).
 */
export interface SelectiveV {
  /** V rows to read per query head, at least 1. If scores are equal, the earlier key is used. */
  topK: number;
  /**
   * Scale the weights of these rows so that their sum is 1. Default false: the softmax is over all
   * keys, as in the paper.
   */
  renormalize?: boolean;
}

/**
 * Arguments of {@link kernels}.attentionPrefill. q and out may each be f32, f16 or bf16. k and v
 * may each be f32, f16, bf16, i8 or f8e4m3, in any combination. i8 and f8e4m3 require scales, one
 * for each token and head: the value of an element is the element times the scale of its row.
 * {@link kernels}.quantize makes both.
 */
export interface AttentionPrefillArguments {
  /** [batch, qLen, numQHeads, headDimQk]; f32, f16 or bf16. */
  q: Tensor;
  /** [batch, kvLen, numKHeads, headDimQk]. numQHeads is a multiple of numKHeads. */
  k: Tensor;
  /** [batch, kvLen, numVHeads, headDimVo]. numQHeads is a multiple of numVHeads. */
  v: Tensor;
  /** bf16 [batch, kvLen, numKHeads]. Required if k is i8 or f8e4m3, else not allowed. */
  kScales?: Tensor;
  /** bf16 [batch, kvLen, numVHeads]. Required if v is i8 or f8e4m3, else not allowed. */
  vScales?: Tensor;
  /** Query i attends to the keys j <= kvLen - qLen + i only. Default false. */
  causal?: boolean;
  /** Factor of the scores. Default 1 / sqrt(headDimQk). */
  smScale?: number;
  /**
   * Soft cap of the scores: each score s becomes softcap tanh(s / softcap), before the softmax and
   * before selective V chooses. Finite and at least 0. Default 0: none.
   */
  softcap?: number;
  /**
   * Sliding window: of the keys that a query attends to, only the last `window` ones count. The
   * others are not read. An integer of at least 0. Default 0: none. Requires `causal` in
   * attentionPrefill.
   */
  window?: number;
  /** i32 [batch]: number of keys of each sequence, from 0 to kvLen. Default: kvLen. */
  kvLens?: Tensor;
  /** [batch, qLen, numQHeads, headDimVo]. Default: a new tensor of the dtype of q. */
  out?: Tensor;
  /** Output, f32 [batch, numQHeads, qLen]: log(sum(exp(score))) over the keys attended to. */
  lse?: Tensor;
}

/**
 * Arguments of {@link kernels}.attentionDecode, which has one query per sequence. k, v and their
 * scales are the same as for prefill.
 */
export interface AttentionDecodeArguments extends Omit<AttentionPrefillArguments, 'causal'> {
  /** [batch, numQHeads, headDimQk]; f32, f16 or bf16. */
  q: Tensor;
  /** [batch, numQHeads, headDimVo]. Default: a new tensor of the dtype of q. */
  out?: Tensor;
  /** Output, f32 [batch, numQHeads]: log(sum(exp(score))) over all keys, or those of the window. */
  lse?: Tensor;
  /** Number of parts to split the keys of a sequence into. Default 0: the device chooses. */
  numSplits?: number;
  /** Read only some of the V rows. Default: read all. */
  selectiveV?: SelectiveV;
}

/**
 * The activation of a gated MLP. `silu`: a / (1 + exp(-a)); `gelu`: a (1 + erf(a / sqrt(2))) / 2;
 * `gelu_tanh`: a (1 + tanh(sqrt(2 / pi) (a + 0.044715 a^3))) / 2; `relu`: max(a, 0); `relu2`:
 * max(a, 0)^2.
 */
export type Activation = 'silu' | 'gelu' | 'gelu_tanh' | 'relu' | 'relu2';

const ATTENTION = {
  q: true,
  k: true,
  v: true,
  kScales: true,
  vScales: true,
  smScale: true,
  softcap: true,
  window: true,
  kvLens: true,
  out: true,
  lse: true,
} as const;

const ARGUMENTS: {
  [name in keyof typeof kernels]: OptionNames<Parameters<(typeof kernels)[name]>[0]>;
} = {
  attentionPrefill: { ...ATTENTION, causal: true },
  attentionDecode: { ...ATTENTION, numSplits: true, selectiveV: true },
  quantize: { x: true, dtype: true, out: true, scales: true },
  quantizeWeight: { weight: true, type: true, groupSize: true },
  augmentedQ: {
    x: true,
    gate: true,
    gateScales: true,
    up: true,
    upScales: true,
    down: true,
    downScales: true,
    groupSize: true,
    activation: true,
    out: true,
  },
  matmul: { x: true, weight: true, weightScales: true, groupSize: true, out: true },
  rmsNorm: { x: true, weight: true, eps: true, residual: true, out: true, accumulate: true },
  rope: { x: true, positions: true, theta: true, out: true },
  addBias: { x: true, bias: true, out: true },
  gatedActivation: { gate: true, up: true, activation: true, out: true },
  softcap: { x: true, cap: true, out: true },
  embed: { table: true, tokens: true, scale: true, out: true },
};

/**
 * The operators of the model. Each resolves to its output: `out` if given, else a new tensor of the
 * dtype of the first input (`quantize`: of `dtype`). Tensors are row-major, on one device, and f32,
 * f16 or bf16 unless stated otherwise. Q head i reads K head floor(i numKHeads / numQHeads) and V
 * head floor(i numVHeads / numQHeads); numQHeads is a multiple of both. Rejects with
 * ERR_INVALID_ARGUMENT if a shape, a dtype or a value is invalid, ERR_OUT_OF_MEMORY, ERR_DISPOSED.
 */
export const kernels = {
  /**
   * Softmax attention of many queries: out = softmax(smScale q k^T) v (arXiv 2501.13629,
   * equation 3). For a query without keys, out is 0 and `lse` is -Infinity. Products q.k may be as
   * large as float32 allows. One beyond that is infinite; if a query's largest product is infinite,
   * its out and `lse` are NaN. With `softcap`, the score of an infinite product is softcap or
   * -softcap.
   */
  async attentionPrefill(args: AttentionPrefillArguments): Promise<Tensor> {
    const given = readOptions('arguments', args, ARGUMENTS.attentionPrefill);
    const { q, v, causal = false, out } = given;
    const [b, l, h] = axes('q', q, 4);
    return run({ q }, out, q?.dtype, [b, l, h, axes('v', v, 4)[3]], (device, to) =>
      device.attentionPrefill({ ...attentionInputs(given), out: to, causal }),
    );
  },

  /**
   * Softmax attention of one query per sequence (arXiv 2501.13629, equation 3; selective V: B.2).
   * Resolves to out, [batch, numQHeads, headDimVo].
   */
  async attentionDecode(args: AttentionDecodeArguments): Promise<Tensor> {
    const given = readOptions('arguments', args, ARGUMENTS.attentionDecode);
    const { q, v, numSplits = 0, selectiveV, out } = given;
    const selective = checkSelectiveV(selectiveV);
    const [b, h] = axes('q', q, 3);
    return run({ q }, out, q?.dtype, [b, h, axes('v', v, 4)[3]], (device, to) =>
      device.attentionDecode({
        ...attentionInputs(given),
        out: to,
        numSplits,
        selectiveV: selective,
      }),
    );
  },

  /**
   * Symmetric quantization of each row (the last axis) of x, which has 2 to 4 axes. With m the
   * largest magnitude of the row, scale = m / 127 for i8 and m / 448 for f8e4m3, computed in f32
   * and rounded up to bf16. value = x / scale, divided in f32 and rounded to nearest, ties to even.
   * If m is below 2^-100, scale and values are 0. If a row has a NaN or an infinity, its values are
   * 0 and its scale is NaN, so that every element dequantizes to NaN.
   */
  async quantize(args: {
    x: Tensor;
    dtype: 'i8' | 'f8e4m3';
    out?: Tensor;
    scales?: Tensor;
  }): Promise<{
    /** Quantized elements, of type `dtype` and the shape of x; `out` if given. */
    values: Tensor;
    /** bf16, with the shape of x without its last axis. */
    scales: Tensor;
  }> {
    const given = readOptions('arguments', args, ARGUMENTS.quantize);
    const { x, dtype, out, scales: givenScales } = given;
    nativeTensor('x', x);
    if (dtype !== 'i8' && dtype !== 'f8e4m3') throw invalid('dtype', "'i8' or 'f8e4m3'", dtype);
    optionalTensor('out', out);
    if (out !== undefined && out.dtype !== dtype)
      throw invalid('the type of out', `${dtype}, as dtype`, out.dtype);
    const scales =
      givenScales === undefined
        ? Tensor.create(x.device, 'bf16', x.shape.slice(0, -1), null)
        : givenScales;
    try {
      const values = await run({ x }, out, dtype, x.shape, (device, to) =>
        device.quantize({
          x: nativeTensor('x', x),
          out: to,
          scales: nativeTensor('scales', scales),
        }),
      );
      return { values, scales };
    } catch (error) {
      if (givenScales === undefined) scales.dispose();
      throw error;
    }
  },

  /**
   * Quantizes a weight, [out, in], by groups of `groupSize` (32, 64 or 128; default 32) elements of
   * each row. The value of an element is its integer, i8 or from -8 to 7 (i4), times the scale of its
   * group, bf16. Of several scales, each group gets the one with the least squared error, which is at
   * most that of max |element| / 127 (i8) or / 7 (i4). A scale may be negative. Rows are padded with
   * zeros to a multiple of 32 elements; the last group of a row may be shorter. If a group has a NaN
   * or an infinity, its scale is NaN.
   */
  async quantizeWeight(args: { weight: Tensor; type: 'i8' | 'i4'; groupSize?: number }): Promise<{
    /**
     * i8 [out, padded in]; or for i4, i32 [out, padded in / 8]. An i32 element has eight integers,
     * each plus 8 in 4 bits: integer 2k + h of the eight is at bit 16h + 4k.
     */
    values: Tensor;
    /** bf16 [out, in / groupSize], rounded up. */
    scales: Tensor;
  }> {
    const given = readOptions('arguments', args, ARGUMENTS.quantizeWeight);
    const { weight, type, groupSize = 32 } = given;
    if (type !== 'i8' && type !== 'i4') throw invalid('type', "'i8' or 'i4'", type);
    checkGroupSize('groupSize', groupSize);
    const [rows, columns] = axes('weight', weight, 2) as [number, number];
    const padded = Math.ceil(columns / 32) * 32;
    const scales = Tensor.create(
      weight.device,
      'bf16',
      [rows, Math.ceil(columns / groupSize)],
      null,
    );
    try {
      const [dtype, width] =
        type === 'i8' ? (['i8', padded] as const) : (['i32', padded / 8] as const);
      const values = await run({ weight }, undefined, dtype, [rows, width], (device, to) =>
        device.quantizeWeight({
          weight: nativeTensor('weight', weight),
          values: to,
          scales: scales[native],
          groupSize,
        }),
      );
      return { values, scales };
    } catch (error) {
      scales.dispose();
      throw error;
    }
  },

  /**
   * Augmented Q: (activation(x gate^T) * (x up^T)) down^T (arXiv 2501.13629, section 2), or without
   * `gate` activation(x up^T) down^T. x is [tokens, qDim], gate and up [augQ, qDim], down [qDim,
   * augQ], the output [tokens, qDim]. gate, up and down have the same dtype. `activation` is silu
   * by default. Quantized weights have scales and a `groupSize`, as in `matmul`; those of gate and up
   * have the same type.
   */
  async augmentedQ(args: {
    x: Tensor;
    gate?: Tensor;
    gateScales?: Tensor;
    up: Tensor;
    upScales?: Tensor;
    down: Tensor;
    downScales?: Tensor;
    groupSize?: number;
    activation?: Activation;
    out?: Tensor;
  }): Promise<Tensor> {
    const given = readOptions('arguments', args, ARGUMENTS.augmentedQ);
    const { x, gate, gateScales, up, upScales, down, downScales, out } = given;
    const { groupSize = 32, activation = 'silu' } = given;
    checkGroupSize('groupSize', groupSize);
    return run({ x }, out, x?.dtype, [axes('x', x, 2)[0], axes('down', down, 2)[0]], (device, to) =>
      device.gatedMlp({
        x: nativeTensor('x', x),
        gate: optionalTensor('gate', gate),
        gateScales: optionalTensor('gateScales', gateScales),
        up: nativeTensor('up', up),
        upScales: optionalTensor('upScales', upScales),
        down: nativeTensor('down', down),
        downScales: optionalTensor('downScales', downScales),
        groupSize,
        out: to,
        activation,
      }),
    );
  },

  /**
   * x weight^T. x is [tokens, in], weight [out, in], the output [tokens, out]. Sums in float32. A
   * quantized weight has `weightScales` and a `groupSize` (default 32), as `quantizeWeight` makes
   * them: weight is then i8, or i32 with eight i4 in each element. Scales may also be f16. If x has a
   * NaN or an infinity, the token's output with a quantized weight is NaN. On a CPU that multiplies
   * bf16, more than 32 tokens of bf16 are multiplied by a quantized weight that is rounded to bf16.
   */
  async matmul(args: {
    x: Tensor;
    weight: Tensor;
    weightScales?: Tensor;
    groupSize?: number;
    out?: Tensor;
  }): Promise<Tensor> {
    const given = readOptions('arguments', args, ARGUMENTS.matmul);
    const { x, weight, weightScales, groupSize = 32, out } = given;
    checkGroupSize('groupSize', groupSize);
    return run(
      { x },
      out,
      x?.dtype,
      [axes('x', x, 2)[0], axes('weight', weight, 2)[0]],
      (device, to) =>
        device.matmul({
          x: nativeTensor('x', x),
          weight: nativeTensor('weight', weight),
          weightScales: optionalTensor('weightScales', weightScales),
          groupSize,
          out: to,
        }),
    );
  },

  /**
   * RMSNorm: h / sqrt(mean(h^2) + eps) * weight (arXiv 1910.07467). x and the output are [tokens,
   * hidden], weight is [hidden], `eps` is at least 0. h = x. If `residual`, [tokens, hidden], is
   * given, x is first added to it in place, and h = residual. With `accumulate`, the result is
   * added to `out`, which must be given and f32; `residual` is then not allowed.
   */
  async rmsNorm(args: {
    x: Tensor;
    weight: Tensor;
    eps: number;
    residual?: Tensor;
    out?: Tensor;
    accumulate?: boolean;
  }): Promise<Tensor> {
    const given = readOptions('arguments', args, ARGUMENTS.rmsNorm);
    const { x, weight, eps, residual, out, accumulate = false } = given;
    checkBoolean('accumulate', accumulate);
    if (accumulate && out === undefined)
      throw invalid('out', 'a tensor if accumulate is true', out);
    return run({ x }, out, x?.dtype, x?.shape, (device, to) =>
      device.rmsNorm({
        x: nativeTensor('x', x),
        weight: nativeTensor('weight', weight),
        out: to,
        residual: optionalTensor('residual', residual),
        eps,
        accumulate,
      }),
    );
  },

  /**
   * Rotary position embedding (RoPE): rotates each pair (d, d + headDim/2) of a head by
   * positions[t] theta^(-2d/headDim) radians (arXiv 2104.09864). x is
   * [tokens, heads, headDim], positions i32 [tokens]. The last axis of x is even, and theta is at
   * least 1. `out` has the dtype of x and may be x.
   */
  async rope(args: { x: Tensor; positions: Tensor; theta: number; out?: Tensor }): Promise<Tensor> {
    const { x, positions, theta, out } = readOptions('arguments', args, ARGUMENTS.rope);
    return run({ x }, out, x?.dtype, x?.shape, (device, to) =>
      device.rope({
        x: nativeTensor('x', x),
        positions: nativeTensor('positions', positions),
        out: to,
        theta,
      }),
    );
  },

  /**
   * Adds a bias to each row. x [tokens, features] and the output have the same dtype; bias is f32
   * [features]. `out` may be x.
   */
  async addBias(args: { x: Tensor; bias: Tensor; out?: Tensor }): Promise<Tensor> {
    const { x, bias, out } = readOptions('arguments', args, ARGUMENTS.addBias);
    return run({ x }, out, x?.dtype, x?.shape, (device, to) =>
      device.addBias({ x: nativeTensor('x', x), bias: nativeTensor('bias', bias), out: to }),
    );
  },

  /**
   * activation(gate) * up, elementwise (arXiv 2002.05202), or without `gate` activation(up). gate,
   * up and the output have the same shape and dtype. `activation` is silu by default. `out` may be
   * gate or up.
   */
  async gatedActivation(args: {
    gate?: Tensor;
    up: Tensor;
    activation?: Activation;
    out?: Tensor;
  }): Promise<Tensor> {
    const given = readOptions('arguments', args, ARGUMENTS.gatedActivation);
    const { gate, up, activation = 'silu', out } = given;
    return run({ up }, out, up?.dtype, up?.shape, (device, to) =>
      device.gatedActivation({
        gate: optionalTensor('gate', gate),
        up: nativeTensor('up', up),
        out: to,
        activation,
      }),
    );
  },

  /**
   * cap tanh(x / cap), elementwise, which limits magnitudes to `cap` (arXiv 2408.00118, section 2). x
   * and the output are f32 of one shape, and `cap` is positive. `out` may be x.
   */
  async softcap(args: { x: Tensor; cap: number; out?: Tensor }): Promise<Tensor> {
    const { x, cap, out } = readOptions('arguments', args, ARGUMENTS.softcap);
    return run({ x }, out, 'f32', x?.shape, (device, to) =>
      device.softcap({ x: nativeTensor('x', x), out: to, cap }),
    );
  },

  /**
   * Rows of a table, multiplied by `scale` (default 1, which copies them). table is [vocab, hidden],
   * tokens i32 [tokens] with values from 0 to vocab - 1, the output [tokens, hidden].
   */
  async embed(args: {
    table: Tensor;
    tokens: Tensor;
    scale?: number;
    out?: Tensor;
  }): Promise<Tensor> {
    const { table, tokens, scale = 1, out } = readOptions('arguments', args, ARGUMENTS.embed);
    return run(
      { table },
      out,
      table?.dtype,
      [axes('tokens', tokens, 1)[0], axes('table', table, 2)[1]],
      (device, to) =>
        device.embed({
          table: nativeTensor('table', table),
          tokens: nativeTensor('tokens', tokens),
          out: to,
          scale,
        }),
    );
  },
};

/** The arguments of an operator of csrc/addon/kernels.cc, by those of a function of `kernels`. */
type NativeArguments<Args> = { out: NativeTensor } & {
  [name in Exclude<keyof Args, 'out'>]:
    | (Exclude<Args[name], undefined> extends Tensor ? NativeTensor : Args[name])
    | Extract<Args[name], undefined>;
};
type NativeKernel<name extends keyof typeof kernels> = (
  args: NativeArguments<Parameters<(typeof kernels)[name]>[0]>,
) => Promise<void>;

/**
 * The operators of csrc/addon/kernels.cc. They check shapes, types and head counts before they queue
 * anything, and throw synchronously.
 */
type NativeKernels = {
  [name in Exclude<
    keyof typeof kernels,
    'augmentedQ' | 'quantize' | 'quantizeWeight'
  >]: NativeKernel<name>;
} & {
  gatedMlp: NativeKernel<'augmentedQ'>;
  quantize(args: { x: NativeTensor; out: NativeTensor; scales: NativeTensor }): Promise<void>;
  quantizeWeight(args: {
    weight: NativeTensor;
    values: NativeTensor;
    scales: NativeTensor;
    groupSize: number;
  }): Promise<void>;
};

function nativeTensor(name: string, value: Tensor): NativeTensor {
  if (!(value instanceof Tensor)) throw invalid(name, 'a tensor', value);
  return value[native];
}

function optionalTensor(name: string, value: Tensor | undefined): NativeTensor | undefined {
  return value === undefined ? undefined : nativeTensor(name, value);
}

function attentionInputs({
  q,
  k,
  v,
  kScales,
  vScales,
  lse,
  kvLens,
  smScale,
  softcap = 0,
  window = 0,
}: Omit<AttentionPrefillArguments, 'causal'>) {
  checkNotNull('smScale', 'a number', smScale);
  return {
    q: nativeTensor('q', q),
    k: nativeTensor('k', k),
    v: nativeTensor('v', v),
    kScales: optionalTensor('kScales', kScales),
    vScales: optionalTensor('vScales', vScales),
    lse: optionalTensor('lse', lse),
    kvLens: optionalTensor('kvLens', kvLens),
    smScale,
    softcap,
    window,
  };
}

// Returns the shape of an input, from which that of the output is made. The addon checks that the
// shapes of all arguments match.
function axes(name: string, value: Tensor, rank: number): readonly number[] {
  nativeTensor(name, value);
  if (value.shape.length !== rank) {
    const shape = value.shape.join(', ');
    throw invalidArgument(`the shape of ${name} must be of ${rank} axes, not [${shape}]`);
  }
  return value.shape;
}

/** Runs an operator on the device of `input`, which is one tensor under its name. */
async function run(
  input: Record<string, Tensor>,
  out: Tensor | undefined,
  dtype: DType,
  shape: readonly (number | undefined)[],
  call: (device: NativeKernels, out: NativeTensor) => Promise<void>,
): Promise<Tensor> {
  const [[name, first]] = Object.entries(input) as [[string, Tensor]];
  nativeTensor(name, first);
  const to = out === undefined ? Tensor.create(first.device, dtype, shape as number[], null) : out;
  try {
    const nativeOut = nativeTensor('out', to);
    const device = first.device[native] as NativeDevice & NativeKernels;
    await awaitNative(() => call(device, nativeOut));
  } catch (error) {
    if (out === undefined) to.dispose();
    throw error;
  }
  return to;
}

/** Checks `selectiveV` and fills in its default. */
export function checkSelectiveV(selectiveV: SelectiveV | undefined): NativeSelectiveV | undefined {
  if (selectiveV === undefined) return undefined;
  const names = { topK: true, renormalize: true } as const;
  const { topK, renormalize = false } = readOptions('selectiveV', selectiveV, names);
  checkInteger('selectiveV.topK', topK, 1);
  checkBoolean('selectiveV.renormalize', renormalize);
  return { topK, renormalize };
}
