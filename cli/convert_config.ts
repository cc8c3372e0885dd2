// Reads a model's heads from config.json, and writes the config.json of the converted model. Only
// this file and csrc/model/config.cc use the names of Hugging Face's config.json.

import { CliError } from './errors';
import { formatObject, invalidCheckpoint, parseObject, printable, shown } from './safetensors';

type Architecture = 'sigma' | 'llama';

export interface Heads {
  numKHeads: number;
  numVHeads: number;
  /** Elements of a K head in the cache. */
  keyHeadDim: number;
}

export interface ModelShape extends Heads {
  architecture: Architecture;
  numQHeads: number;
  queryHeadDim: number;
  valueHeadDim: number;
  /** A layer lifts cached K heads to queryHeadDim (key_lift). */
  lifted: boolean;
  hiddenSize: number;
  numLayers: number;
}

/** Properties of the checkpoint's tensors that config.json may omit. */
export interface TensorFacts {
  augmentedQ: boolean;
  lmHead: boolean;
}

const MAX_HEAD_DIM = 2 ** 12;

const names: Record<string, Architecture> = {
  SigmaForCausalLM: 'sigma',
  sigma: 'sigma',
  diffqkv: 'sigma',
  LlamaForCausalLM: 'llama',
  llama: 'llama',
};

/**
 * A string or a number of a config.json. Python's json module reads and writes NaN and Infinity. A
 * string without an end matches too, so that the time to search is linear in a malformed file.
 */
