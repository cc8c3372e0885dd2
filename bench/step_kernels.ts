// A decode step as the list of its kernels on a GPU, with the bytes and FLOPs of each. The list is that of Sigma with
// augmented Q folded into gate and up, and of Llama (csrc/model/forward.cc).
import type { ModelConfig } from '../lib/index';
import { cacheBytes, decodeFlops } from './arithmetic';

/** The sizes of a model that its kernels depend on. */
export type StepModel = Pick<
  ModelConfig,
  | 'numLayers'
  | 'hiddenSize'
  | 'intermediateSize'
  | 'augQSize'
  | 'vocabSize'
  | 'numQHeads'
  | 'numKHeads'
  | 'numVHeads'
  | 'headDimQk'
  | 'headDimVo'
>;

/** How the kernels of a step are cut and started. */
export interface StepDesign {
  /** Up to so many tokens, gemv normalizes its x. For more, a kernel before it does. */
  normTokens: number;
  /** Whether K and V are formed by the launch of gate and up of augmented Q, or by their own. */
  keysAndValues: 'own' | 'joined';
  /** Up to so many tokens, gemv forms all outputs of one x in one launch. For more, gemm has a launch for each. */
  gemvTokens: number;
  /** By the host, as a CUDA graph, or as a graph of programmatic dependent launches. */
  launches: 'host' | 'graph' | 'dependent';
  /** How decode attention copies K and V. */
  copies: 'cp.async' | 'bulk';
  /** A launch for each sequence, a launch of a block for each sequence, or of several blocks. */
  sampling: 'row' | 'rows' | 'blocks';
  /** Whether the GPU waits for the host to have the token of a step before it begins the next. */
  host: 'waits' | 'follows';
}

/** What the sources have now. launches.test.ts compares its launches and bytes with those of the emulated device. */
export const BUILT: StepDesign = {
  normTokens: 8,
  keysAndValues: 'joined',
  gemvTokens: 16,
  launches: 'dependent',
  copies: 'bulk',
  sampling: 'blocks',
  host: 'follows',
};

/** All launches of one kind in a step, or in a layer. */
export interface StepKernel {
  /** What it computes. */
  name: string;
  /** The name of the kernel in cuda/. */
  kernel: string;
  launches: number;
  /** Bytes of weights, which memory must deliver. */
  weights: number;
  /** Bytes of the KV cache, which memory must deliver. */
  cache: number;
  /** Bytes that the kernel reads or writes besides. They fit into the L2 cache. */
  activations: number;
  /** FLOPs of matrix products. */
  flops: number;
}

const BF16 = 2;
const F32 = 4;

/** Products of one x. */
interface Product {
  name: string;
  /** Features of x. */
  from: number;
  /** Features of each output. */
  to: readonly number[];
  /** The last two outputs are gate and up, of which one row is written. */
  gated?: boolean;
  /** Outputs are added to the residual stream. */
  accumulates?: boolean;
  /** x is the residual stream, normalized. */
  normalizes?: boolean;
  /** Bytes of an element of the outputs. */
  outBytes?: number;
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);

/** The products, after a norm that is a kernel of its own. */
function productKernels(tokens: number, { gemvTokens, normTokens }: StepDesign, product: Product): StepKernel[] {
  const { name, from, to, gated = false, accumulates = false, normalizes = false, outBytes = BF16 } = product;
  const few = tokens <= gemvTokens;
  const normalizesItself = normalizes && few && tokens <= normTokens;
  const outputs = gated ? to.slice(0, -1) : to;
  const kernel: StepKernel = {
    name,
    kernel: `${few ? 'gemv' : 'gemm'}${gated ? '_gated' : ''}`,
    launches: few ? 1 : outputs.length,
    weights: from * sum(to) * BF16 + (normalizesItself ? from * F32 : 0),
    cache: 0,
    activations: tokens * (from * (normalizesItself ? F32 : BF16) + sum(outputs) * (accumulates ? 2 * F32 : outBytes)),
    flops: 2 * tokens * from * sum(to),
  };
  return normalizes && !normalizesItself ? [norm(tokens, from), kernel] : [kernel];
}

