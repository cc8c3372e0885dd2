// Checkpoints with weights in the forms of GPTQ, AWQ, compressed-tensors and FP8, packed here as
// their formats are documented, against the float64 reference on the dequantized values.

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Model } from '../../lib/index';
import { architecturesDirectory } from '../support/architectures';
import {
  type CheckpointSpec,
  randomCheckpoint,
  readCheckpoint,
  safetensorsFile,
  temporaryDirectories,
  writeCheckpoint,
  writeConfig,
} from '../support/checkpoints';
import { firstBitDifference, logitError, modelTolerances } from '../support/compare';
import { errorOf, onEveryDevice } from '../support/devices';
import { encode, fromF8e4m3Bits, Random, roundTo } from '../support/numbers';
import { type Checkpoint, type CheckpointTensor, modelLogits } from '../support/reference_model';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

interface RawTensor {
  dtype: string;
  shape: number[];
  bytes: Uint8Array;
}

const bytesOf = (array: Int32Array | Int8Array | Uint8Array | BigInt64Array) =>
  new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
const words = (shape: number[], data: Int32Array): RawTensor => ({ dtype: 'I32', shape, bytes: bytesOf(data) });
const scalesOf = (shape: number[], data: Float32Array, dtype: 'F16' | 'BF16' | 'F32' = 'F16'): RawTensor => ({
  dtype,
  shape,
  bytes: encode(dtype === 'F16' ? 'f16' : dtype === 'BF16' ? 'bf16' : 'f32', data),
});

/** The integers of a matrix, with a scale and a zero for each group of a row. */
interface Integers {
  rows: number;
  columns: number;
  groups: number;
  /** The group of each column. */
  groupOf: number[];
  q: Int32Array;
  scales: Float32Array;
  zeros: Int32Array;
}

function draw(
  random: Random,
  rows: number,
  columns: number,
  groupSize: number,
  options: {
    low: number;
    high: number;
    zero: () => number;
    shuffled?: boolean;
  },
): Integers {
  const groups = Math.ceil(columns / groupSize);
  const groupOf = Array.from({ length: columns }, (_, c) => Math.floor(c / groupSize));
  if (options.shuffled) groupOf.sort(() => random.uniform() - 0.5);
  const q = Int32Array.from({ length: rows * columns }, () => random.integer(options.low, options.high));
  const scales = Float32Array.from({ length: rows * groups }, () =>
    roundTo('f16', ((0.02 + 0.03 * random.uniform()) * 16) / (options.high - options.low + 1)),
  );
  const zeros = Int32Array.from({ length: rows * groups }, options.zero);
  return { rows, columns, groups, groupOf, q, scales, zeros };
}

function values({ rows, columns, groups, groupOf, q, scales, zeros }: Integers): Float32Array {
  return Float32Array.from({ length: rows * columns }, (_, i) => {
    const [r, c] = [Math.floor(i / columns), i % columns];
    const at = r * groups + (groupOf[c] as number);
    return (scales[at] as number) * ((q[i] as number) - (zeros[at] as number));
  });
}

/** The transpose of a matrix [rows, columns]. */
const transposed = <T extends Int32Array | Float32Array>(x: T, rows: number, columns: number): T =>
  x.map((_, i) => x[(i % rows) * columns + Math.floor(i / rows)] as number) as T;

/** Fields of `bits` bits along the second axis of [rows, count], the field `order[k]` at bit k. */
function pack(x: Int32Array, rows: number, count: number, bits: number, order?: number[]): Int32Array {
  const perWord = 32 / bits;
  const perRow = Math.ceil(count / perWord);
  const packed = new Int32Array(rows * perRow);
  for (let r = 0; r < rows; r++) {
    for (let i = 0; i < perRow * perWord; i++) {
      const [word, k] = [Math.floor(i / perWord), i % perWord];
      const from = word * perWord + (order ? (order[k] as number) : k);
      const value = from < count ? (x[r * count + from] as number) : 0;
      packed[r * perRow + word] = (packed[r * perRow + word] as number) | ((value & (2 ** bits - 1)) << (bits * k));
    }
  }
  return packed;
}

