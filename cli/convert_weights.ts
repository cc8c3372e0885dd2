// Quantizes the matrices of a checkpoint's layers, in the form "pack-quantized" of compressed-tensors.

import { join } from 'node:path';
import { inspectDirectory } from '../lib/hub/index';
import { type Device, kernels, openDevice, type Tensor } from '../lib/index';
import {
  type CheckpointFiles,
  checkOutput,
  indexName,
  readCheckpointFiles,
  type Shard,
} from './convert_files';
import { bytesOf, copied, writeConverted } from './convert_write';
import { CliError } from './errors';
import {
  formatObject,
  isObject,
  openFile,
  parseObject,
  readFully,
  type StoredTensor,
  safetensorsHeader,
} from './safetensors';

export interface WeightOptions {
  weightType: 'i8' | 'i4';
  /** Elements of a row with one scale: 32, 64 or 128. */
  groupSize: number;
}

const bits = { i8: 8, i4: 4 };
const dtypes: Record<string, 'f32' | 'f16' | 'bf16'> = { F32: 'f32', F16: 'f16', BF16: 'bf16' };

/** Resolves to the bytes of the weights before and after. */
export async function quantizeCheckpoint(
  input: string,
  output: string,
  options: WeightOptions,
  signal: AbortSignal,
): Promise<{ directory: string; weightBytes: { from: number; to: number }; leftOut: string[] }> {
  const target = await checkOutput(input, output);
  const files = await readCheckpointFiles(input);
  await checkConfig(input);
  const before = files.shards.flatMap(({ file }) => file.tensors);
  const after = before.flatMap((tensor) => newTensors(tensor, options));
  const weightBytes = { from: bytesOf(before), to: bytesOf(after) };
  const device = await openDevice('cpu');
  try {
    const conversion = {
      title: 'quantizing',
      config: newConfig(input, files, options),
      index: files.index && newIndex(input, files, options),
      shardBytes: (shard: Shard) => shardBytes(shard, options, device),
      weightBytes: weightBytes.to,
    };
    await writeConverted(input, target, files, conversion, signal);
  } finally {
    device.dispose();
  }
  return { directory: output, weightBytes, leftOut: files.leftOut };
}

/** Throws the loader's error if it does not accept the config. */
async function checkConfig(input: string): Promise<void> {
  const { parsed, problem } = await inspectDirectory(input, input);
  if (problem !== undefined) throw new CliError(problem.code, problem.message);
  const quantization = parsed?.quantization;
  if (quantization === undefined) return;
  throw new CliError(
    'ERR_UNSUPPORTED_MODEL',
    `${join(input, 'config.json')}: the weights are quantized already (${quantization}): convert the ` +
      'checkpoint from which they were made',
  );
}

function newConfig(input: string, files: CheckpointFiles, options: WeightOptions): Buffer {
  const path = join(input, 'config.json');
  const config = parseObject(path, files.config);
  const weights = {
    num_bits: bits[options.weightType],
    type: 'int',
    symmetric: true,
    strategy: 'group',
    group_size: options.groupSize,
    dynamic: false,
  };
  const group = {
    targets: ['Linear'],
    weights,
    input_activations: null,
    output_activations: null,
  };
  config.quantization_config = {
    quant_method: 'compressed-tensors',
    format: 'pack-quantized',
    quantization_status: 'compressed',
    config_groups: { group_0: group },
    ignore: ['lm_head'],
    kv_cache_scheme: null,
  };
  return Buffer.from(formatObject(path, config));
}

/** The matrices of the layers: not embeddings, norms, biases and the output matrix. */
const isQuantized = ({ name, shape, dtype }: StoredTensor) =>
  /(^|\.)layers\.\d+\..*\.weight$/.test(name) && shape.length === 2 && dtype in dtypes;

/** The tensors of the new file in place of one, in file order. */
function newTensors(tensor: StoredTensor, { weightType, groupSize }: WeightOptions) {
  if (!isQuantized(tensor)) return [tensor];
  const [rows, columns] = tensor.shape as [number, number];
  const part = (end: string, dtype: string, shape: number[], elementBytes: number) => ({
    ...tensor,
    name: tensor.name.replace(/weight$/, end),
    dtype,
    shape,
    bytes: shape.reduce((a, b) => a * b, elementBytes),
  });
  return [
    part('weight_packed', 'I32', [rows, Math.ceil((columns * bits[weightType]) / 32)], 4),
    part('weight_scale', 'BF16', [rows, Math.ceil(columns / groupSize)], 2),
    part('weight_shape', 'I64', [2], 8),
  ];
}

