// Plans what a conversion does with each tensor.

import { type Absorption, planAbsorption } from './convert_absorb';
import { type Heads, type ModelShape, oneHeadSize } from './convert_config';
import type { CheckpointFiles } from './convert_files';
import { type HeadPlan, headSources, isWeightType, type WeightType } from './convert_heads';
import { CliError } from './errors';
import { invalidCheckpoint, printable, type StoredTensor } from './safetensors';

export interface ConvertCommand {
  keyHeads?: number;
  valueHeads?: number;
  keyHeadDim?: string;
  kvGroupSharing?: boolean;
  weightType?: string;
  groupSize?: number;
  json?: boolean;
}

/** How a tensor of Q, K or V changes. */
export interface TensorChange {
  to: StoredTensor & { dtype: WeightType };
  heads: HeadPlan;
  /** The layer, if K is factored and this is its K, or the last matrix of its Q. */
  factored?: { layer: number; part: 'q' | 'k' };
  /** A lift tensor to write after it. */
  lift?: StoredTensor;
}

export interface Plan {
  to: Heads;
  numQHeads: number;
  k: HeadPlan;
  /** `--key-head-dim N`. */
  absorption?: Absorption;
  /** Changes by the name of the old tensor. Other tensors are copied. */
  changes: Map<string, TensorChange>;
}

const invalid = (message: string) => new CliError('ERR_INVALID_ARGUMENT', message);

export function makePlan(files: CheckpointFiles, shape: ModelShape, command: ConvertCommand): Plan {
  const { keyHeads, valueHeads, keyHeadDim, kvGroupSharing } = command;
  if (
    keyHeads === undefined &&
    valueHeads === undefined &&
    keyHeadDim === undefined &&
    !kvGroupSharing
  )
    throw invalid(
      'nothing to do: pass --key-heads, --value-heads, --key-head-dim or --kv-group-sharing',
    );
  const kGroups = groups('--key-heads', keyHeads, shape.numKHeads, 'K');
  const vGroups = groups('--value-heads', valueHeads, shape.numVHeads, 'V');
  const keySize = keyHeadDim === undefined ? shape.keyHeadDim : newKeySize(keyHeadDim, shape);
  if (kvGroupSharing && (keyHeadDim !== undefined || !oneHeadSize(shape)))
    throw invalid(
      '--kv-group-sharing requires one head size for Q, K and V: use a model with one size, ' +
        'without --key-head-dim',
    );
  // The smallest head count to which both K and V heads can be copied.
  const shared = kvGroupSharing ? leastCommonMultiple(kGroups, vGroups) : undefined;
  const to = {
    numKHeads: shared ?? kGroups,
    numVHeads: shared ?? vGroups,
    keyHeadDim: keySize,
  };
  const k: HeadPlan = {
    sources: headSources(shape.numKHeads, kGroups, to.numKHeads),
    headRows: shape.keyHeadDim,
    rowStep: shape.keyHeadDim / keySize,
  };
  const v: HeadPlan = {
    sources: headSources(shape.numVHeads, vGroups, to.numVHeads),
    headRows: shape.valueHeadDim,
    rowStep: 1,
  };
  const changes = planTensors(files, shape, k, v);
  const factors = keyHeadDim !== undefined && keyHeadDim !== 'half';
  const absorption = factors ? planAbsorption(files, shape) : undefined;
  for (const [layer, { q, k: stored }] of (absorption?.layers ?? []).entries()) {
    const change = changes.get(stored.name) as TensorChange;
    change.factored = { layer, part: 'k' };
    changes.set(q.name, { to: q, heads: k, factored: { layer, part: 'q' } });
  }
  return { to, numQHeads: shape.numQHeads, k, absorption, changes };
}

/**
 * The number of groups to pool `present` heads into. Throws unless it is a divisor of `present`.
 */
function groups(option: string, count: number | undefined, present: number, what: string): number {
  if (count === undefined) return present;
  if (!Number.isSafeInteger(count) || count < 1 || present % count !== 0)
    throw invalid(
      `${option} is ${count}; it must be a divisor of the model's ${present} ${what} heads`,
    );
  return count;
}