interface Form {
  config: Record<string, unknown>;
  /** The tensors of a matrix, by the ends of their names, and its values. */
  make(random: Random, rows: number, columns: number): { parts: Record<string, RawTensor>; values: Float32Array };
}

function gptq(
  bits: number,
  groupSize: number,
  options: { v2?: boolean; shuffled?: boolean; symmetric?: boolean },
): Form {
  const half = 2 ** (bits - 1);
  return {
    config: {
      quant_method: 'gptq',
      bits,
      group_size: groupSize,
      desc_act: options.shuffled ?? false,
      sym: options.symmetric ?? false,
      ...(options.v2 ? { checkpoint_format: 'gptq_v2' } : {}),
    },
    make(random, rows, columns) {
      const zero = () => (options.symmetric ? half : random.integer(1, 2 * half - 1));
      const size = groupSize < 0 ? columns : groupSize;
      const x = draw(random, rows, columns, size, { low: 0, high: 2 * half - 1, zero, shuffled: options.shuffled });
      const stored = x.zeros.map((value) => value - (options.v2 ? 0 : 1));
      const perWord = 32 / bits;
      return {
        values: values(x),
        parts: {
          // [columns / 8, rows]: the fields of a word are 8 neighbors of a row.
          qweight: words(
            [columns / perWord, rows],
            transposed(pack(x.q, rows, columns, bits), rows, columns / perWord),
          ),
          qzeros: words(
            [x.groups, Math.ceil(rows / perWord)],
            pack(transposed(stored, rows, x.groups), x.groups, rows, bits),
          ),
          scales: scalesOf([x.groups, rows], transposed(x.scales, rows, x.groups)),
          g_idx: words([columns], Int32Array.from(x.groupOf)),
        },
      };
    },
  };
}

const awq: Form = {
  config: {
    quant_method: 'awq',
    bits: 4,
    group_size: 32,
    version: 'GEMM',
    zero_point: true,
    modules_to_not_convert: null,
  },
  make(random, rows, columns) {
    const x = draw(random, rows, columns, 32, { low: 0, high: 15, zero: () => random.integer(0, 15) });
    const order = [0, 2, 4, 6, 1, 3, 5, 7];
    return {
      values: values(x),
      parts: {
        qweight: words([columns, rows / 8], pack(transposed(x.q, rows, columns), columns, rows, 4, order)),
        qzeros: words([x.groups, rows / 8], pack(transposed(x.zeros, rows, x.groups), x.groups, rows, 4, order)),
        scales: scalesOf([x.groups, rows], transposed(x.scales, rows, x.groups)),
      },
    };
  },
};

const compressed = (format: string, weights: Record<string, unknown>, group: Record<string, unknown> = {}) => ({
  quant_method: 'compressed-tensors',
  format,
  config_groups: {
    group_0: { targets: ['Linear'], weights, input_activations: null, output_activations: null, ...group },
  },
  ignore: ['lm_head'],
  kv_cache_scheme: null,
  quantization_status: 'compressed',
});

function compressedIntegers(
  bits: number,
  groupSize: number,
  symmetric: boolean,
  scaleType: 'F16' | 'BF16' = 'F16',
): Form {
  const half = 2 ** (bits - 1);
  const strategy = groupSize < 0 ? { strategy: 'channel' } : { strategy: 'group', group_size: groupSize };
  return {
    config: compressed('pack-quantized', { num_bits: bits, type: 'int', symmetric, dynamic: false, ...strategy }),
    make(random, rows, columns) {
      const size = groupSize < 0 ? columns : groupSize;
      const zero = () => (symmetric ? 0 : random.integer(-half, half - 1));
      const x = draw(random, rows, columns, size, { low: -half, high: half - 1, zero });
      if (scaleType === 'BF16') x.scales = x.scales.map((scale) => roundTo('bf16', scale));
      const offset = (y: Int32Array) => y.map((value) => value + half);
      const perWord = 32 / bits;
      const zeros = transposed(
        pack(transposed(offset(x.zeros), rows, x.groups), x.groups, rows, bits),
        x.groups,
        Math.ceil(rows / perWord),
      );
      return {
        values: values(x),
        parts: {
          weight_packed: words([rows, Math.ceil(columns / perWord)], pack(offset(x.q), rows, columns, bits)),
          weight_scale: scalesOf([rows, x.groups], x.scales, scaleType),
          weight_shape: { dtype: 'I64', shape: [2], bytes: bytesOf(BigInt64Array.of(BigInt(rows), BigInt(columns))) },
          ...(symmetric ? {} : { weight_zero_point: words([Math.ceil(rows / perWord), x.groups], zeros) }),
        },
      };
    },
  };
}

