// The matrices of a prefill, and the time that they take at best.
import type { Matrix } from '../../lib/ceilings';
import type { Ceilings, LinearTimes } from '../ceilings';
import { summarize } from '../measure';
import type { sigma15bConfig } from '../shapes';

type Config = ReturnType<typeof sigma15bConfig>;

export interface CountedMatrix extends Matrix {
  name: string;
  count: number;
}

/** The matrices of one layer. q_proj is folded into augmented Q. Outputs that are added to the residual are f32. */
function layerMatrices(config: Config): Omit<CountedMatrix, 'm' | 'count'>[] {
  const { hidden_size: hidden, intermediate_size: ffn, aug_q_dim: augQ, head_dim: size } = config;
  const qSize = config.num_attention_heads * size;
  return [
    { name: 'q_gate', k: hidden, n: augQ, out: 'bf16' },
    { name: 'q_up', k: hidden, n: augQ, out: 'bf16' },
    { name: 'q_down', k: augQ, n: qSize, out: 'bf16' },
    { name: 'k', k: hidden, n: config.num_key_heads * size, out: 'bf16' },
    { name: 'v', k: hidden, n: config.num_value_heads * size, out: 'bf16' },
    { name: 'o', k: qSize, n: hidden, out: 'f32' },
    { name: 'gate', k: hidden, n: ffn, out: 'bf16' },
    { name: 'up', k: hidden, n: ffn, out: 'bf16' },
    { name: 'down', k: ffn, n: hidden, out: 'f32' },
  ];
}

/** Number of weights of one layer. */
export function layerWeights(config: Config): number {
  return layerMatrices(config).reduce((sum, { k, n }) => sum + k * n, 0);
}

/**
 * The products of a prefill that returns the logits of the last token. In the last layer all tokens need K and V, but only
 * the last token needs the rest. A limit that counted more would make the share of the figure too high.
 */
export function prefillMatrices(config: Config, numTokens: number): CountedMatrix[] {
  const numLayers = config.num_hidden_layers;
  const matrices: CountedMatrix[] = [];
  for (const matrix of layerMatrices(config)) {
    const always = matrix.name === 'k' || matrix.name === 'v';
    matrices.push({ ...matrix, m: numTokens, count: always ? numLayers : numLayers - 1 });
    if (!always) matrices.push({ ...matrix, m: 1, count: 1 });
  }
  matrices.push({ name: 'lm_head', m: 1, k: config.hidden_size, n: config.vocab_size, out: 'f32', count: 1 });
  return matrices;
}

export function flops(matrices: readonly CountedMatrix[]): number {
  return matrices.reduce((sum, { m, k, n, count }) => sum + 2 * m * k * n * count, 0);
}

const LAYER_WEIGHTS = 4; // 0.5 GB of weights in each layout: more than the caches hold

/**
 * Collects the limit of a prefill over a run: the time of oneDNN for the same matrices, in the faster of its two weight
 * layouts for each matrix. Without oneDNN it is the time of the FLOPs at the rate of the CPU's multiply instruction.
 */
export class LinearMeter {
  readonly rateName: string;
  readonly timeName: string;
  private readonly times = new Map<CountedMatrix, LinearTimes>();
  private readonly rates: number[] = [];

  constructor(
    private readonly ceilings: Ceilings,
    private readonly matrices: readonly CountedMatrix[],
  ) {
    const { usesOnednn } = ceilings;
    this.rateName = usesOnednn ? "oneDNN's rate on the same matrices" : 'rate of the multiply instruction';
    this.timeName = usesOnednn
      ? "oneDNN's time for the same matrices"
      : 'FLOPs at the rate of the multiply instruction';
    for (const matrix of matrices) this.times.set(matrix, { packedMs: [], plainMs: [] });
  }

  async sample(): Promise<void> {
    if (!this.ceilings.usesOnednn) {
      this.rates.push(await this.ceilings.multiply());
      return;
    }
    await this.sampleGroup(
      this.matrices.filter(({ m }) => m > 1),
      LAYER_WEIGHTS,
    );
    await this.sampleGroup(
      this.matrices.filter(({ m }) => m === 1),
      1,
    );
  }

  /** Milliseconds for all matrices. */
  totalMs(): number {
    return this.matrices.reduce((sum, matrix) => sum + matrix.count * this.ms(matrix), 0);
  }

  report() {
    return this.matrices.map((matrix) => {
      const ms = this.ms(matrix);
      return { ...matrix, ms, gflopPerS: (2 * matrix.m * matrix.k * matrix.n) / ms / 1e6 };
    });
  }

  private ms(matrix: CountedMatrix): number {
    if (!this.ceilings.usesOnednn) return (2 * matrix.m * matrix.k * matrix.n) / summarize(this.rates).median / 1e6;
    const { packedMs, plainMs } = this.of(matrix);
    return Math.min(summarize(packedMs).median, summarize(plainMs).median);
  }

  private of(matrix: CountedMatrix): LinearTimes {
    const times = this.times.get(matrix);
    if (times === undefined) throw new Error(`no such matrix: ${matrix.name}`);
    return times;
  }

  private async sampleGroup(group: CountedMatrix[], numWeights: number): Promise<void> {
    const shapes = group.map(({ m, k, n, out }) => ({ m, k, n, out }));
    for (const [i, { packedMs, plainMs }] of (await this.ceilings.linear(shapes, numWeights)).entries()) {
      const times = this.of(group[i] as CountedMatrix);
      times.packedMs.push(...packedMs);
      times.plainMs.push(...plainMs);
    }
  }
}