const token =
  /"(?:[^"\\]+|\\[\s\S])*(?:"|\\?$)|-?\d[\d.eE+-]*|(?<![^ \t\r\n,:[])(?:NaN|-?Infinity)(?![^ \t\r\n,\]}])/g;
const isNonFinite = (t: string) => /^-?[NI]/.test(t);

/** Like `parseObject`, but allows NaN, Infinity and -Infinity. */
export function parseConfig(path: string, bytes: Buffer): Record<string, unknown> {
  const source = bytes.toString('latin1'); // keeps the bytes, which parseObject checks
  if (!/NaN|Infinity/.test(source)) return parseObject(path, bytes);
  const finite = source.replace(token, (t) => (isNonFinite(t) ? 'null' : t));
  const config = parseObject(path, Buffer.from(finite, 'latin1'));
  const mark = unusedMark(path, config);
  const marked = bytes.toString().replace(token, (t) => (isNonFinite(t) ? `"${mark}${t}"` : t));
  return JSON.parse(marked, (_, value) =>
    typeof value === 'string' && value.startsWith(mark) ? Number(value.slice(mark.length)) : value,
  );
}

/** A text that no string of the object has: it is longer than every run of #, escaped or not. */
function unusedMark(path: string, config: Record<string, unknown>): string {
  const runs = formatObject(path, config).match(/#+/g) ?? [];
  return '#'.repeat(1 + runs.reduce((longest, run) => Math.max(longest, run.length), 0));
}

export function readShape(path: string, text: Buffer): ModelShape {
  const config = parseConfig(path, text);
  const integer = (key: string, max: number, otherwise?: number): number => {
    const value = config[key] ?? otherwise;
    if (!Number.isSafeInteger(value) || (value as number) < 1 || (value as number) > max)
      throw invalidCheckpoint(
        path,
        `${key} is ${shown(value)}; it must be an integer from 1 to ${max}`,
      );
    return value as number;
  };
  const architecture = readArchitecture(path, config);
  const sigma = architecture === 'sigma';
  const numQHeads = integer('num_attention_heads', 2 ** 14);
  const heads = (key: string) => {
    const count = integer(key, numQHeads, numQHeads);
    if (numQHeads % count !== 0)
      throw invalidCheckpoint(
        path,
        `num_attention_heads (${numQHeads}) must be a multiple of ${key} (${count})`,
      );
    return count;
  };
  const hiddenSize = integer('hidden_size', 2 ** 20);
  const queryHeadDim = integer('head_dim', MAX_HEAD_DIM, hiddenSize / numQHeads);
  const ownSize = (key: string) =>
    sigma ? integer(key, MAX_HEAD_DIM, queryHeadDim) : queryHeadDim;
  return {
    architecture,
    numQHeads,
    numKHeads: heads(sigma ? 'num_key_heads' : 'num_key_value_heads'),
    numVHeads: heads(sigma ? 'num_value_heads' : 'num_key_value_heads'),
    queryHeadDim,
    keyHeadDim: ownSize('key_head_dim'),
    valueHeadDim: ownSize('value_head_dim'),
    lifted: sigma && (config.key_lift != null || ownSize('key_head_dim') !== queryHeadDim),
    hiddenSize,
    numLayers: integer('num_hidden_layers', 2 ** 12),
  };
}

/** Whether Q, K and V have the same head size, as in a Llama model. */
export function oneHeadSize({
  queryHeadDim,
  keyHeadDim,
  valueHeadDim,
  lifted,
}: ModelShape): boolean {
  return !lifted && keyHeadDim === queryHeadDim && valueHeadDim === queryHeadDim;
}

function readArchitecture(path: string, config: Record<string, unknown>): Architecture {
  const unsupported = (what: string) => new CliError('ERR_UNSUPPORTED_MODEL', `${path}: ${what}`);
  for (const key of ['attention_bias', 'mlp_bias']) {
    if (config[key] === true) throw unsupported(`${key} is true: convert does not support biases`);
  }
  const list = config.architectures ?? [];
  if (!Array.isArray(list))
    throw invalidCheckpoint(path, `architectures is ${shown(list)}; it must be an array`);
  const given: unknown[] = config.model_type == null ? list : [...list, config.model_type];
  for (const name of given) {
    if (typeof name !== 'string')
      throw invalidCheckpoint(
        path,
        `architectures and model_type must be strings, not ${shown(name)}`,
      );
    if (!Object.hasOwn(names, name))
      throw unsupported(
        `the architecture '${printable(name)}' is not supported; Sigma (DiffQKV) and Llama are`,
      );
  }
  const hasK = config.num_key_heads != null;
  const hasV = config.num_value_heads != null;
  if (hasK && hasV) return 'sigma';
  if (
    !hasK &&
    !hasV &&
    given.length > 0 &&
    given.every((name) => names[name as string] === 'llama')
  )
    return 'llama';
  throw unsupported('neither Llama nor DiffQKV, which has num_key_heads and num_value_heads');
}

/**
 * Returns the text of the new config.json: the old bytes if nothing changes. `kvGroupSharing`: for
 * frameworks with one head count for K and V; the result is a Llama config if the model allows it.
 */
export function convertConfig(
  path: string,
  text: Buffer,
  from: ModelShape,
  to: Heads,
  { augmentedQ, lmHead }: TensorFacts,
  kvGroupSharing: boolean,
): Buffer {
  const config = parseConfig(path, text);
  const plain =
    to.numKHeads === to.numVHeads && oneHeadSize(from) && to.keyHeadDim === from.keyHeadDim;
  const fields: Record<string, unknown> = {};
  const llama = plain && (kvGroupSharing ? !augmentedQ : from.architecture === 'llama');
  if (llama) {
    if (kvGroupSharing || to.numKHeads !== from.numKHeads)
      fields.num_key_value_heads = to.numKHeads;
    if (from.architecture === 'sigma') {
      Object.assign(fields, {
        architectures: ['LlamaForCausalLM'],
        model_type: 'llama',
        auto_map: undefined,
      });
      for (const key of [
        'num_key_heads',
        'num_value_heads',
        'aug_q_dim',
        'key_head_dim',
        'value_head_dim',
      ])
        fields[key] = undefined;
      // Other readers take an omitted tie_word_embeddings as false.
      fields.tie_word_embeddings = config.tie_word_embeddings ?? !lmHead;
    }
  } else {
    Object.assign(fields, { num_key_heads: to.numKHeads, num_value_heads: to.numVHeads });
    const both = plain && (kvGroupSharing || config.num_key_value_heads != null);
    fields.num_key_value_heads = both ? to.numKHeads : undefined;
    if (from.architecture === 'llama') {
      Object.assign(fields, {
        architectures: ['SigmaForCausalLM'],
        model_type: 'sigma',
        auto_map: undefined,
      });
      // Llama has defaults for these, Sigma does not.
      const rope = (config.rope_parameters ?? config.rope_scaling) as
        | Record<string, unknown>
        | null
        | undefined;
      if (rope?.rope_theta === undefined) fields.rope_theta = config.rope_theta ?? 10000;
      fields.rms_norm_eps = config.rms_norm_eps ?? 1e-6;
    }
  }
  if (to.keyHeadDim !== from.keyHeadDim) {
    fields.head_dim = from.queryHeadDim;
    fields.key_head_dim = to.keyHeadDim;
    fields.key_lift = { kind: 'linear', position: 'after_rope' };
  }
  return withFields(path, text, config, fields);
}

/**
 * Sets fields in the text of a JSON object; undefined removes a field. Numbers that do not change
 * keep their spelling.
 */
function withFields(
  path: string,
  text: Buffer,
  config: Record<string, unknown>,
  fields: Record<string, unknown>,
): Buffer {
  const changed = Object.entries(fields).filter(
    ([key, value]) => JSON.stringify(value) !== JSON.stringify(config[key]),
  );
  if (changed.length === 0) return text;
  // JSON.parse and JSON.stringify would turn 50000.0 into 50000, an integer for some readers. So
  // numbers are parsed as strings that begin with a mark.
  const mark = unusedMark(path, config);
  const marked = JSON.parse(
    text.toString().replace(token, (t) => (t.startsWith('"') ? t : `"${mark}${t}"`)),
  );
  Object.assign(marked, Object.fromEntries(changed));
  const written = formatObject(path, marked).replace(new RegExp(`"${mark}([^"]*)"`, 'g'), '$1');
  return Buffer.from(written);
}