/** E4M3 values with a scale for each block of rows and columns; 0: all rows, all columns. */
function f8(
  config: Record<string, unknown>,
  scaleName: string,
  blockRows: number,
  blockColumns: number,
  shape?: number[],
): Form {
  return {
    config,
    make(random, rows, columns) {
      const [height, width] = [blockRows || rows, blockColumns || columns];
      const [down, across] = [Math.ceil(rows / height), Math.ceil(columns / width)];
      const codes = Uint8Array.from(
        { length: rows * columns },
        () => random.integer(0, 0x60) | (random.integer(0, 1) << 7),
      );
      const scales = Float32Array.from({ length: down * across }, () =>
        roundTo('bf16', 0.01 + 0.02 * random.uniform()),
      );
      return {
        values: Float32Array.from(codes, (code, i) => {
          const block = Math.floor(Math.floor(i / columns) / height) * across + Math.floor((i % columns) / width);
          return fromF8e4m3Bits(code) * (scales[block] as number);
        }),
        parts: {
          weight: { dtype: 'F8_E4M3', shape: [rows, columns], bytes: codes },
          [scaleName]: scalesOf(shape ?? [down, across], scales, 'BF16'),
        },
      };
    },
  };
}

const bytes: Form = {
  config: compressed('int-quantized', { num_bits: 8, type: 'int', symmetric: true, strategy: 'channel' }),
  make(random, rows, columns) {
    const x = draw(random, rows, columns, columns, { low: -128, high: 127, zero: () => 0 });
    return {
      values: values(x),
      parts: {
        weight: { dtype: 'I8', shape: [rows, columns], bytes: bytesOf(Int8Array.from(x.q)) },
        weight_scale: scalesOf([rows, 1], x.scales),
      },
    };
  },
};

const float8 = { num_bits: 8, type: 'float', symmetric: true };
/** Each with the type of the matrices: null if they become matrices of the model's dtype. */
const forms: [string, 'i4' | 'i8' | null, Form][] = [
  ['GPTQ 4 bits', 'i8', gptq(4, 32, {})],
  ['GPTQ 4 bits, symmetric', 'i4', gptq(4, 32, { symmetric: true })],
  ['GPTQ 4 bits, v2, groups of 16', null, gptq(4, 16, { v2: true })],
  ['GPTQ 4 bits, act-order', null, gptq(4, 16, { shuffled: true })],
  ['GPTQ 4 bits, v2, act-order, symmetric', null, gptq(4, 32, { v2: true, shuffled: true, symmetric: true })],
  ['GPTQ 8 bits, a group for a row', 'i8', gptq(8, -1, { symmetric: true })],
  ['GPTQ 8 bits, asymmetric', null, gptq(8, 32, {})],
  ['GPTQ 2 bits', 'i4', gptq(2, 32, {})],
  ['AWQ', 'i8', awq],
  ['compressed-tensors W4A16', 'i4', compressedIntegers(4, 32, true)],
  ['compressed-tensors W4A16, asymmetric', 'i8', compressedIntegers(4, 64, false)],
  ['compressed-tensors W4A16, asymmetric, groups of 16', null, compressedIntegers(4, 16, false)],
  ['compressed-tensors W8A16', 'i8', compressedIntegers(8, -1, true)],
  ['compressed-tensors W8A16, asymmetric', null, compressedIntegers(8, 32, false)],
  ['compressed-tensors, plain bytes', 'i8', bytes],
  [
    'compressed-tensors FP8',
    null,
    f8(compressed('float-quantized', { ...float8, strategy: 'channel' }), 'weight_scale', 1, 0),
  ],
  [
    'compressed-tensors FP8, one scale, dynamic activations',
    null,
    f8(
      compressed(
        'float-quantized',
        { ...float8, strategy: 'tensor' },
        { input_activations: { num_bits: 8, dynamic: true } },
      ),
      'weight_scale',
      0,
      0,
      [1],
    ),
  ],
  [
    'compressed-tensors FP8 in blocks',
    null,
    f8(
      compressed('float-quantized', { ...float8, strategy: 'block', block_structure: [16, 24] }),
      'weight_scale',
      16,
      24,
    ),
  ],
  [
    'FP8 in blocks',
    null,
    f8(
      { quant_method: 'fp8', fmt: 'e4m3', activation_scheme: 'dynamic', weight_block_size: [24, 32] },
      'weight_scale_inv',
      24,
      32,
    ),
  ],
];

