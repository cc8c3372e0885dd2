// The files of a checkpoint directory, read and checked; and a directory that comes into being whole or not at all.

import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { lstat, mkdir, open, readdir, realpath, rename, rm, rmdir, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve, sep } from 'node:path';
import { CliError } from './errors';
import {
  broken,
  isObject,
  parseObject,
  printable,
  reading,
  readSafetensors,
  type SafetensorsFile,
  shown,
  withFile,
} from './safetensors';

export interface Shard {
  /** Of the file, in its directory. */
  name: string;
  file: SafetensorsFile;
}

export interface ShardIndex {
  text: Buffer;
  weightMap: Record<string, string>;
}

export interface CheckpointFiles {
  /** model.safetensors or the index: where a tensor that is not there was looked for. */
  path: string;
  config: Buffer;
  shards: Shard[];
  /** Undefined where there is model.safetensors alone. */
  index?: ShardIndex;
  /** All that is to be copied as it is, by path in the directory. */
  others: string[];
  /** What is no part of the checkpoint as it is read here: weights in other forms, links to folders, pipes. */
  leftOut: string[];
}

export const indexName = 'model.safetensors.index.json';
const singleName = 'model.safetensors';
const MAX_TEXT_BYTES = 64 << 20;

export async function readText(path: string): Promise<Buffer> {
  return withFile(path, async (file, size) => {
    if (size > MAX_TEXT_BYTES) throw broken(path, `${size} bytes; the limit is ${MAX_TEXT_BYTES}`);
    return reading(path, () => file.readFile());
  });
}

export async function readCheckpointFiles(directory: string): Promise<CheckpointFiles> {
  const names = await reading(directory, () => readdir(directory));
  const config = await readText(join(directory, 'config.json'));
  let index: ShardIndex | undefined;
  let shardNames = [singleName];
  if (!names.includes(singleName)) {
    if (!names.includes(indexName))
      throw broken(directory, `has neither ${singleName} nor ${indexName} in it`);
    index = await readIndex(join(directory, indexName));
    shardNames = [...new Set(Object.values(index.weightMap))].sort();
  }
  const shards: Shard[] = [];
  const owners = new Map<string, string>(); // tensor -> shard
  for (const name of shardNames) {
    const file = await readSafetensors(join(directory, name));
    for (const tensor of file.tensors) {
      const owner = owners.get(tensor.name);
      if (owner !== undefined)
        throw broken(file.path, `the tensor '${printable(tensor.name)}' is in ${owner} too`);
      owners.set(tensor.name, name);
    }
    shards.push({ name, file });
  }
  for (const [tensor, name] of Object.entries(index?.weightMap ?? {})) {
    if (owners.get(tensor) !== name)
      throw broken(
        join(directory, name),
        `has no tensor '${printable(tensor)}', which ${indexName} places there`,
      );
  }
  const taken = new Set(['config.json', ...shardNames, ...(index ? [indexName] : [])]);
  const path = join(directory, index ? indexName : singleName);
  return { path, config, shards, index, ...(await listOthers(directory, taken)) };
}

/** Its shards are plain names: nothing outside the directory is read or written. */
async function readIndex(path: string): Promise<ShardIndex> {
  const text = await readText(path);
  const { weight_map: map } = parseObject(path, text);
  if (!isObject(map)) throw broken(path, 'weight_map is missing, or no object');
  for (const [tensor, shard] of Object.entries(map)) {
    const plain =
      typeof shard === 'string' &&
      /^[^/\\\0]{1,255}$/.test(shard) &&
      shard !== '.' &&
      shard !== '..';
    if (!plain)
      throw broken(
        path,
        `weight_map: tensor '${printable(tensor)}': its shard ${shown(shard)} is not the plain name of a file`,
      );
  }
  return { text, weightMap: map as Record<string, string> };
}

// Weights as other programs keep them: beside the new ones they would be another model.
const otherWeights =
  /\.(safetensors|gguf|onnx|pth|h5|msgpack|ot)$|^(pytorch_model|consolidated|adapter_model)\b.*\.(bin|pt)$|\.(safetensors|bin)\.index\.json$/;
