import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { DiffqkvError, type ErrorCode, invalidCheckpoint } from '../errors';
import { explain } from '../explain';
import { readRegularFile } from '../files';
import { CachedModel } from './cache';
import { checkConfig, configNames, type ParsedConfig } from './check_config';
import { HubClient, type HubFile } from './client';
import { hubId, idText, type ModelId } from './id';
import { selectFiles, shardNames, weightFiles } from './select';
import { hubSettings } from './settings';

/** A model that is not loaded, and of a hub not downloaded. */
export interface Inspection {
  /** The id, or the path of the directory. */
  source: string;
  /** The directory, if the files are there. */
  directory?: string;
  /** The commit of a model on a hub. */
  commit?: string;
  /** The text of config.json, if there is one. */
  config: string | undefined;
  /** The same as the loader reads it, if the model is supported. */
  parsed: ParsedConfig | undefined;
  /** Bytes of the files that the loader and the tokenizer read. */
  bytes: number;
  /** Names of the files with weights. */
  weights: string[];
  /** Number of parameters, if the hub has counted them. */
  numParameters?: number;
  /** Why the model does not load, as far as its configs and the names of its files tell. */
  problem?: { code: ErrorCode; message: string };
}

const MAX_INDEX_BYTES = 64 * 2 ** 20;

/** The files of a model, wherever they are. */
interface Files {
  names: string[];
  size(name: string): Promise<number>;
  read(name: string): Promise<Buffer>;
}

/** Describes a directory, or a model on a hub without its weights. */
export async function inspectModel(source: string): Promise<Inspection> {
  const id = await hubId(source);
  if (id === null) return inspectDirectory(source, source);
  const settings = await hubSettings();
  if (settings.offline) {
    const directory = await new CachedModel(settings.cache, id.name).completeSnapshot(id);
    if (directory !== null) return inspectDirectory(directory, source);
    throw new DiffqkvError(
      'ERR_MODEL_NOT_FOUND',
      `${source}: no such directory, and no complete download in ${settings.cache}`,
    );
  }
  return inspectHub(id, new HubClient(settings, id, new AbortController().signal));
}

async function inspectHub(id: ModelId, client: HubClient): Promise<Inspection> {
  const { commit, files, numParameters } = await client.modelInfo();
  const listed = await client.listFiles(commit);
  const find = (name: string): HubFile => {
    const file = listed.get(name);
    if (file === undefined) throw client.invalidAnswer(`${name} is not in the listing`);
    return file;
  };
  const inspection = await inspectFiles(idText(id), {
    names: files,
    size: async (name) => find(name).size,
    read: (name) => client.readFile(commit, find(name)),
  });
  return { ...inspection, commit, numParameters };
}

/** Describes a directory. `name` is what messages call it. */
export async function inspectDirectory(directory: string, name: string): Promise<Inspection> {
  try {
    const names = await readdir(directory).catch((error: Error) => {
      throw invalidCheckpoint(directory, `cannot be read: ${error.message}`);
    });
    const inspection = await inspectFiles(name, {
      names,
      size: async (file) => (await stat(join(directory, file))).size,
      async read(file) {
        const bytes = await readRegularFile(join(directory, file), MAX_INDEX_BYTES);
        if (bytes === null) throw invalidCheckpoint(join(directory, file), 'no such file');
        return bytes;
      },
    });
    return { ...inspection, directory };
  } catch (error) {
    throw await explain(directory, error);
  }
}

async function inspectFiles(source: string, { names, size, read }: Files): Promise<Inspection> {
  let problem: Inspection['problem'];
  const check = async <T>(work: () => T | Promise<T>): Promise<T | undefined> => {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof DiffqkvError) || error.code === 'ERR_NETWORK') throw error;
      problem ??= { code: error.code, message: error.message };
      return undefined;
    }
  };
  const contents = new Map<string, Buffer>();
  for (const name of configNames) {
    if (names.includes(name)) contents.set(name, await read(name));
  }
  const selection = await check(() => selectFiles(source, names));
  const parsed = contents.has('config.json')
    ? await check(() => checkConfig(contents, source))
    : undefined;
  const found = weightFiles(names);
  let weights = found === null || found.isIndex ? [] : [found.first];
  if (found?.isIndex) {
    const shards = shardNames(await read(found.first));
    if (typeof shards !== 'string') weights = shards;
    else problem ??= { code: 'ERR_INVALID_CHECKPOINT', message: `${found.first}: ${shards}` };
  }
  const index = found?.isIndex ? [found.first] : [];
  const sizes = await check(() =>
    Promise.all([...(selection?.small ?? []), ...index, ...weights].map(size)),
  );
  const bytes = (sizes ?? []).reduce((sum, one) => sum + one, 0);
  const config = contents.get('config.json')?.toString();
  return { source, config, parsed, bytes, weights, problem };
}