function newIndex(input: string, files: CheckpointFiles, options: WeightOptions): Buffer {
  const path = join(input, indexName);
  const index = parseObject(path, files.index?.text ?? Buffer.of());
  const tensors = files.shards.flatMap(({ name, file }) =>
    file.tensors.flatMap((tensor) =>
      newTensors(tensor, options).map((made) => ({ ...made, shard: name })),
    ),
  );
  index.weight_map = Object.fromEntries(tensors.map(({ name, shard }) => [name, shard]));
  if (isObject(index.metadata)) index.metadata.total_size = bytesOf(tensors);
  return Buffer.from(formatObject(path, index));
}

async function* shardBytes(
  shard: Shard,
  options: WeightOptions,
  device: Device,
): AsyncGenerator<Uint8Array> {
  const { path, metadata, tensors } = shard.file;
  const { file } = await openFile(path);
  try {
    yield safetensorsHeader(
      metadata,
      tensors.flatMap((tensor) => newTensors(tensor, options)),
    );
    for (const tensor of tensors) {
      if (!isQuantized(tensor)) {
        yield* copied(path, file, tensor.position, tensor.bytes);
        continue;
      }
      const bytes = new Uint8Array(tensor.bytes);
      await readFully(path, file, bytes, tensor.position);
      yield* quantized(tensor, bytes, options, device);
    }
  } finally {
    await file.close();
  }
}

/** The bytes of weight_packed, weight_scale and weight_shape. */
async function* quantized(
  { shape, dtype }: StoredTensor,
  bytes: Uint8Array,
  { weightType, groupSize }: WeightOptions,
  device: Device,
): AsyncGenerator<Uint8Array> {
  const [rows, columns] = shape as [number, number];
  const elements = dtype === 'F32' ? new Float32Array(bytes.buffer) : new Uint16Array(bytes.buffer);
  using weight = device.tensor(dtypes[dtype] as 'f32', [rows, columns], elements);
  const { values, scales } = await kernels.quantizeWeight({ weight, type: weightType, groupSize });
  try {
    const words = new Int32Array(sizeOf(values) / (weightType === 'i8' ? 4 : 1));
    await values.readInto(weightType === 'i8' ? new Int8Array(words.buffer) : words);
    yield asBytes(packed(words, rows, columns, weightType));
    const stored = new Uint16Array(sizeOf(scales));
    await scales.readInto(stored);
    yield asBytes(stored);
    yield asBytes(BigInt64Array.of(BigInt(rows), BigInt(columns)));
  } finally {
    values.dispose();
    scales.dispose();
  }
}

const sizeOf = ({ shape }: Tensor) => shape.reduce((a, b) => a * b, 1);

const asBytes = (array: Int32Array | Uint16Array | BigInt64Array) =>
  new Uint8Array(array.buffer, array.byteOffset, array.byteLength);

/**
 * Rows of kernels.quantizeWeight, which are padded to 32 elements, in the order of compressed-tensors:
 * element i of a word is at bit `bits` i, plus 2^(bits - 1).
 */
function packed(words: Int32Array, rows: number, columns: number, type: 'i8' | 'i4'): Int32Array {
  const from = words.length / rows;
  const to = Math.ceil((columns * bits[type]) / 32);
  const result = new Int32Array(rows * to);
  for (let row = 0; row < rows; row++) {
    for (let i = 0; i < to; i++) {
      const word = words[row * from + i] as number;
      result[row * to + i] = type === 'i8' ? word ^ 0x80808080 : inOrder(word);
    }
  }
  return result;
}

/** Element 2 k + h moves from bit 16 h + 4 k to bit 4 (2 k + h). */
function inOrder(word: number): number {
  let result = 0;
  for (let e = 0; e < 8; e++) {
    result |= ((word >>> (16 * (e % 2) + 4 * (e >> 1))) & 15) << (4 * e);
  }
  return result;
}
