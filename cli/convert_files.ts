// Reads and checks the files of a checkpoint directory, and writes an output directory that appears
// complete or not at all.

import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { lstat, mkdir, open, readdir, realpath, rename, rm, rmdir, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve, sep } from 'node:path';
import { CliError } from './errors';
import {
  invalidCheckpoint,
  isObject,
  parseObject,
  printable,
  readSafetensors,
  reportReadErrors,
  type SafetensorsFile,
  shown,
  withFile,
} from './safetensors';

export interface Shard {
  /** Name of the file in the checkpoint directory. */
  name: string;
  file: SafetensorsFile;
}

export interface ShardIndex {
  text: Buffer;
  weightMap: Record<string, string>;
}

export interface CheckpointFiles {
  /** model.safetensors or the index, to be named if a tensor is missing. */
  path: string;
  config: Buffer;
  shards: Shard[];
  /** Undefined if the weights are one file, model.safetensors. */
  index?: ShardIndex;
  /** Files to copy unchanged, by path in the directory. */
  others: string[];
  /** Paths that are not copied: weights in other formats, links to folders, pipes. */
  leftOut: string[];
}

export const indexName = 'model.safetensors.index.json';
const singleName = 'model.safetensors';
const MAX_TEXT_BYTES = 64 << 20;

export async function readText(path: string): Promise<Buffer> {
  return withFile(path, async (file, size) => {
    if (size > MAX_TEXT_BYTES)
      throw invalidCheckpoint(path, `${size} bytes; the limit is ${MAX_TEXT_BYTES}`);
    return reportReadErrors(path, () => file.readFile());
  });
}

export async function readCheckpointFiles(directory: string): Promise<CheckpointFiles> {
  const names = await reportReadErrors(directory, () => readdir(directory));
  await checkLinks(directory, ['config.json', indexName, singleName]);
  const config = await readText(join(directory, 'config.json'));
  let index: ShardIndex | undefined;
  let shardNames = [singleName];
  if (!names.includes(singleName)) {
    if (!names.includes(indexName))
      throw invalidCheckpoint(directory, `has neither ${singleName} nor ${indexName}`);
    index = await readIndex(join(directory, indexName));
    shardNames = [...new Set(Object.values(index.weightMap))].sort();
  }
  await checkLinks(directory, shardNames);
  const shards: Shard[] = [];
  const owners = new Map<string, string>(); // tensor -> shard
  for (const name of shardNames) {
    const file = await readSafetensors(join(directory, name));
    for (const tensor of file.tensors) {
      const owner = owners.get(tensor.name);
      if (owner !== undefined)
        throw invalidCheckpoint(
          file.path,
          `the tensor '${printable(tensor.name)}' is in ${owner} too`,
        );
      owners.set(tensor.name, name);
    }
    shards.push({ name, file });
  }
  for (const [tensor, name] of Object.entries(index?.weightMap ?? {})) {
    if (owners.get(tensor) !== name)
      throw invalidCheckpoint(
        join(directory, name),
        `does not contain the tensor '${printable(tensor)}', which ${indexName} assigns to it`,
      );
  }
  const known = new Set(['config.json', ...shardNames, ...(index ? [indexName] : [])]);
  const path = join(directory, index ? indexName : singleName);
  const { others, leftOut } = await listOthers(directory, known);
  await checkLinks(directory, others);
  return { path, config, shards, index, others, leftOut };
}

/**
 * Throws ERR_INVALID_CHECKPOINT, with the name of the link, if a file of the directory is outside
 * it: a checkpoint from a stranger could copy a private file into the output. Files that do not
 * exist are ignored. A snapshot in the cache of the Hugging Face hub consists of links into the
 * folder `blobs` of the same cache entry (ENTRY/snapshots/HASH), which are allowed.
 */
async function checkLinks(directory: string, names: string[]): Promise<void> {
  const root = await reportReadErrors(directory, () => realpath(directory));
  const allowed = [root];
  if (basename(dirname(root)) === 'snapshots') {
    allowed.push(join(dirname(dirname(root)), 'blobs'));
  }
  for (const name of names) {
    const target = await realpath(join(directory, name)).catch(() => null);
    if (target === null || allowed.some((folder) => target.startsWith(folder + sep))) continue;
    throw invalidCheckpoint(
      join(directory, name),
      `a symbolic link to ${printable(target)}, which is outside the directory: replace the link by ` +
        'the file, or remove it',
    );
  }
}

/** Requires that shards are plain file names, so that no path leaves the directory. */
async function readIndex(path: string): Promise<ShardIndex> {
  const text = await readText(path);
  const { weight_map: map } = parseObject(path, text);
  if (!isObject(map)) throw invalidCheckpoint(path, 'weight_map must be an object');
  for (const [tensor, shard] of Object.entries(map)) {
    const plain =
      typeof shard === 'string' &&
      /^[^/\\\0]{1,255}$/.test(shard) &&
      shard !== '.' &&
      shard !== '..';
    if (!plain)
      throw invalidCheckpoint(
        path,
        `weight_map: the shard of ${printable(tensor)} is ${shown(shard)}, not a plain file name`,
      );
  }
  return { text, weightMap: map as Record<string, string> };
}