const llamaSpec: CheckpointSpec = {
  architecture: 'llama',
  type: 'F16',
  heads: [4, 2, 2],
  hiddenSize: 64,
  intermediateSize: 96,
  tied: false,
};
const llama = randomCheckpoint(llamaSpec);
const isMatrix = (name: string) => /_(proj|with_mqa)\.weight$/.test(name);

/** The checkpoint with some matrices in a form, and the same with dequantized weights in f32. */
function both(
  form: Form,
  base = llama,
  packs = isMatrix,
): { raw: Map<string, RawTensor>; config: Record<string, unknown>; plain: Checkpoint } {
  const random = new Random(5);
  const raw = new Map<string, RawTensor>();
  const plain = new Map<string, CheckpointTensor>();
  for (const [name, tensor] of base.tensors) {
    // Words of GPTQ and AWQ are whole.
    const fits = form.config.quant_method === 'compressed-tensors' || tensor.shape.every((size) => size % 8 === 0);
    if (!packs(name) || !fits) {
      plain.set(name, { ...tensor, type: 'F32' });
      raw.set(name, { dtype: 'F16', shape: tensor.shape, bytes: encode('f16', tensor.data) });
      continue;
    }
    const [rows, columns] = tensor.shape as [number, number];
    const made = form.make(random, rows, columns);
    plain.set(name, { type: 'F32', shape: tensor.shape, data: made.values });
    for (const [part, value] of Object.entries(made.parts)) raw.set(name.replace(/weight$/, part), value);
  }
  const config = { ...base.config, quantization_config: form.config };
  return { raw, config, plain: { config: { ...base.config, torch_dtype: 'float32' }, tensors: plain } };
}

function write(config: Record<string, unknown>, tensors: Map<string, RawTensor>): string {
  const directory = directories.make();
  mkdirSync(directory, { recursive: true });
  writeConfig(directory, config);
  let offset = 0;
  const header: Record<string, unknown> = {};
  for (const [name, { dtype, shape, bytes: data }] of tensors) {
    header[name] = { dtype, shape, data_offsets: [offset, offset + data.length] };
    offset += data.length;
  }
  const data = Buffer.concat([...tensors.values()].map((tensor) => tensor.bytes));
  writeFileSync(join(directory, 'model.safetensors'), safetensorsFile(JSON.stringify(header), data));
  return directory;
}

const tokens = [5, 17, 39, 3, 60, 28, 11, 12, 7];

async function logitsOf(directory: string, options = {}): Promise<Float32Array> {
  const model = await Model.load(directory, { device: 'cpu', ...options });
  const session = await model.createSession();
  const logits = await session.prefill(tokens);
  model.dispose();
  return logits;
}

