// The matrices of a prefill, and how long oneDNN takes for them.
import type { Ceilings, MatrixShape } from '../ceilings';
import { summarize } from '../measure';
import type { sigma15bConfig } from '../shapes';

type Config = ReturnType<typeof sigma15bConfig>;

export interface CountedMatrix extends MatrixShape {
  name: string;
  count: number;
}

/** The matrices of one layer, q_proj folded into the augmented-Q pair. What is added to the residual is f32. */
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

/** Weights of one layer. */
export function layerWeights(config: Config): number {
  return layerMatrices(config).reduce((sum, { k, n }) => sum + k * n, 0);
}

/**
 * What a prefill that hands back the last token's logits has to multiply: in the last layer all tokens need their K and
 * V, and only the last token needs the rest. A limit that counted more would flatter the figure beside it.
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

const LAYER_SETS = 4; // 0.5 GB of weights in each layout: more than caches keep

/** Collects oneDNN's times over a run; the limit is the faster of its two weight layouts, matrix by matrix. */
export class LinearMeter {
  private readonly times = new Map<CountedMatrix, { packed: number[]; plain: number[] }>();

  constructor(
    private readonly ceilings: Ceilings,
    private readonly matrices: readonly CountedMatrix[],
  ) {
    for (const matrix of matrices) this.times.set(matrix, { packed: [], plain: [] });
  }

  async sample(): Promise<void> {
    await this.sampleGroup(
      this.matrices.filter(({ m }) => m > 1),
      LAYER_SETS,
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
    const { packed, plain } = this.of(matrix);
    return Math.min(summarize(packed).median, summarize(plain).median);
  }

  private of(matrix: CountedMatrix) {
    const times = this.times.get(matrix);
    if (times === undefined) throw new Error(`no such matrix: ${matrix.name}`);
    return times;
  }

  private async sampleGroup(group: CountedMatrix[], sets: number): Promise<void> {
    for (const [i, { packedMs, plainMs }] of (await this.ceilings.linear(group, sets, 1)).entries()) {
      const times = this.of(group[i] as CountedMatrix);
      times.packed.push(...packedMs);
      times.plain.push(...plainMs);
    }
  }
}