// Weights in other formats. They would not match the converted weights, so they are not copied.
const otherWeights = [
  /\.(safetensors|gguf|onnx|pth|h5|msgpack|ot)$/,
  /^(pytorch_model|consolidated|adapter_model)\b.*\.(bin|pt)$/,
  /\.(safetensors|bin)\.index\.json$/,
];
const unrelated = new Set(['.git', '.cache']);

async function listOthers(
  directory: string,
  known: Set<string>,
): Promise<{ others: string[]; leftOut: string[] }> {
  const others: string[] = [];
  const leftOut: string[] = [];
  const visit = async (folder: string): Promise<void> => {
    const entries = await reportReadErrors(join(directory, folder), () =>
      readdir(join(directory, folder), { withFileTypes: true }),
    );
    for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
      const path = join(folder, entry.name);
      if (known.has(path) || unrelated.has(entry.name)) continue;
      if (entry.isDirectory()) {
        await visit(path);
        continue;
      }
      // stat follows links: a snapshot in the cache of the Hugging Face hub consists of links.
      const isFile = (
        await reportReadErrors(join(directory, path), () => stat(join(directory, path)))
      ).isFile();
      (isFile && !otherWeights.some((pattern) => pattern.test(entry.name)) ? others : leftOut).push(
        path,
      );
    }
  };
  await visit('');
  return { others, leftOut };
}

const invalidOutput = (path: string, what: string) =>
  new CliError('ERR_INVALID_ARGUMENT', `${path}: ${what}`);

/**
 * Resolves to the real path of the output. It must not exist or be an empty directory, and must not
 * be in the input directory.
 */
export async function checkOutput(input: string, output: string): Promise<string> {
  const source = await reportReadErrors(input, () => realpath(input));
  const path = resolve(output);
  const exists = await lstat(path).then(
    () => true,
    () => false,
  );
  let target: string;
  try {
    target = exists ? await realpath(path) : join(await realpath(dirname(path)), basename(path));
  } catch {
    throw invalidOutput(
      output,
      exists ? 'this link has no target' : `the directory ${dirname(path)} does not exist`,
    );
  }
  if (target === source || target.startsWith(source + sep))
    throw invalidOutput(
      output,
      `this is the input directory ${input} or in it; choose another directory`,
    );
  if (exists && !((await stat(target)).isDirectory() && (await readdir(target)).length === 0))
    throw invalidOutput(
      output,
      'exists already and is not overwritten; choose a new directory or an empty one',
    );
  if (exists && (await stat(target)).dev !== (await stat(dirname(target))).dev)
    throw invalidOutput(
      output,
      'a file system is mounted there, so it cannot be replaced; choose a new directory in it',
    );
  return target;
}

/**
 * An output directory. Its files are written to a directory next to `target` with `.partial-` in
 * its name, which `finish` renames to `target` in one step.
 */
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
    await reportWriteErrors(target, () => mkdir(output.#partial));
    return output;
  }

  /**
   * Writes one file, and calls `onBytes` after each piece. Throws the reason of the signal if it is
   * aborted.
   */
  async write(
    name: string,
    pieces: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
    onBytes?: (bytes: number) => void,
  ): Promise<void> {
    const path = join(this.#partial, name);
    const shownPath = join(this.#target, name);
    await reportWriteErrors(shownPath, () => mkdir(dirname(path), { recursive: true }));
    const file = await reportWriteErrors(shownPath, () => open(path, 'wx'));
    try {
      for await (const piece of pieces) {
        this.#signal.throwIfAborted();
        for (let done = 0; done < piece.length; )
          done += (await reportWriteErrors(shownPath, () => file.write(piece, done))).bytesWritten;
        onBytes?.(piece.length);
      }
      await reportWriteErrors(shownPath, () => file.datasync());
    } finally {
      await file.close();
    }
  }

  async finish(): Promise<void> {
    this.#signal.throwIfAborted();
    await reportWriteErrors(this.#target, async () => {
      // On other systems, rename replaces an empty directory.
      if (process.platform === 'win32' && existsSync(this.#target)) await rmdir(this.#target);
      await rename(this.#partial, this.#target);
    });
  }

  /** Removes the files that were written. Does nothing after `finish`. */
  async discard(): Promise<void> {
    await rm(this.#partial, { recursive: true, force: true });
  }
}

async function reportWriteErrors<T>(path: string, call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw invalidOutput(path, `cannot be written: ${(error as Error).message}`);
  }
}
