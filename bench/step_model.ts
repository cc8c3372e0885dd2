// A model of the time of a decode step on an H200, from the list of its kernels. No GPU has run this project's kernels.
// Each constant is the card's specification, derived from estimates, or an assumption, and is marked as such. The
// estimates (+-25 %) are those of a review of the kernels' sources and machine code when a layer had 12 launches. Each
// kernel takes the time of its bytes or of its FLOPs, whichever is longer, and each launch a cost.
//
// There is no term for the last wave of a kernel's blocks. It is part of the cost of a launch, and of the rate and fixed
// time of attention, which are derived from estimates of whole kernels.
import { cacheBytes } from './arithmetic';
import type { HeadShape } from './shapes';
import { type StepDesign, type StepKernel, type StepModel, stepKernels } from './step_kernels';

export const H200 = {
  name: 'H200',
  /** Specification. The floor of a step is its bytes at this rate. */
  peakGbPerS: 4800,
  /** About what a copy within such a card's memory reaches. An assumption for every kernel that streams weights. */
  reachableGbPerS: 4300,
  /** mma.sync: derived, 62 % of the specified 990 TFLOP/s of dense bf16, which wgmma reaches. */
  mmaTflops: 614,
} as const;

/**
 * Microseconds of a launch beyond its bytes: the gap to the kernel before it, and its first and last wave.
 *
 * - host: derived from two estimates of whole steps with 12 launches for each layer, 6.1 ms for Sigma-10B and 2.2 ms for
 *   Sigma-1.5B at a short context. Without bytes at the reachable rate, attention's fixed time, sampling and the host's
 *   turn they leave 3.6 us and 3.2 us for each of 388 and 316 launches.
 * - graph: derived. The same estimates expect 20 % and 8 % more tokens per second of it, 1.2 us of each launch.
 * - dependent: derived. They expect 20 % and 6 % more of it, 1.2 us and 0.9 us of each launch.
 */
export const LAUNCH_US: Record<StepDesign['launches'], number> = { host: 3.4, graph: 2.2, dependent: 1.2 };

/**
 * Decode attention, batch 1, 32/4/16 heads.
 *
 * - cp.async: derived from estimates of 28 us (32k x 64), 51 us (32k x 128) and 97 us (128k x 64), which are 5.5 us and
 *   the cache at 3.67 to 3.73 TB/s.
 * - bulk: assumptions. Bulk copies reach the rate of a device copy; the fixed time is the bound that the design aims at.
 */
export const ATTENTION: Record<StepDesign['copies'], { gbPerS: number; fixedUs: number }> = {
  'cp.async': { gbPerS: 3700, fixedUs: 5.5 },
  bulk: { gbPerS: 4300, fixedUs: 3 },
};

/** Microseconds of greedy sampling in one block, whose rows run on multiprocessors of their own: an estimate. */
const SAMPLE_US = 45;
/** The same in several blocks for each row: an assumption. */
const SAMPLE_BLOCKS_US = 10;
/** Microseconds between the end of a step and the first launch of the next, if the host waits for the token: an estimate. */
const HOST_TURN_US = 100;

/** Tokens that gemm computes at least: the smaller of its tiles. */
const GEMM_TOKENS = 64;
/** An estimate, of a prefill. */
const GEMM_TFLOPS = 450;

/** Why a step takes longer than its floor. */
export type Loss =
  | 'memory'
  | 'attention rate'
  | 'attention fixed'
  | 'activations'
  | 'FLOPs'
  | 'launches'
  | 'sampling'
  | 'host';

export interface ModeledTime {
  /** Bytes that memory must deliver, at the peak rate. */
  floorMs: number;
  ms: number;
  /** floorMs / ms. */
  share: number;
  launches: number;
  /** Milliseconds of each loss; together ms - floorMs. */
  losses: Record<Loss, number>;
}

/** Milliseconds of `bytes`. */
const moving = (bytes: number, gbPerS: number): number => bytes / gbPerS / 1e6;

function timeOf(bytes: number, launches: number, losses: Record<Loss, number>): ModeledTime {
  const floorMs = moving(bytes, H200.peakGbPerS);
  const ms = Object.values(losses).reduce((sum, loss) => sum + loss, floorMs);
  return { floorMs, ms, share: floorMs / ms, launches, losses };
}

const noLosses = (): Record<Loss, number> => ({
  memory: 0,
  'attention rate': 0,
  'attention fixed': 0,
  activations: 0,
  FLOPs: 0,
  launches: 0,
  sampling: 0,
  host: 0,
});

/** Milliseconds of the FLOPs of a kernel. gemm multiplies whole tiles of tokens. */
function computing({ kernel, flops }: StepKernel, tokens: number): number {
  if (!kernel.startsWith('gemm')) return flops / H200.mmaTflops / 1e9;
  return (flops * Math.max(1, GEMM_TOKENS / tokens)) / GEMM_TFLOPS / 1e9;
}

/** One decode step of a sequence for each of `kvLens`, with greedy sampling. */
export function stepTime(model: StepModel, kvLens: readonly number[], design: StepDesign): ModeledTime {
  const losses = noLosses();
  const attention = ATTENTION[design.copies];
  const kernels = stepKernels(model, kvLens, design);
  let bytes = 0;
  let launches = 0;
  for (const kernel of kernels) {
    const fromMemory = kernel.weights + kernel.cache;
    const reached = moving(fromMemory, H200.reachableGbPerS);
    const activations = moving(kernel.activations, H200.reachableGbPerS);
    bytes += fromMemory;
    launches += kernel.launches;
    losses.memory += reached - moving(fromMemory, H200.peakGbPerS);
    losses['attention rate'] += moving(kernel.cache, attention.gbPerS) - moving(kernel.cache, H200.reachableGbPerS);
    losses.activations += activations;
    losses.FLOPs += Math.max(0, computing(kernel, kvLens.length) - reached - activations);
    losses.launches += (kernel.launches * LAUNCH_US[design.launches]) / 1e3;
  }
  losses['attention fixed'] = (model.numLayers * attention.fixedUs) / 1e3;
  losses.sampling = sampleUs(kvLens.length, design) / 1e3;
  losses.host = design.host === 'waits' ? HOST_TURN_US / 1e3 : 0;
  return timeOf(bytes, launches, losses);
}

function sampleUs(tokens: number, { sampling }: StepDesign): number {
  if (sampling === 'blocks') return SAMPLE_BLOCKS_US;
  return sampling === 'row' ? tokens * SAMPLE_US : SAMPLE_US;
}

/** Decode attention alone: one query over `kvLen` keys, called again and again, so that launches are hidden. */
export function attentionTime(heads: HeadShape, kvLen: number, design: StepDesign): ModeledTime {
  const bytes = kvLen * cacheBytes(heads);
  const { gbPerS, fixedUs } = ATTENTION[design.copies];
  const reached = moving(bytes, H200.reachableGbPerS);
  return timeOf(bytes, 1, {
    ...noLosses(),
    memory: reached - moving(bytes, H200.peakGbPerS),
    'attention rate': moving(bytes, gbPerS) - reached,
    'attention fixed': fixedUs / 1e3,
  });
}