const norm = (tokens: number, size: number): StepKernel => ({
  name: 'norm',
  kernel: 'rms_norm',
  launches: 1,
  weights: size * F32,
  cache: 0,
  activations: tokens * size * (F32 + BF16),
  flops: 0,
});

/** The kernels of one layer in their order. `kvLens`: keys of each sequence, with that of the step itself. */
export function layerKernels(model: StepModel, kvLens: readonly number[], design: StepDesign): StepKernel[] {
  const { hiddenSize, intermediateSize, augQSize, numQHeads, numKHeads, numVHeads, headDimQk, headDimVo } = model;
  const tokens = kvLens.length;
  const [q, k, v, o] = [numQHeads * headDimQk, numKHeads * headDimQk, numVHeads * headDimVo, numQHeads * headDimVo];
  const make = (product: Product) => productKernels(tokens, design, product);
  const input = { from: hiddenSize, normalizes: true };
  const gateAndUp = [augQSize, augQSize];
  // A kernel's norm serves both launches.
  const normalizesTwice = tokens <= Math.min(design.normTokens, design.gemvTokens);
  const first =
    augQSize === 0
      ? make({ ...input, name: 'Q, K and V', to: [q, k, v] })
      : design.keysAndValues === 'joined'
        ? make({ ...input, name: 'K, V, gate and up of Q', to: [k, v, ...gateAndUp], gated: true })
        : [
            ...make({ ...input, name: 'K and V', to: [k, v] }),
            ...make({ ...input, name: 'gate and up of Q', to: gateAndUp, gated: true, normalizes: normalizesTwice }),
          ];
  return [
    ...first,
    ...(augQSize === 0 ? [] : make({ name: 'down of Q', from: augQSize, to: [q] })),
    {
      name: 'RoPE and append',
      kernel: 'kv_append',
      launches: 1,
      weights: 0,
      cache: 0,
      activations: tokens * (2 * q * BF16 + (k + v) * BF16 + cacheBytes(model)),
      flops: 0,
    },
    {
      name: 'attention',
      kernel: 'attention_decode',
      launches: 1,
      weights: 0,
      cache: sum(kvLens) * cacheBytes(model),
      activations: tokens * (q + o) * BF16,
      flops: decodeFlops(model, sum(kvLens)),
    },
    ...make({ name: 'O', from: o, to: [hiddenSize], accumulates: true }),
    ...make({ ...input, name: 'gate and up', to: [intermediateSize, intermediateSize], gated: true }),
    ...make({ name: 'down', from: intermediateSize, to: [hiddenSize], accumulates: true }),
  ];
}

/** The kernels of a step. Those of a layer stand for all layers. */
export function stepKernels(model: StepModel, kvLens: readonly number[], design: StepDesign): StepKernel[] {
  const { numLayers, hiddenSize, vocabSize } = model;
  const tokens = kvLens.length;
  const other = { launches: 1, weights: 0, cache: 0, flops: 0 };
  const layers = layerKernels(model, kvLens, design).map((kernel) => times(kernel, numLayers));
  const head = { name: 'LM head', from: hiddenSize, to: [vocabSize], normalizes: true, outBytes: F32 };
  return [
    { ...other, name: 'embedding', kernel: 'embed', activations: tokens * hiddenSize * (BF16 + F32) },
    ...layers,
    ...productKernels(tokens, design, head),
    {
      ...other,
      name: 'sampling',
      kernel: 'sample',
      launches: design.sampling === 'row' ? tokens : 1,
      activations: tokens * vocabSize * F32,
    },
  ];
}

function times(kernel: StepKernel, count: number): StepKernel {
  const { launches, weights, cache, activations, flops } = kernel;
  return {
    ...kernel,
    launches: launches * count,
    weights: weights * count,
    cache: cache * count,
    activations: activations * count,
    flops: flops * count,
  };
}

/** A quantity of all kernels together. */
export function total(kernels: readonly StepKernel[], of: 'launches' | 'weights' | 'cache' | 'activations'): number {
  return sum(kernels.map((kernel) => kernel[of]));
}
