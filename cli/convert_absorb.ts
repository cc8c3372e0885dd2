// `--key-head-dim N`: which tensors change, and their new rows. K gets N rows for each head, and the
// other factor is absorbed by the last matrix of Q.

import type { KeyRotation, ModelShape } from './convert_config';
import { DistanceSums, type KeyFactors, multiplyTransposed, secondMoments } from './convert_factor';
import type { CheckpointFiles } from './convert_files';
import {
  encodeWeights,
  type HeadPlan,
  isWeightType,
  meanHead,
  type ReadBytes,
  type WeightType,
} from './convert_heads';
import { CliError } from './errors';
import {
  invalidCheckpoint,
  openFile,
  printable,
  readFully,
  type StoredTensor,
} from './safetensors';

interface StoredWeight extends StoredTensor {
  dtype: WeightType;
  /** The shard. */
  path: string;
  position: number;
}

/** One layer, with a tensor each for the last matrix of Q, K and the norm before them. */
interface Layer {
  q: StoredWeight;
  /** Q is augmented: the input of its last matrix is not the output of the norm. */
  augmented: boolean;
  k: StoredWeight;
  norm: StoredWeight;
}

export interface Absorption {
  layers: Layer[];
  /** For each layer, one entry for each new K head. Empty until `computeFactors`. */
  factors: KeyFactors[][];
}

export function planAbsorption(files: CheckpointFiles, shape: ModelShape): Absorption {
  const find = (name: string): StoredWeight | undefined => {
    if (files.index && !Object.hasOwn(files.index.weightMap, name)) return undefined;
    for (const { file } of files.shards) {
      const tensor = file.tensors.find((stored) => stored.name === name);
      if (tensor === undefined) continue;
      const { dtype } = tensor;
      if (!isWeightType(dtype))
        throw new CliError(
          'ERR_UNSUPPORTED_MODEL',
          `${file.path}: the tensor '${printable(name)}' has dtype ${dtype}; supported are BF16, F16 and F32`,
        );
      return { ...tensor, dtype, path: file.path };
    }
    return undefined;
  };
  const checked = (weight: StoredWeight | undefined, name: string, expected: number[]) => {
    if (weight === undefined)
      throw invalidCheckpoint(files.path, `the tensor '${name}' is missing`);
    const good = weight.shape.length === expected.length;
    if (!good || expected.some((size, i) => size !== 0 && size !== weight.shape[i]))
      throw invalidCheckpoint(
        weight.path,
        `the tensor '${printable(name)}' has shape [${weight.shape.join(', ')}]; config.json requires ` +
          `[${expected.map((size) => size || '*').join(', ')}]`,
      );
    return weight;
  };
  const layers = Array.from({ length: shape.numLayers }, (_, i): Layer => {
    const at = `model.layers.${i}`;
    const down = `${at}.self_attn.q_down_proj.weight`;
    const augmented = find(down) !== undefined;
    const q = augmented ? down : `${at}.self_attn.q_proj.weight`;
    const k = `${at}.self_attn.k_proj.weight`;
    const norm = `${at}.input_layernorm.weight`;
    const qRows = shape.numQHeads * shape.queryHeadDim;
    return {
      q: checked(find(q), q, [qRows, augmented ? 0 : shape.hiddenSize]),
      augmented,
      k: checked(find(k), k, [shape.numKHeads * shape.keyHeadDim, shape.hiddenSize]),
      norm: checked(find(norm), norm, [shape.hiddenSize]),
    };
  });
  return { layers, factors: [] };
}

/** Computes the factors of all layers. `k` is how K changes. */
export async function computeFactors(
  { layers, factors }: Absorption,
  shape: ModelShape,
  k: HeadPlan,
  { frequencies, numDistances }: KeyRotation,
  signal: AbortSignal,
  onLayer: (done: number, total: number) => void,
): Promise<void> {
  const sums = new DistanceSums(frequencies, k.headRows / k.rowStep, numDistances);
  const groupSize = shape.numQHeads / k.sources.length;
  for (const [i, layer] of layers.entries()) {
    onLayer(i, layers.length);
    const norm = await readHeads(layer.norm, [0], shape.hiddenSize, 1);
    const heads: KeyFactors[] = [];
    for (const [head, sources] of k.sources.entries()) {
      const qMoments = new Float64Array(k.headRows ** 2);
      for (let g = 0; g < groupSize; g++) {
        // Signals arrive between the heads.
        const [rows, columns] = [k.headRows, layer.q.shape[1] as number];
        const weight = await readHeads(layer.q, [head * groupSize + g], rows, columns);
        signal.throwIfAborted();
        const moments = secondMoments(weight, rows, columns, layer.augmented ? undefined : norm);
        for (let j = 0; j < moments.length; j++) (qMoments[j] as number) += moments[j] as number;
      }
      const weight = await readHeads(layer.k, sources, k.headRows, shape.hiddenSize);
      const kMoments = secondMoments(weight, k.headRows, shape.hiddenSize, norm);
      if (![...qMoments, ...kMoments].every(Number.isFinite))
        throw invalidCheckpoint(
          layer.k.path,
          `--key-head-dim: layer ${i} has weights of Q or K that are not finite`,
        );
      heads.push(sums.factor(qMoments, kMoments));
    }
    factors.push(heads);
  }
}

async function readHeads(
  { path, position, dtype }: StoredWeight,
  heads: readonly number[],
  rows: number,
  columns: number,
): Promise<Float64Array> {
  const { file } = await openFile(path);
  try {
    return await meanHead(heads, rows, columns, dtype, (buffer, offset) =>
      readFully(path, file, buffer, position + offset),
    );
  } finally {
    await file.close();
  }
}

/** Yields the bytes of the new K: B^T times the rows of each head. */
export async function* factoredKeys(
  { sources, headRows, rowStep }: HeadPlan,
  factors: readonly KeyFactors[],
  dtype: WeightType,
  columns: number,
  read: ReadBytes,
): AsyncGenerator<Uint8Array> {
  for (const [head, heads] of sources.entries()) {
    const weight = await meanHead(heads, headRows, columns, dtype, read);
    const { k } = factors[head] as KeyFactors;
    const rank = headRows / rowStep;
    yield encodeWeights(dtype, multiplyTransposed(k, weight, rank, headRows, columns));
  }
}

/**
 * Yields the bytes of the new Q: A^T times the rows of each head, in the rows that the lift reads.
 * The others stay as they are, so that training can use them.
 */
export async function* absorbingQueries(
  numQHeads: number,
  { headRows, rowStep }: HeadPlan,
  factors: readonly KeyFactors[],
  dtype: WeightType,
  columns: number,
  read: ReadBytes,
): AsyncGenerator<Uint8Array> {
  for (let head = 0; head < numQHeads; head++) {
    const weight = await meanHead([head], headRows, columns, dtype, read);
    const { q } = factors[Math.floor((head * factors.length) / numQHeads)] as KeyFactors;
    const rank = headRows / rowStep;
    const rows = multiplyTransposed(q, weight, rank, headRows, columns);
    for (let i = 0; i < rank; i++)
      weight.set(rows.subarray(i * columns, (i + 1) * columns), i * rowStep * columns);
    yield encodeWeights(dtype, weight);
  }
}
