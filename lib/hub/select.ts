// Which files of a model are downloaded: those that the loader and the tokenizer read.

import { unsupportedModel } from '../errors';
import { explainNames, otherVocabulary } from '../explain';

export const indexName = 'model.safetensors.index.json';
const singleName = 'model.safetensors';
const smallNames = [
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'chat_template.jinja',
];
const MAX_SHARDS = 10_000;

/** The file with all weights, or the index of several, as the loader chooses it. */
export function weightFiles(names: readonly string[]): { first: string; isIndex: boolean } | null {
  if (names.includes(singleName)) return { first: singleName, isIndex: false };
  return names.includes(indexName) ? { first: indexName, isIndex: true } : null;
}

/** Files to download: `small` ones, and the weights. If `isIndex`, the weights are in the index. */
export interface Selection {
  small: string[];
  weights: { first: string; isIndex: boolean };
}

/** Rejects with ERR_UNSUPPORTED_MODEL if files of these names are no model that can be loaded. */
export async function selectFiles(id: string, names: readonly string[]): Promise<Selection> {
  const weights = weightFiles(names);
  if (weights === null || !names.includes('config.json')) {
    const lacking = weights === null ? `${singleName} or ${indexName}` : 'config.json';
    throw (await explainNames(id, names)) ?? unsupportedModel(id, `the model has no ${lacking}`);
  }
  const vocabulary = names.includes('tokenizer.json') ? null : otherVocabulary(id, names);
  if (vocabulary !== null) throw vocabulary;
  return { small: smallNames.filter((name) => names.includes(name)), weights };
}

/** The shards of an index, or what is wrong with it. */
export function shardNames(index: Buffer): string[] | string {
  let map: unknown;
  try {
    map = (JSON.parse(index.toString()) as { weight_map?: unknown }).weight_map;
  } catch {
    return 'it is not valid JSON';
  }
  if (typeof map !== 'object' || map === null) return 'weight_map is not an object';
  const shards = new Set<unknown>(Object.values(map));
  if (shards.size === 0 || shards.size > MAX_SHARDS) return `it has ${shards.size} shards`;
  for (const shard of shards) {
    // No folders: a shard stays in the snapshot.
    if (typeof shard !== 'string' || !/^\w[\w.-]*\.safetensors$/.test(shard)) {
      return `the shard ${JSON.stringify(shard)} is not the name of a safetensors file`;
    }
  }
  return [...shards].sort() as string[];
}