const unrelated = new Set(['.git', '.cache']);

async function listOthers(
  directory: string,
  taken: Set<string>,
): Promise<{ others: string[]; leftOut: string[] }> {
  const others: string[] = [];
  const leftOut: string[] = [];
  const visit = async (folder: string): Promise<void> => {
    const entries = await reading(join(directory, folder), () =>
      readdir(join(directory, folder), { withFileTypes: true }),
    );
    for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
      const path = join(folder, entry.name);
      if (taken.has(path) || unrelated.has(entry.name)) continue;
      if (entry.isDirectory()) {
        await visit(path);
        continue;
      }
      // Through links: a hub's cache is made of them.
      const isFile = (
        await reading(join(directory, path), () => stat(join(directory, path)))
      ).isFile();
      (isFile && !otherWeights.test(entry.name) ? others : leftOut).push(path);
    }
  };
  await visit('');
  return { others, leftOut };
}

const refused = (path: string, what: string) =>
  new CliError('ERR_INVALID_ARGUMENT', `${path}: ${what}`);

/** Where the output is to stand: nowhere yet or an empty directory, and not in the input. */
export async function checkOutput(input: string, output: string): Promise<string> {
  const source = await reading(input, () => realpath(input));
  const path = resolve(output);
  const exists = await lstat(path).then(
    () => true,
    () => false,
  );
  let target: string;
  try {
    target = exists ? await realpath(path) : join(await realpath(dirname(path)), basename(path));
  } catch {
    throw refused(
      output,
      exists ? 'a link to nowhere' : `there is no directory ${dirname(path)} to make it in`,
    );
  }
  if (target === source || target.startsWith(source + sep))
    throw refused(output, `the input ${input} itself, or in it; name another directory`);
  if (exists && !((await stat(target)).isDirectory() && (await readdir(target)).length === 0))
    throw refused(
      output,
      'exists already, and nothing is overwritten; name a directory that is not there, or is empty',
    );
  if (exists && (await stat(target)).dev !== (await stat(dirname(target))).dev)
    throw refused(
      output,
      'a file system is mounted there, so it cannot be replaced; name a new directory in it',
    );
  return target;
}

/** Files are written beside `target`, under a name with `.partial-` in it, and become `target` in one step at the end. */
export class OutputDirectory {
  readonly #target: string;
  readonly #partial: string;
  readonly #signal: AbortSignal;

  private constructor(target: string, signal: AbortSignal) {
    this.#target = target;
    this.#partial = `${target}.partial-${randomBytes(4).toString('hex')}`;
    this.#signal = signal;
  }

  static async create(target: string, signal: AbortSignal): Promise<OutputDirectory> {
    const output = new OutputDirectory(target, signal);
    await writing(target, () => mkdir(output.#partial));
    return output;
  }

  /** Writes one file; `onBytes` hears of each piece. Once the signal has fired, its reason is thrown. */
  async write(
    name: string,
    pieces: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
    onBytes?: (bytes: number) => void,
  ): Promise<void> {
    const path = join(this.#partial, name);
    const shown = join(this.#target, name);
    await writing(shown, () => mkdir(dirname(path), { recursive: true }));
    const file = await writing(shown, () => open(path, 'wx'));
    try {
      for await (const piece of pieces) {
        this.#signal.throwIfAborted();
        for (let done = 0; done < piece.length; )
          done += (await writing(shown, () => file.write(piece, done))).bytesWritten;
        onBytes?.(piece.length);
      }
      await writing(shown, () => file.datasync());
    } finally {
      await file.close();
    }
  }

  async finish(): Promise<void> {
    this.#signal.throwIfAborted();
    await writing(this.#target, async () => {
      // Elsewhere an empty directory is replaced.
      if (process.platform === 'win32' && existsSync(this.#target)) await rmdir(this.#target);
      await rename(this.#partial, this.#target);
    });
  }

  /** Removes what was written. */
  async discard(): Promise<void> {
    await rm(this.#partial, { recursive: true, force: true });
  }
}

async function writing<T>(path: string, call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw refused(path, `cannot be written: ${(error as Error).message}`);
  }
}
