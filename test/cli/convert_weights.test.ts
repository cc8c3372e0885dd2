// `diffqkv convert --weight-type`: the form "pack-quantized" of compressed-tensors.

import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Model } from '../../lib/index';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { builtCli, runNode } from '../support/children';
import { firstBitDifference } from '../support/compare';
import { convertIn } from '../support/convert';
import { fromBf16Bits } from '../support/numbers';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

// 80 columns: the last word of a row is full, and the last group is not.
const checkpoint = randomCheckpoint({
  architecture: 'llama',
  type: 'BF16',
  heads: [5, 1, 1],
  headDim: 16,
  hiddenSize: 80,
  intermediateSize: 92,
});
const tokens = [5, 17, 39, 3, 60, 28];

const convert = (...args: string[]) => runNode([builtCli, 'convert', ...args]);

async function logitsOf(directory: string, options = {}) {
  const model = await Model.load(directory, { device: 'cpu', ...options });
  const session = await model.createSession();
  const logits = await session.prefill(tokens);
  const { weightType, weightBytes } = model;
  model.dispose();
  return { logits, weightType, weightBytes };
}

describe.each([
  ['i4', 32, 1],
  ['i4', 128, 3],
  ['i8', 64, 1],
  ['i8', 32, 2],
] as const)('--weight-type %s --group-size %i, %i shards', (weightType, weightGroupSize, shards) => {
  let input: string;
  let output: string;
  beforeAll(async () => {
    const options = ['--weight-type', weightType, '--group-size', String(weightGroupSize)];
    const { from, to, stdout } = await convertIn(directories.make(), checkpoint, options, shards);
    expect(stdout).toMatch(/weights .* MB -> .* MB/);
    [input, output] = [from, to];
  });

  it('loads with the bits of a model that is quantized at load', async () => {
    const ahead = await logitsOf(output);
    const atLoad = await logitsOf(input, { weightType, weightGroupSize, quantizeLmHead: false });
    expect(firstBitDifference(ahead.logits, atLoad.logits)).toBe(-1);
    expect(ahead.weightType).toBe(weightType);
    expect(ahead.weightBytes).toBe(atLoad.weightBytes);
  });

  it('has the layout of compressed-tensors', async () => {
    const config = JSON.parse(readFileSync(join(output, 'config.json'), 'utf8'));
    const bits = weightType === 'i4' ? 4 : 8;
    expect(config.quantization_config).toMatchObject({
      quant_method: 'compressed-tensors',
      format: 'pack-quantized',
      ignore: ['lm_head'],
      config_groups: {
        group_0: {
          weights: { num_bits: bits, type: 'int', symmetric: true, strategy: 'group', group_size: weightGroupSize },
        },
      },
    });
    const name = 'model.layers.1.mlp.down_proj.';
    const packed = tensorOf(output, `${name}weight_packed`);
    const scales = tensorOf(output, `${name}weight_scale`);
    const [rows, columns] = [80, 92];
    expect([packed.dtype, packed.shape]).toEqual(['I32', [rows, Math.ceil((columns * bits) / 32)]]);
    expect([scales.dtype, scales.shape]).toEqual(['BF16', [rows, Math.ceil(columns / weightGroupSize)]]);
    const shape = tensorOf(output, `${name}weight_shape`);
    expect([shape.dtype, [...new BigInt64Array(shape.data.buffer)]]).toEqual(['I64', [80n, 92n]]);
    // Word w of a row has the columns from w * 32 / bits on, each plus 2^(bits - 1).
    const words = new Uint32Array(packed.data.buffer);
    const scaleBits = new Uint16Array(scales.data.buffer);
    const original = checkpoint.tensors.get(`${name}weight`)?.data as Float32Array;
    const perWord = 32 / bits;
    let worst = 0;
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const word = words[row * (packed.shape[1] as number) + Math.floor(column / perWord)] as number;
        const integer = ((word >>> (bits * (column % perWord))) & (2 ** bits - 1)) - 2 ** (bits - 1);
        const scale = fromBf16Bits(
          scaleBits[row * (scales.shape[1] as number) + Math.floor(column / weightGroupSize)] as number,
        );
        const error = Math.abs(integer * scale - (original[row * columns + column] as number));
        worst = Math.max(worst, error / Math.abs(scale));
      }
    }
    // Half a step, or a little more at the ends of the range, where least squares clip.
    expect(worst).toBeGreaterThan(0.4);
    expect(worst).toBeLessThan(weightType === 'i4' ? 2.5 : 4);
    expect(tensorOf(output, 'model.embed_tokens.weight').dtype).toBe('BF16');
    expect(tensorOf(output, 'model.norm.weight').dtype).toBe('BF16');
  });
});

function tensorOf(directory: string, name: string): { dtype: string; shape: number[]; data: Uint8Array } {
  const index = join(directory, 'model.safetensors.index.json');
  const file = existsSync(index) ? JSON.parse(readFileSync(index, 'utf8')).weight_map[name] : 'model.safetensors';
  const bytes = readFileSync(join(directory, file));
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const { dtype, shape, data_offsets } = JSON.parse(bytes.subarray(8, start).toString())[name];
  return { dtype, shape, data: new Uint8Array(bytes.subarray(start + data_offsets[0], start + data_offsets[1])) };
}

it('a DiffQKV checkpoint loads too, and is not quantized twice', async () => {
  const folder = directories.make();
  const [input, output] = [join(folder, 'in'), join(folder, 'out')];
  writeCheckpoint(input, randomCheckpoint({ type: 'F16', tied: false }));
  const { status, stdout } = await convert(input, output, '--weight-type', 'i4', '--json');
  expect([status, JSON.parse(stdout)]).toEqual([0, expect.objectContaining({ directory: output, leftOut: [] })]);
  expect((await logitsOf(output)).weightType).toBe('i4');
  const again = await convert(output, join(folder, 'again'), '--weight-type', 'i8');
  expect(again).toMatchObject({ status: 1, stderr: expect.stringContaining('quantized already (compressed-tensors)') });
  expect(existsSync(join(folder, 'again'))).toBe(false);
});

it.each([
  [['--weight-type', 'i2'], "--weight-type must be i8 or i4, not 'i2'"],
  [['--group-size', '32'], '--group-size requires --weight-type'],
  [['--weight-type', 'i4', '--group-size', '16'], '--group-size must be 32, 64 or 128, not 16'],
  [['--weight-type', 'i4', '--key-heads', '1'], '--weight-type cannot be combined'],
])('%j is rejected', async (options, message) => {
  const folder = directories.make();
  writeCheckpoint(join(folder, 'in'), checkpoint);
  const outcome = await convert(join(folder, 'in'), join(folder, 'out'), ...options);
  expect(outcome).toMatchObject({ status: 1, stderr: expect.stringContaining(message) });
});