/** The new K head size by `--key-head-dim`. Throws if it does not suit the model. */
function newKeySize(option: string, { keyHeadDim, lifted }: ModelShape): number {
  const number = /^\d{1,5}$/.test(option) ? Number(option) : undefined;
  if (option !== 'half' && number === undefined)
    throw invalid(`--key-head-dim must be a number or 'half', not '${printable(option)}'`);
  if (lifted)
    throw invalid(`--key-head-dim ${option}: K has a lift already (key_lift in config.json)`);
  if (number === undefined) {
    if (keyHeadDim % 4 === 0) return keyHeadDim / 2;
    throw invalid(
      `--key-head-dim half: K head size ${keyHeadDim} must be a multiple of 4 (RoPE rotates pairs)`,
    );
  }
  if (number % 2 !== 0 || number >= keyHeadDim || number === 0 || keyHeadDim % number !== 0)
    throw invalid(
      `--key-head-dim is ${number}; it must be an even divisor of the K head size, ${keyHeadDim}, and ` +
        'below it',
    );
  return number;
}

function leastCommonMultiple(a: number, b: number): number {
  let multiple = Math.max(a, b);
  while (multiple % a !== 0 || multiple % b !== 0) multiple += Math.max(a, b);
  return multiple;
}

const attentionPart = /^model\.layers\.(\d+)\.self_attn\.([kv])_(.*)$/;

function planTensors(
  files: CheckpointFiles,
  shape: ModelShape,
  k: HeadPlan,
  v: HeadPlan,
): Map<string, TensorChange> {
  const changes = new Map<string, TensorChange>();
  const seen = new Set<string>();
  for (const { file } of files.shards) {
    for (const tensor of file.tensors) {
      const [, layer, part, rest] = attentionPart.exec(tensor.name) ?? [];
      if (
        layer === undefined ||
        (files.index && !Object.hasOwn(files.index.weightMap, tensor.name))
      )
        continue;
      if (part === 'k' && shape.lifted && rest?.startsWith('lift_')) continue;
      const fail = (what: string) => `${file.path}: the tensor '${printable(tensor.name)}' ${what}`;
      if (rest !== 'proj.weight')
        throw new CliError(
          'ERR_UNSUPPORTED_MODEL',
          fail('does not belong to a Sigma or Llama layer'),
        );
      if (Number(layer) >= shape.numLayers)
        throw new CliError(
          'ERR_INVALID_CHECKPOINT',
          fail(`belongs to layer ${layer}, but config.json has ${shape.numLayers} layers`),
        );
      const change = planTensor(fail, tensor, shape, part === 'k' ? k : v);
      seen.add(tensor.name);
      if (change) changes.set(tensor.name, change);
    }
  }
  for (let layer = 0; layer < shape.numLayers; layer++) {
    for (const part of ['k', 'v']) {
      const name = `model.layers.${layer}.self_attn.${part}_proj.weight`;
      if (!seen.has(name)) throw invalidCheckpoint(files.path, `the tensor '${name}' is missing`);
    }
  }
  const made = new Set([...changes.values()].map(({ lift }) => lift?.name));
  for (const { file } of files.shards) {
    // A tensor that the index does not list may have the name of a new one.
    const clash = file.tensors.find(({ name }) => made.has(name));
    if (clash)
      throw invalidCheckpoint(
        file.path,
        `the tensor '${clash.name}' exists already, and the conversion would create it`,
      );
  }
  return changes;
}

function planTensor(
  fail: (what: string) => string,
  { name, dtype, shape: stored }: StoredTensor,
  shape: ModelShape,
  heads: HeadPlan,
): TensorChange | undefined {
  const isK = name.endsWith('k_proj.weight');
  const numHeads = isK ? shape.numKHeads : shape.numVHeads;
  const expected = [numHeads * heads.headRows, shape.hiddenSize];
  if (stored.join() !== expected.join())
    throw new CliError(
      'ERR_INVALID_CHECKPOINT',
      fail(`has shape [${stored.join(', ')}]; config.json requires [${expected.join(', ')}]`),
    );
  if (!isWeightType(dtype))
    throw new CliError(
      'ERR_UNSUPPORTED_MODEL',
      fail(`has dtype ${dtype}; supported are BF16, F16 and F32`),
    );
  const same =
    heads.rowStep === 1 &&
    heads.sources.length === numHeads &&
    heads.sources.every((s) => s.length === 1);
  if (same) return undefined;
  const make = (name: string, rows: number, columns: number) => {
    return {
      name,
      dtype,
      shape: [rows, columns],
      bytes: rows * columns * (dtype === 'F32' ? 4 : 2),
    };
  };
  const rows = heads.headRows / heads.rowStep;
  return {
    to: make(name, heads.sources.length * rows, shape.hiddenSize),
    heads,
    lift:
      heads.rowStep > 1
        ? make(name.replace('k_proj', 'k_lift_proj'), heads.headRows, rows)
        : undefined,
  };
}
