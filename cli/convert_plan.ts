// What a conversion makes of each tensor.

import { type Heads, type ModelShape, oneHeadSize } from './convert_config';
import type { CheckpointFiles } from './convert_files';
import { type HeadPlan, headSources, isWeightType, type WeightType } from './convert_heads';
import { CliError } from './errors';
import { broken, printable, type StoredTensor } from './safetensors';

export interface ConvertCommand {
  keyHeads?: number;
  valueHeads?: number;
  keyHeadDim?: string;
  kvGroupSharing?: boolean;
  json?: boolean;
}

/** How a tensor of K or V changes. */
export interface TensorChange {
  to: StoredTensor & { dtype: WeightType };
  heads: HeadPlan;
  /** What is written after it. */
  lift?: StoredTensor;
}

export interface Plan {
  to: Heads;
  hiddenSize: number;
  /** By the old tensor's name; the others stay as they are. */
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
      'nothing to do: give --key-heads, --value-heads, --key-head-dim or --kv-group-sharing',
    );
  const kGroups = groups('--key-heads', keyHeads, shape.numKHeads, 'K');
  const vGroups = groups('--value-heads', valueHeads, shape.numVHeads, 'V');
  const half = keyHeadDim !== undefined;
  if (half) checkHalf(keyHeadDim, shape);
  if (kvGroupSharing && (half || !oneHeadSize(shape)))
    throw invalid(
      '--kv-group-sharing is for frameworks that know one head count and one head size; here K or V has a size of its own',
    );
  // The smallest count that K's and V's heads can both be copied to: the larger one, where the smaller divides it.
  const shared = kvGroupSharing ? leastCommonMultiple(kGroups, vGroups) : undefined;
  const to = {
    numKHeads: shared ?? kGroups,
    numVHeads: shared ?? vGroups,
    keyHeadDim: half ? shape.keyHeadDim / 2 : shape.keyHeadDim,
  };
  const k: HeadPlan = {
    sources: headSources(shape.numKHeads, kGroups, to.numKHeads),
    headRows: shape.keyHeadDim,
    rowStep: half ? 2 : 1,
  };
  const v: HeadPlan = {
    sources: headSources(shape.numVHeads, vGroups, to.numVHeads),
    headRows: shape.valueHeadDim,
    rowStep: 1,
  };
  return { to, hiddenSize: shape.hiddenSize, changes: planTensors(files, shape, k, v) };
}

function groups(option: string, wanted: number | undefined, present: number, what: string): number {
  if (wanted === undefined) return present;
  if (!Number.isSafeInteger(wanted) || wanted < 1 || present % wanted !== 0)
    throw invalid(
      `${option} is ${wanted}; it must divide the ${present} ${what} heads that the model has`,
    );
  return wanted;
}

function checkHalf(wanted: string, { keyHeadDim, lifted }: ModelShape): void {
  if (wanted !== 'half') throw invalid(`--key-head-dim must be 'half', not '${printable(wanted)}'`);
  if (lifted)
    throw invalid('--key-head-dim half: K has a lift already, by the key_lift of config.json');
  if (keyHeadDim % 4 !== 0)
    throw invalid(
      `--key-head-dim half: the head size ${keyHeadDim} is no multiple of 4, and RoPE turns pairs of dims`,
    );
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
        throw new CliError('ERR_UNSUPPORTED_MODEL', fail('is no part of a Sigma or Llama layer'));
      if (Number(layer) >= shape.numLayers)
        throw new CliError(
          'ERR_INVALID_CHECKPOINT',
          fail(`is of a layer past the ${shape.numLayers} of config.json`),
        );
      const change = planTensor(fail, tensor, shape, part === 'k' ? k : v);
      seen.add(tensor.name);
      if (change) changes.set(tensor.name, change);
    }
  }
  for (let layer = 0; layer < shape.numLayers; layer++) {
    for (const part of ['k', 'v']) {
      const name = `model.layers.${layer}.self_attn.${part}_proj.weight`;
      if (!seen.has(name)) throw broken(files.path, `the tensor '${name}' is missing`);
    }
  }
  const made = new Set([...changes.values()].map(({ lift }) => lift?.name));
  for (const { file } of files.shards) {
    const clash = file.tensors.find(({ name }) => made.has(name)); // one that the index leaves out
    if (clash)
      throw broken(
        file.path,
        `the tensor '${clash.name}' is there already, and the conversion is to make it`,
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
  const wanted = [numHeads * heads.headRows, shape.hiddenSize];
  if (stored.join() !== wanted.join())
    throw new CliError(
      'ERR_INVALID_CHECKPOINT',
      fail(`has shape [${stored.join(', ')}]; by config.json it must be [${wanted.join(', ')}]`),
    );
  if (!isWeightType(dtype))
    throw new CliError(
      'ERR_UNSUPPORTED_MODEL',
      fail(`is of type ${dtype}; BF16, F16 and F32 are supported`),
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
      heads.rowStep === 2
        ? make(name.replace('k_proj', 'k_lift_proj'), heads.headRows, rows)
        : undefined,
  };
}
