// Writes the new files, from generators of their bytes. A piece is valid until the next one is
// requested.

import type { FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { absorbingQueries, factoredKeys } from './convert_absorb';
import type { KeyFactors } from './convert_factor';
import {
  type CheckpointFiles,
  indexName,
  OutputDirectory,
  type Shard,
  type ShardIndex,
} from './convert_files';
import { convertedHeads, liftMatrix, type ReadBytes } from './convert_heads';
import type { Plan, TensorChange } from './convert_plan';
import { megabytes, ProgressBar } from './progress';
import {
  formatObject,
  isObject,
  openFile,
  parseObject,
  readFully,
  type StoredTensor,
  safetensorsHeader,
} from './safetensors';

/** What a conversion writes, beside the files that it copies. */
export interface Conversion {
  /** What the progress bar calls the work. */
  title: string;
  config: Buffer;
  /** Undefined if the weights are one file. */
  index: Buffer | undefined;
  shardBytes(shard: Shard): AsyncIterable<Uint8Array>;
  /** Of all tensors, after it. */
  weightBytes: number;
}

/** Writes the converted checkpoint `input` to `target`, which appears complete or not at all. */
export async function writeConverted(
  input: string,
  target: string,
  { shards, others }: CheckpointFiles,
  { title, config, index, shardBytes, weightBytes }: Conversion,
  signal: AbortSignal,
): Promise<void> {
  const directory = await OutputDirectory.create(target, signal);
  const bar = new ProgressBar(title, megabytes);
  try {
    await directory.write('config.json', [config]);
    if (index) await directory.write(indexName, [index]);
    for (const name of others) await directory.write(name, fileBytes(join(input, name)));
    let done = 0;
    for (const shard of shards) {
      await directory.write(shard.name, shardBytes(shard), (bytes) => {
        done += bytes;
        bar.update(Math.min(done, weightBytes), weightBytes);
      });
    }
    await directory.finish();
  } finally {
    bar.clear();
    await directory.discard(); // no effect after finish()
  }
}

export const bytesOf = (tensors: readonly StoredTensor[]): number =>
  tensors.reduce((sum, { bytes }) => sum + bytes, 0);

/** The tensors of the new file, in file order. */
export function newTensors({ file }: Shard, { changes }: Plan): StoredTensor[] {
  return file.tensors.flatMap((tensor) => {
    const change = changes.get(tensor.name);
    if (change === undefined) return tensor;
    return change.lift === undefined ? change.to : [change.to, change.lift];
  });
}

/** The bytes of the new file: the old bytes if no tensor changes. */
export async function* shardBytes(shard: Shard, plan: Plan): AsyncGenerator<Uint8Array> {
  const { path, metadata, tensors } = shard.file;
  if (!tensors.some(({ name }) => plan.changes.has(name))) return yield* fileBytes(path);
  const { file } = await openFile(path);
  try {
    yield safetensorsHeader(metadata, newTensors(shard, plan));
    for (const { name, position, bytes } of tensors) {
      const change = plan.changes.get(name);
      if (change === undefined) {
        yield* copied(path, file, position, bytes);
        continue;
      }
      const read: ReadBytes = (buffer, offset) => readFully(path, file, buffer, position + offset);
      yield* changedTensor(change, plan, read);
      if (change.lift !== undefined) yield liftMatrix(change.to.dtype, change.heads);
    }
  } finally {
    await file.close();
  }
}

function changedTensor(
  { to, heads, factored }: TensorChange,
  { absorption, numQHeads }: Plan,
  read: ReadBytes,
): AsyncGenerator<Uint8Array> {
  const columns = to.shape[1] as number;
  if (factored === undefined) return convertedHeads(heads, to.dtype, columns, read);
  const factors = absorption?.factors[factored.layer] as KeyFactors[];
  return factored.part === 'k'
    ? factoredKeys(heads, factors, to.dtype, columns, read)
    : absorbingQueries(numQHeads, heads, factors, to.dtype, columns, read);
}

export async function* fileBytes(path: string): AsyncGenerator<Uint8Array> {
  const { file, size } = await openFile(path);
  try {
    yield* copied(path, file, 0, size);
  } finally {
    await file.close();
  }
}

const copyBuffer = new Uint8Array(8 << 20);

export async function* copied(
  path: string,
  file: FileHandle,
  position: number,
  bytes: number,
): AsyncGenerator<Uint8Array> {
  for (let done = 0; done < bytes; ) {
    const piece = copyBuffer.subarray(0, Math.min(copyBuffer.length, bytes - done));
    await readFully(path, file, piece, position + done);
    done += piece.length;
    yield piece;
  }
}

/** The new index, with the new tensors and totals: the old bytes if nothing changes. */
export function newIndex(
  path: string,
  { text, weightMap }: ShardIndex,
  shards: Shard[],
  plan: Plan,
): Buffer {
  if (plan.changes.size === 0) return text;
  const index = parseObject(path, text);
  const entries = Object.entries(weightMap).flatMap(([name, shard]) => {
    const lift = plan.changes.get(name)?.lift;
    return lift === undefined
      ? [[name, shard]]
      : [
          [name, shard],
          [lift.name, shard],
        ];
  });
  index.weight_map = Object.fromEntries(entries);
  const { metadata } = index;
  if (isObject(metadata)) {
    const elements = ({ shape }: StoredTensor) => shape.reduce((a, b) => a * b, 1);
    const growth = (size: (tensor: StoredTensor) => number): number => {
      const sum = (tensors: StoredTensor[]) =>
        tensors.reduce((total, tensor) => total + size(tensor), 0);
      return (
        sum(shards.flatMap((shard) => newTensors(shard, plan))) -
        sum(shards.flatMap(({ file }) => file.tensors))
      );
    };
    if (typeof metadata.total_size === 'number')
      metadata.total_size += growth(({ bytes }) => bytes);
    if (typeof metadata.total_parameters === 'number')
      metadata.total_parameters += growth(elements);
  }
  return Buffer.from(formatObject(path, index));
}
