// What `bench step` models or measures: decode steps of whole models, and decode attention alone, with their goals.
import {
  type HeadShape,
  headShape,
  lengthName,
  llama8bConfig,
  SIGMA_10B_LAYERS,
  SIGMA_15B_LAYERS,
  shapeName,
  sigma10bConfig,
  sigma15bConfig,
} from './shapes';
import { type StepDesign, type StepModel, stepKernels, total } from './step_kernels';
import { attentionTime, type ModeledTime, stepTime } from './step_model';

interface ConfigJson {
  hidden_size: number;
  intermediate_size: number;
  aug_q_dim?: number;
  num_hidden_layers: number;
  num_attention_heads: number;
  num_key_heads?: number;
  num_value_heads?: number;
  num_key_value_heads?: number;
  head_dim: number;
  vocab_size: number;
  max_position_embeddings: number;
}

/** The sizes of a model from its config.json. */
export function sizesOf(config: ConfigJson): StepModel {
  const {
    num_key_value_heads = 0,
    num_key_heads = num_key_value_heads,
    num_value_heads = num_key_value_heads,
  } = config;
  return {
    numLayers: config.num_hidden_layers,
    hiddenSize: config.hidden_size,
    intermediateSize: config.intermediate_size,
    augQSize: config.aug_q_dim ?? 0,
    vocabSize: config.vocab_size,
    ...headShape([config.num_attention_heads, num_key_heads, num_value_heads], config.head_dim),
  };
}

/** Models by their names, in the order of the table. */
export const STEP_MODELS: Record<string, { config: ConfigJson; goal?: number }> = {
  'sigma-1.5b': { config: sigma15bConfig(SIGMA_15B_LAYERS), goal: 0.75 },
  'sigma-10b': { config: sigma10bConfig(SIGMA_10B_LAYERS), goal: 0.85 },
  'llama-8b': { config: llama8bConfig() },
};

/** A decode step of `batchSize` sequences that have `kvLen` keys each. */
export interface StepCase {
  name: string;
  model: string;
  batchSize: number;
  kvLen: number;
  /** The share of the floor that the step should reach. */
  goal: number | null;
}

const BATCH_SIZES = [1, 16];
const KV_LENS = [4096, 32768];

export const STEP_CASES: readonly StepCase[] = Object.entries(STEP_MODELS).flatMap(([model, { goal = null }]) =>
  BATCH_SIZES.flatMap((batchSize) =>
    KV_LENS.map((kvLen) => ({
      name: `${model}, batch ${batchSize}, ${lengthName(kvLen)}`,
      model,
      batchSize,
      kvLen,
      goal: batchSize === 1 ? goal : null,
    })),
  ),
);

/** Decode attention of one sequence. */
export interface AttentionCase {
  name: string;
  heads: HeadShape;
  kvLen: number;
  goal: number;
}

export const ATTENTION_CASES: readonly AttentionCase[] = (
  [
    [64, 32768, 0.8],
    [128, 32768, 0.85],
    [64, 131072, 0.88],
  ] as const
).map(([size, kvLen, goal]) => {
  const heads = headShape([32, 4, 16], size);
  return { name: `attention ${shapeName(heads)}, ${lengthName(kvLen)}`, heads, kvLen, goal };
});

/** The keys of each sequence. */
export const kvLensOf = ({ batchSize, kvLen }: StepCase): number[] => new Array<number>(batchSize).fill(kvLen);

export function sizesOfCase({ model }: StepCase): StepModel {
  return sizesOf((STEP_MODELS[model] as (typeof STEP_MODELS)[string]).config);
}

/** Bytes that memory must deliver in a step. */
export function floorBytes(step: StepCase, design: StepDesign): number {
  const kernels = stepKernels(sizesOfCase(step), kvLensOf(step), design);
  return total(kernels, 'weights') + total(kernels, 'cache');
}

export const modelStep = (step: StepCase, design: StepDesign): ModeledTime =>
  stepTime(sizesOfCase(step), kvLensOf(step), design);

export const modelAttention = ({ heads, kvLen }: AttentionCase, design: StepDesign): ModeledTime =>
  attentionTime(heads, kvLen, design);