describe.each(forms)('%s', (_, type, form) => {
  it('has the values of the reference', async () => {
    const { raw, config, plain } = both(form);
    const directory = write(config, raw);
    const logits = await logitsOf(directory, { dtype: 'f32' });
    const [reference] = modelLogits(plain, tokens) as [Float64Array];
    expect(logitError(logits, reference)).toBeLessThanOrEqual(2e-6);
    // Values in the model's dtype have the same bits as those of a checkpoint without quantization.
    const dense = directories.make();
    writeCheckpoint(dense, plain);
    for (const dtype of type ? [] : (['f32', 'bf16', 'f16'] as const)) {
      const rounded = await logitsOf(directory, { dtype });
      expect(firstBitDifference(rounded, await logitsOf(dense, { dtype }))).toBe(-1);
    }
    // The type of the other weights, not f32.
    const model = await Model.load(directory, { device: 'cpu' });
    expect([model.dtype, model.weightType]).toEqual(['f16', type ?? 'f16']);
    model.dispose();
  });

  it('rejects parts that are missing or do not fit', async () => {
    const { raw, config } = both(form);
    const name = 'model.layers.1.mlp.down_proj.';
    const parts = [...raw.keys()].filter((key) => key.startsWith(name));
    for (const part of parts) {
      const without = new Map(raw);
      without.delete(part);
      const optional = part.endsWith('weight_shape') || (part.endsWith('g_idx') && form.config.desc_act === false);
      if (!optional)
        expect((await errorOf(() => logitsOf(write(config, without)))).code).toBe('ERR_INVALID_CHECKPOINT');
      const tensor = raw.get(part) as RawTensor;
      const wrong = new Map(raw).set(part, { ...tensor, shape: [...tensor.shape, 1] });
      const { code, message } = await errorOf(() => logitsOf(write(config, wrong)));
      expect([part, code]).toEqual([part, 'ERR_INVALID_CHECKPOINT']);
      expect(message).toContain('model.layers.1.mlp.down_proj');
      const typed = new Map(raw).set(part, {
        ...tensor,
        dtype:
          tensor.dtype === 'I8'
            ? 'U8'
            : tensor.dtype === 'I32'
              ? 'U32'
              : tensor.dtype === 'F8_E4M3'
                ? 'F8_E5M2'
                : tensor.dtype === 'I64'
                  ? 'U64'
                  : 'I16',
      });
      expect((await errorOf(() => logitsOf(write(config, typed)))).code).toMatch(
        /ERR_UNSUPPORTED_MODEL|ERR_INVALID_CHECKPOINT/,
      );
    }
  });
});

onEveryDevice((device) => {
  // Integers that stay integers.
  describe.each([
    ['i4', 'group 32', compressedIntegers(4, 32, true, 'BF16')],
    ['i4', 'group 64', compressedIntegers(4, 64, true, 'BF16')],
    ['i4', 'a row', compressedIntegers(4, -1, true, 'BF16')],
    ['i8', 'group 128', compressedIntegers(8, 128, true, 'BF16')],
    ['i8', 'a row', compressedIntegers(8, -1, true, 'BF16')],
    ['i4', 'group 32, GPTQ', gptq(4, 32, { symmetric: true })],
    ['i8', 'group 32, AWQ', awq],
  ] as const)('%s, scales of %s', (type, _, form) => {
    it.each(['llama', 'ernie4_5', 'phi3', 'glm4', 'diffllama', 'minicpm3'])('of %s are not changed', async (name) => {
      const source = name === 'llama' ? llama : readCheckpoint(join(architecturesDirectory, name));
      const { raw, config, plain } = both(form, source);
      const directory = write(config, raw);
      const model = await Model.load(directory, { device: device(), dtype: 'f32' });
      expect(model.weightType).toBe(type);
      const bytes = model.weightBytes;
      model.dispose();
      const dense = directories.make();
      writeCheckpoint(dense, plain);
      expect(
        logitError(
          await logitsOf(directory, { device: device(), dtype: 'f32' }),
          await logitsOf(dense, { device: device(), dtype: 'f32' }),
        ),
      ).toBeLessThan(4e-6);
      const whole = await Model.load(dense, { device: device(), dtype: 'f32' });
      expect(bytes).toBeLessThan(whole.weightBytes);
      whole.dispose();
      // A type of the caller's choice replaces it.
      const other = type === 'i4' ? 'i8' : 'i4';
      const again = await Model.load(directory, { device: device(), weightType: other });
      expect(again.weightType).toBe(other);
      again.dispose();
    });
  });
});

