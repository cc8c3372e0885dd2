// The model of suite model: a checkpoint, or a preset with random weights and as many of its layers as fit into memory.
import * as path from 'node:path';

import { Model, type ModelConfig } from '../../lib/index';
import { layerWeights } from '../arithmetic';
import { SIGMA_10B_LAYERS, SIGMA_15B_LAYERS, sigma10bConfig, sigma15bConfig } from '../shapes';
import { type Bench, byKind, isTrial } from '../suite';

export const PRESETS = { 'sigma-1.5b': sigma15bConfig, 'sigma-10b': sigma10bConfig };
const LAYERS = { 'sigma-1.5b': SIGMA_15B_LAYERS, 'sigma-10b': SIGMA_10B_LAYERS };
type Preset = keyof typeof PRESETS;
const BF16_BYTES = 2;
const KEPT_BYTES = 2e9; // for caches, activations and the rest of the process

export const isPreset = (name: string): name is Preset => Object.hasOwn(PRESETS, name);

/** As many layers as fit into `capacity` bytes, at least 1. */
export function fittingLayers(preset: Preset, capacity: number): number {
  const { hidden_size, intermediate_size, aug_q_dim, head_dim, vocab_size } = PRESETS[preset](1);
  const shape = {
    hiddenSize: hidden_size,
    intermediateSize: intermediate_size,
    augQSize: aug_q_dim,
    numQHeads: 32,
    numKHeads: 4,
    numVHeads: 16,
    headDimQk: head_dim,
    headDimK: head_dim,
    headDimVo: head_dim,
  };
  const { keyValue, rest } = layerWeights(shape as ModelConfig);
  const left = capacity - KEPT_BYTES - vocab_size * hidden_size * BF16_BYTES;
  return Math.max(1, Math.min(LAYERS[preset], Math.floor(left / ((keyValue + rest) * BF16_BYTES))));
}

/** Makes the model when the first cell needs it. */
export class Holder {
  private model: Model | null = null;
  readonly name: string;
  /** Number of layers of a preset; null for a checkpoint. */
  readonly layers: number | null;

  constructor(private readonly bench: Bench) {
    this.name = bench.model ?? 'sigma-1.5b';
    const small = byKind(bench, { cuda: 4, cpu: 2, trial: 1 });
    const enough = isPreset(this.name) ? fittingLayers(this.name, bench.pool.capacity()) : null;
    this.layers = enough !== null && bench.quick ? Math.min(small, enough) : enough;
  }

  async get(): Promise<Model> {
    if (this.model !== null) return this.model;
    const { device, pool, progress } = this.bench;
    pool.trim(0);
    progress(this.layers === null ? `loading ${this.name}` : `making a random ${this.title()}`);
    this.model = isPreset(this.name)
      ? await Model.random(this.shape(this.name), { device, dtype: 'bf16' })
      : await Model.load(this.name, { device });
    return this.model;
  }

  private shape(preset: Preset) {
    const full = PRESETS[preset](this.layers as number);
    if (!isTrial(this.bench.device)) return full;
    return { ...full, hidden_size: 64, intermediate_size: 96, aug_q_dim: 96, vocab_size: 256, num_attention_heads: 16 };
  }

  title(): string {
    if (isTrial(this.bench.device)) return 'a tiny model';
    if (!isPreset(this.name)) return path.basename(path.resolve(this.name));
    const all = LAYERS[this.name];
    return this.layers === all ? this.name : `${this.name} (${this.layers} of its ${all} layers)`;
  }

  dispose(): void {
    this.model?.dispose();
    this.model = null;
  }
}