onEveryDevice((device) => {
  describe.each(['q', 'k', 'v', 'o', 'gate', 'up', 'down'])('%s_proj alone is not packed', (part) => {
    it.each([
      ['i4', compressedIntegers(4, 32, true, 'BF16')],
      ['i8', compressedIntegers(8, 128, true, 'BF16')],
    ])('beside %s', async (type, form) => {
      // Rows of down_proj are not multiples of 16 bytes.
      const base = randomCheckpoint({ ...llamaSpec, intermediateSize: 100 });
      const { raw, config, plain } = both(form, base, (name) => isMatrix(name) && !name.includes(`${part}_proj`));
      const directory = write(config, raw);
      // On CUDA few and many tokens of each type have kernels of their own.
      for (const prompt of [tokens, new Random(7).tokens(20, 60)]) {
        const [reference] = modelLogits(plain, prompt) as [Float64Array];
        for (const [dtype, limit] of [
          ['f32', 4e-6],
          ['f16', modelTolerances.f16],
          ['bf16', modelTolerances.bf16],
        ] as const) {
          const model = await Model.load(directory, { device: device(), dtype });
          expect(model.weightType).toBe(type);
          const session = await model.createSession();
          expect(logitError(await session.prefill(prompt), reference)).toBeLessThanOrEqual(limit);
          model.dispose();
        }
      }
    });
  });
});

onEveryDevice((device) => {
  it.each([0, 1])('layer %i alone is packed', async (layer) => {
    const form = compressedIntegers(4, 32, true, 'BF16');
    const { raw, config, plain } = both(form, llama, (name) => isMatrix(name) && name.includes(`layers.${layer}.`));
    const model = await Model.load(write(config, raw), { device: device(), dtype: 'f32' });
    expect(model.weightType).toBe('i4');
    const session = await model.createSession();
    const [reference] = modelLogits(plain, tokens) as [Float64Array];
    expect(logitError(await session.prefill(tokens), reference)).toBeLessThanOrEqual(4e-6);
    model.dispose();
  });
});

describe('configs', () => {
  const gptq4 = { quant_method: 'gptq', bits: 4, group_size: 32 };
  const scheme = { num_bits: 4, type: 'int', symmetric: true, strategy: 'group', group_size: 32 };
  const directory = directories.make();
  const load = (quantization_config: unknown) => {
    writeCheckpoint(directory, { ...llama, config: { ...llama.config, quantization_config } });
    return errorOf(() => Model.load(directory, { device: 'cpu' }));
  };

  it.each<[unknown, string]>([
    [{ quant_method: 'bitsandbytes', load_in_4bit: true }, "quant_method is 'bitsandbytes'"],
    [{ quant_method: 'gguf' }, 'weightType'],
    [{}, "quant_method is ''"],
    [{ ...gptq4, bits: 3 }, 'bits is 3; it must be 2 or 4 or 8'],
    [{ ...gptq4, checkpoint_format: 'marlin' }, "checkpoint_format is 'marlin'"],
    [{ ...gptq4, is_marlin_format: true }, 'is_marlin_format'],
    [{ ...gptq4, dynamic: { '+:.*': { bits: 8 } } }, 'dynamic is not empty'],
    [{ ...gptq4, pack_dtype: 'int64' }, 'pack_dtype'],
    [{ ...gptq4, rotation: 'hadamard' }, 'quantization_config.rotation is "hadamard": this key is unknown'],
    [{ quant_method: 'awq', bits: 4, group_size: 128, version: 'gemv' }, "version is 'gemv'"],
    [{ quant_method: 'awq', bits: 4, group_size: 128, zero_point: false }, 'zero_point is false'],
    [{ quant_method: 'awq', bits: 8, group_size: 128 }, 'bits is 8'],
    [{ quant_method: 'fp8', fmt: 'e5m2', weight_block_size: [128, 128] }, "fmt is 'e5m2'"],
    [{ quant_method: 'fp8', weight_block_size: [128] }, 'weight_block_size is an array'],
    [compressed('nvfp4-pack-quantized', scheme), "format is 'nvfp4-pack-quantized'"],
    [compressed('pack-quantized', { ...scheme, num_bits: 3 }), 'num_bits is 3'],
    [compressed('pack-quantized', { ...scheme, strategy: 'tensor_group' }), "strategy is 'tensor_group'"],
    [compressed('pack-quantized', { ...scheme, actorder: 'other' }), "actorder is 'other'"],
    [compressed('pack-quantized', scheme, { input_activations: { num_bits: 8 } }), 'input_activations'],
    [
      { ...compressed('pack-quantized', scheme), config_groups: { a: { weights: scheme }, b: { weights: scheme } } },
      '2 groups',
    ],
    [
      { ...compressed('pack-quantized', scheme), sparsity_config: { format: 'sparse-24-bitmask' } },
      'sparse-24-bitmask',
    ],
    [{ ...compressed('pack-quantized', scheme), transform_config: { a: 1 } }, 'transform_config is not empty'],
  ])('%j is rejected', async (config, part) => {
    const { code, message } = await load(config);
    expect({ code, message }).toEqual({ code: 'ERR_UNSUPPORTED_MODEL', message: expect.stringContaining(part) });
  });

  it.each<[unknown, string]>([
    [5, 'quantization_config is 5'],
    [{ ...gptq4, bits: undefined }, 'bits is missing'],
    [{ ...gptq4, group_size: 0 }, 'group_size is 0'],
    [{ ...gptq4, group_size: -2 }, 'group_size is -2'],
    [{ ...gptq4, desc_act: 'yes' }, 'desc_act is "yes"'],
    [{ quant_method: 'fp8' }, 'weight_block_size is missing'],
    [compressed('pack-quantized', { ...scheme, group_size: undefined }), 'group_size is missing'],
    [{ quant_method: 'compressed-tensors', format: 'pack-quantized' }, 'config_groups is missing'],
  ])('%j is malformed', async (config, part) => {
    const { code, message } = await load(config);
    expect({ code, message }).toEqual({ code: 'ERR_INVALID_CHECKPOINT', message: expect.stringContaining(part) });
  });

  const weightTypeOf = async (files: { raw: Map<string, RawTensor>; config: Record<string, unknown> }) => {
    const model = await Model.load(write(files.config, files.raw), { device: 'cpu' });
    const { weightType } = model;
    model.dispose();
    return weightType;
  };

  it('names the type of most elements that stay integers, of all layers', async () => {
    const symmetric = gptq(4, 32, { symmetric: true });
    const isInSecondLayer = (name: string) => isMatrix(name) && name.includes('layers.1.');
    expect(await weightTypeOf(both(symmetric, llama, isInSecondLayer))).toBe('i4');
    // Zeros of one matrix of each layer, the last.
    const withZeros = gptq(4, 32, {});
    const mixed: Form = {
      ...symmetric,
      make: (random, rows, columns) => (columns === 96 ? withZeros : symmetric).make(random, rows, columns),
    };
    expect(await weightTypeOf(both(mixed))).toBe('i4');
  });

  it('keeps integers if g_idx has the groups in order, whatever desc_act says', async () => {
    const ordered = both(gptq(4, 32, { symmetric: true }));
    const shuffled = both(gptq(4, 32, { symmetric: true, shuffled: true }));
    for (const desc_act of [false, true]) {
      for (const [files, type] of [
        [ordered, 'i4'],
        [shuffled, 'f16'],
      ] as const) {
        const quantization_config = { ...(files.config.quantization_config as object), desc_act };
        expect(await weightTypeOf({ ...files, config: { ...files.config, quantization_config } })).toBe(type);
      }
    }
  });

  it('shows the form, and quantizes again if asked', async () => {
    const { raw, config } = both(gptq(4, 32, {}));
    const model = await Model.load(write(config, raw), { device: 'cpu', weightType: 'i8' });
    expect(model.config.quantization).toBe('GPTQ');
    expect(model.weightType).toBe('i8');
    model.dispose();
  });

  it('rejects a group that does not exist, and a weight that is stored twice', async () => {
    const { raw, config } = both(gptq(4, 32, { shuffled: true }));
    const name = 'model.layers.0.self_attn.q_proj.';
    const index = raw.get(`${name}g_idx`) as RawTensor;
    const bad = Int32Array.from({ length: 64 }, (_, i) => (i === 5 ? 2 : 0));
    const error = await errorOf(() =>
      logitsOf(write(config, new Map(raw).set(`${name}g_idx`, { ...index, bytes: bytesOf(bad) }))),
    );
    expect([error.code, error.message]).toEqual([
      'ERR_INVALID_CHECKPOINT',
      expect.stringContaining('has the group 2; there are 2'),
    ]);
    const twice = new Map(raw).set(`${name}weight`, scalesOf([64, 64], new Float32Array(4096)));
    expect((await errorOf(() => logitsOf(write(config, twice)))).message).toContain('both exist');
  });
});
