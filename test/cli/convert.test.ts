// diffqkv convert: the bits that it writes, the results of the converted model, the arguments that
// it rejects, and the files left after an interruption.

import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import fileSystem from 'node:fs/promises';
import { join, sep } from 'node:path';
import { convert } from '../../cli/convert';
import { Model } from '../../lib/index';
import { kProj } from '../model/breaks';
import { configs, unsupported } from '../model/breaks_configs';
import { files, headers } from '../model/breaks_files';
import { entries, shards, tensors } from '../model/breaks_tensors';
import {
  type CheckpointSpec,
  randomCheckpoint,
  readCheckpoint,
  safetensorsFile,
  temporaryDirectories,
  writeCheckpoint,
} from '../support/checkpoints';
import { builtCli, type Outcome, type RunOptions, runNode } from '../support/children';
import { logitError, modelTolerances } from '../support/compare';
import { convertIn } from '../support/convert';
import { errorOf } from '../support/devices';
import { tldr, tldrDirectory } from '../support/fixtures';
import { encode, type FloatType, fromBf16Bits, fromF16Bits, Random } from '../support/numbers';
import { matmul, rope, ropeFrequencies } from '../support/reference';
import { type Checkpoint, type CheckpointTensor, modelLogits } from '../support/reference_model';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const cli = (args: string[], options?: RunOptions): Promise<Outcome> =>
  runNode([builtCli, 'convert', ...args], options);

const converted = (checkpoint: Checkpoint, args: string[], numShards = 1) =>
  convertIn(directories.make(), checkpoint, args, numShards);

const contents = (directory: string): Record<string, string> =>
  Object.fromEntries(readdirSync(directory).map((name) => [name, readFileSync(join(directory, name), 'base64')]));

const attention = (layer: number, part: string): string => `model.layers.${layer}.self_attn.${part}.weight`;

const bytesOf = ({ type, data }: CheckpointTensor): string =>
  Buffer.from(encode(type.toLowerCase() as FloatType, data)).toString('hex');

/** Checks that all tensors except K and V have the same type and bits. */
function expectOthersKept(before: Checkpoint, after: Checkpoint): void {
  const others = (names: Iterable<string>): string[] =>
    [...names].filter((name) => !/\.self_attn\.[kv]_/.test(name)).sort();
  expect(others(after.tensors.keys())).toEqual(others(before.tensors.keys()));
  for (const name of others(before.tensors.keys())) {
    const [a, b] = [before.tensors.get(name), after.tensors.get(name)] as [CheckpointTensor, CheckpointTensor];
    expect([b.type, b.shape, bytesOf(b)]).toEqual([a.type, a.shape, bytesOf(a)]);
  }
}

describe('the same counts keep every file, byte for byte', () => {
  it.each<[string, CheckpointSpec, string[], number]>([
    ['Sigma', { type: 'BF16' }, ['--key-heads', '2', '--value-heads', '4'], 1],
    ['Sigma in 3 shards', { type: 'F16', tied: false }, ['--key-heads', '2'], 3],
    ['Llama', { architecture: 'llama', heads: [8, 2, 2] }, ['--key-heads', '2', '--value-heads', '2'], 1],
    [
      'Llama MHA without num_key_value_heads',
      { architecture: 'llama', heads: [4, 4, 4], config: { num_key_value_heads: undefined } },
      ['--key-heads', '4'],
      1,
    ],
    ['Llama, group sharing', { architecture: 'llama', heads: [8, 2, 2] }, ['--kv-group-sharing'], 2],
  ])('%s', async (_, spec, args, numShards) => {
    const { from, to } = await converted(randomCheckpoint(spec), args, numShards);
    expect(contents(to)).toEqual(contents(from));
  });

  it('copies the embedded model with its tokenizer', async () => {
    const to = join(directories.make(), 'out');
    expect((await cli([tldrDirectory, to, '--key-heads', '2'])).status).toBe(0);
    expect(contents(to)).toEqual(contents(tldrDirectory));
  });
});

// All finite values of a 16-bit type in order, to find the nearest by search.
const finite = { bf16: finiteValues(fromBf16Bits, 0x7f80), f16: finiteValues(fromF16Bits, 0x7c00) };

function finiteValues(decode: (bits: number) => number, infinity: number): Float64Array {
  return Float64Array.from({ length: infinity }, (_, bits) => decode(bits));
}

/** The value of the type nearest to a float64, ties to even, computed without bit arithmetic. */
function nearest(type: FloatType, value: number): number {
  if (type === 'f32' || !Number.isFinite(value)) return Math.fround(value);
  const values = finite[type];
  const size = Math.abs(value);
  let [low, high] = [0, values.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if ((values[middle] as number) <= size) low = middle;
    else high = middle;
  }
  const [below, above] = [size - (values[low] as number), (values[high] as number) - size];
  const index = above < below || (above === below && low % 2 === 1) ? high : low;
  return value < 0 || Object.is(value, -0) ? -(values[index] as number) : (values[index] as number);
}

describe('mean pooling', () => {
  // Values of four heads each. The first two are wrong if the mean is first rounded to f32.
  const hard: Record<FloatType, number[][]> = {
    bf16: [[4, 2 ** -6, 2 ** -26, 0]],
    f16: [[4, 2 ** -9, 2 ** -24, 0]],
    f32: [[4, 2 ** -22, 2 ** -60, 0]],
  };
  const everyType = [
    [-0, -0, -0, -0],
    [-0, 0, -0, -0],
    [Number.POSITIVE_INFINITY, 1, 2, 3],
    [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 0, 0],
    [Number.NaN, 1, 1, 1],
    [2 ** -24, 0, 0, 0],
    [2 ** -24, 2 ** -24, 0, 0],
    [2 ** -24, 2 ** -24, 2 ** -24, 0],
    [-(2 ** -23), -(2 ** -24), -(2 ** -24), -(2 ** -24)],
    [2 ** -14, 2 ** -24, 2 ** -14, -(2 ** -24)],
    [1, 1, 1, 1.0078125],
    [65504, 65504, 65504, 65504],
    [1, -1, 2 ** -10, 0],
  ];

  it.each(['BF16', 'F16', 'F32'] as const)('%s: computes the mean in float64 and rounds once', async (type) => {
    const float = type.toLowerCase() as FloatType;
    const before = randomCheckpoint({ type, heads: [12, 12, 4], headDim: 8, hiddenSize: 40, augQSize: 24 });
    const k = before.tensors.get(attention(0, 'k_proj')) as CheckpointTensor;
    const headSize = 8 * 40;
    [...hard[float], ...everyType].forEach((values, i) => {
      for (const [head, value] of values.entries()) k.data[head * headSize + i] = value;
    });
    if (type === 'F32') for (let head = 0; head < 4; head++) k.data[head * headSize + 100] = 3.4028234663852886e38;
    const { to } = await converted(before, ['--key-heads', '3', '--value-heads', '2']);
    const after = readCheckpoint(to);
    expect(after.config).toEqual({ ...before.config, num_key_heads: 3, num_value_heads: 2 });
    expectOthersKept(before, after);
    for (const [part, groupSize, numHeads] of [
      ['k_proj', 4, 3],
      ['v_proj', 2, 2],
    ] as const) {
      for (let layer = 0; layer < 2; layer++) {
        const old = before.tensors.get(attention(layer, part))?.data as Float32Array;
        const made = after.tensors.get(attention(layer, part)) as CheckpointTensor;
        expect([made.type, made.shape]).toEqual([type, [numHeads * 8, 40]]);
        const expected = Float32Array.from({ length: numHeads * headSize }, (_, i) => {
          const [head, rest] = [Math.floor(i / headSize), i % headSize];
          const of = (j: number) => old[(head * groupSize + j) * headSize + rest] as number;
          let sum = of(0);
          for (let j = 1; j < groupSize; j++) sum += of(j);
          return nearest(float, sum / groupSize);
        });
        const at = made.data.findIndex((value, i) => !Object.is(value, expected[i]));
        expect([at, made.data[at]]).toEqual([-1, undefined]);
      }
    }
  });

  it('copies a single head with all its bits, including NaN', async () => {
    const before = randomCheckpoint({ type: 'F32', heads: [4, 2, 4] });
    const { from, to } = await converted(before, ['--kv-group-sharing']);
    const bytes = (directory: string) => {
      const file = readFileSync(join(directory, 'model.safetensors'));
      const { header, start } = parts(file);
      const [begin, end] = header[kProj].data_offsets;
      return file.subarray(start + begin, start + end);
    };
    const file = join(from, 'model.safetensors');
    const changed = readFileSync(file);
    const { header, start } = parts(changed);
    // A signaling NaN with a payload.
    changed.writeUInt32LE(0x7f800123, start + header[kProj].data_offsets[0]);
    writeFileSync(file, changed);
    const again = `${to}2`;
    expect((await cli([from, again, '--kv-group-sharing'])).status).toBe(0);
    const [old, made] = [bytes(from), bytes(again)];
    const size = old.length / 2;
    for (let head = 0; head < 4; head++) {
      const source = Math.floor(head / 2);
      expect(made.subarray(head * size, (head + 1) * size)).toEqual(old.subarray(source * size, (source + 1) * size));
    }
  });

  it.each<[string, CheckpointSpec, string[], object, string[]]>([
    [
      'Llama to one K head: DiffQKV',
      {
        architecture: 'llama',
        heads: [8, 4, 4],
        config: { auto_map: { AutoConfig: 'x.y' }, rms_norm_eps: undefined, rope_theta: undefined },
      },
      ['--key-heads', '1'],
      {
        architectures: ['SigmaForCausalLM'],
        model_type: 'sigma',
        num_key_heads: 1,
        num_value_heads: 4,
        rms_norm_eps: 1e-6,
        rope_theta: 10000,
      },
      ['num_key_value_heads', 'auto_map'],
    ],
    [
      'Llama to fewer of both: Llama',
      { architecture: 'llama', heads: [8, 8, 8], config: { num_key_value_heads: undefined } },
      ['--key-heads', '2', '--value-heads', '2'],
      { architectures: ['LlamaForCausalLM'], model_type: 'llama', num_key_value_heads: 2 },
      ['num_key_heads', 'num_value_heads'],
    ],
    [
      'Sigma with an outdated count for both',
      { heads: [8, 4, 4], config: { num_key_value_heads: 4 } },
      ['--key-heads', '2'],
      { model_type: 'sigma', num_key_heads: 2, num_value_heads: 4 },
      ['num_key_value_heads'],
    ],
  ])('%s', async (_, spec, args, has, lacks) => {
    const before = randomCheckpoint(spec);
    const { to } = await converted(before, args);
    const after = readCheckpoint(to);
    expect(after.config).toMatchObject(has);
    for (const key of lacks) expect(after.config).not.toHaveProperty(key);
    await expectReference(to, after);
  });

  it('keeps the spelling of numbers in config.json that do not change', async () => {
    const parent = directories.make();
    const from = join(parent, 'in');
    writeCheckpoint(from, randomCheckpoint({}));
    const text = readFileSync(join(from, 'config.json'), 'utf8');
    const fields = '"a": 8.0, "b": [1e-05, 12345678901234567890, -0.0], "c": "# 1.0 \\"2.0\\" ##", "d": {"1.0": null}';
    writeFileSync(join(from, 'config.json'), text.replace('{', `{ ${fields},`));
    const to = join(parent, 'out');
    expect((await cli([from, to, '--key-heads', '1'])).status).toBe(0);
    const written = readFileSync(join(to, 'config.json'), 'utf8');
    expect(written.replace(/\s+/g, ' ')).toContain(
      fields.replace('[', '[ ').replace(']', ' ]').replace('{', '{ ').replace('}', ' }'),
    );
    expect(JSON.parse(written)).toMatchObject({ num_key_heads: 1, rms_norm_eps: 1e-5 });
  });

  it('keeps strings in config.json, in any spelling', async () => {
    const parent = directories.make();
    const from = join(parent, 'in');
    writeCheckpoint(from, randomCheckpoint({}));
    const text = readFileSync(join(from, 'config.json'), 'utf8');
    // \u0023 is #; the converter marks numbers with a run of # that no string contains.
    const fields = String.raw`"a": "\u0023abc", "b": "\u0023123", "c": ["#\u0023#4", "x\"\u00235\""], "\u00236": 7.0`;
    writeFileSync(join(from, 'config.json'), text.replace('{', `{ ${fields},`));
    const to = join(parent, 'out');
    expect((await cli([from, to, '--key-heads', '1'])).status).toBe(0);
    const written = readFileSync(join(to, 'config.json'), 'utf8');
    expect(written).toContain('"#6": 7.0');
    const strings = { a: '#abc', b: '#123', c: ['###4', 'x"#5"'], '#6': 7 };
    expect(JSON.parse(written)).toEqual({ ...JSON.parse(text), ...strings, num_key_heads: 1 });
  });
});

/** The header of a safetensors file as JSON; `start` is the offset of its data. */
// biome-ignore lint/suspicious/noExplicitAny: the type of JSON.parse's result
function parts(file: Buffer): { header: any; start: number } {
  const start = 8 + Number(file.readBigUInt64LE());
  return { header: JSON.parse(file.subarray(8, start).toString()), start };
}

async function logitsOf(directory: string, tokens: number[]): Promise<Float32Array> {
  const model = await Model.load(directory, { device: 'cpu' });
  try {
    const session = await model.createSession();
    return await session.prefill(tokens);
  } finally {
    model.dispose();
  }
}

/** Checks that the model in the directory computes what the reference computes from the tensors. */
async function expectReference(directory: string, checkpoint: Checkpoint): Promise<void> {
  const tokens = new Random(5).tokens(40, checkpoint.config.vocab_size as number);
  const [expected] = modelLogits(checkpoint, tokens) as [Float64Array];
  const type = (checkpoint.tensors.get('model.norm.weight')?.type ?? 'F32').toLowerCase() as FloatType;
  expect(logitError(await logitsOf(directory, tokens), expected)).toBeLessThanOrEqual(modelTolerances[type]);
}

describe('shards', () => {
  it('keep their names, metadata and index, and get new totals', async () => {
    const parent = directories.make();
    const [from, to] = [join(parent, 'in'), join(parent, 'out')];
    const before = randomCheckpoint({ type: 'BF16', heads: [8, 4, 8], headDim: 16 });
    writeCheckpoint(from, before, 3);
    const indexPath = join(from, 'model.safetensors.index.json');
    const index = JSON.parse(readFileSync(indexPath, 'utf8'));
    index.metadata = { total_size: 1_000_000, total_parameters: 500_000, note: 'kept' };
    writeFileSync(indexPath, JSON.stringify(index));
    for (const name of new Set(Object.values(index.weight_map) as string[])) {
      const file = readFileSync(join(from, name));
      const { header, start } = parts(file);
      const text = JSON.stringify({ __metadata__: { format: 'pt' }, ...header });
      writeFileSync(join(from, name), safetensorsFile(text, file.subarray(start)));
    }
    const { status } = await cli([from, to, '--key-heads', '2', '--key-head-dim', 'half']);
    expect(status).toBe(0);
    const made = JSON.parse(readFileSync(join(to, 'model.safetensors.index.json'), 'utf8'));
    const map = { ...index.weight_map };
    for (let layer = 0; layer < 2; layer++) map[attention(layer, 'k_lift_proj')] = map[attention(layer, 'k_proj')];
    expect(made.weight_map).toEqual(map);
    // Lifts of two layers, K with a quarter of the rows.
    const growth = 2 * (16 * 8 + (2 * 8 - 4 * 16) * 64);
    expect(made.metadata).toEqual({
      total_size: 1_000_000 + 2 * growth,
      total_parameters: 500_000 + growth,
      note: 'kept',
    });
    for (const name of new Set(Object.values(map) as string[])) {
      const file = readFileSync(join(to, name));
      const { header, start } = parts(file);
      expect(header.__metadata__).toEqual({ format: 'pt' });
      const held = Object.keys(map).filter((tensor) => map[tensor] === name);
      // The other files are unchanged.
      if (held.some((tensor) => /k_proj/.test(tensor))) expect(start % 8).toBe(0);
      expect(Object.keys(header).sort()).toEqual(['__metadata__', ...held].sort());
    }
    expectOthersKept(before, readCheckpoint(to));
  });

  it('keep the other files and follow links within the directory, but omit weights in other formats', async () => {
    const parent = directories.make();
    const [from, to] = [join(parent, 'in'), join(parent, 'out')];
    writeCheckpoint(from, randomCheckpoint({ type: 'BF16' }));
    mkdirSync(join(from, 'templates'));
    writeFileSync(join(from, 'templates', 'elsewhere'), 'linked');
    const kept = {
      'tokenizer.json': '{}',
      'generation_config.json': '{ "eos_token_id": 1.0 }',
      'templates/a.jinja': 'x',
      'empty.txt': '',
    };
    for (const [name, text] of Object.entries(kept)) writeFileSync(join(from, name), text);
    symlinkSync(join('templates', 'elsewhere'), join(from, 'merges.txt'));
    symlinkSync(parent, join(from, 'loop'));
    for (const name of ['pytorch_model.bin', 'old.safetensors', 'model.gguf', 'model.safetensors.index.json'])
      writeFileSync(join(from, name), 'x');
    const { status, stdout } = await cli([from, to, '--key-heads', '1', '--json']);
    expect(status).toBe(0);
    expect(JSON.parse(stdout)).toEqual({
      directory: to,
      numKHeads: { from: 2, to: 1 },
      numVHeads: { from: 4, to: 4 },
      keyHeadDim: { from: 16, to: 16 },
      weightBytes: { from: expect.any(Number), to: expect.any(Number) },
      convertedTensors: 2,
      leftOut: ['loop', 'model.gguf', 'model.safetensors.index.json', 'old.safetensors', 'pytorch_model.bin'],
    });
    for (const [name, text] of Object.entries({ ...kept, 'merges.txt': 'linked' }))
      expect(readFileSync(join(to, name), 'utf8')).toBe(text);
    expect(readdirSync(to).sort()).toEqual([
      'config.json',
      'empty.txt',
      'generation_config.json',
      'merges.txt',
      'model.safetensors',
      'templates',
      'tokenizer.json',
    ]);
  });

  it('read and copy the snapshot of a Hugging Face cache entry, which has links into blobs', async () => {
    const entry = directories.make();
    const [blobs, from, to] = [join(entry, 'blobs'), join(entry, 'snapshots', 'abc'), join(entry, 'out')];
    writeCheckpoint(blobs, randomCheckpoint({ type: 'BF16' }), 2);
    writeFileSync(join(blobs, 'tokenizer.json'), '{}');
    mkdirSync(from, { recursive: true });
    for (const name of readdirSync(blobs)) symlinkSync(join('..', '..', 'blobs', name), join(from, name));
    // The directory itself may be a link too.
    symlinkSync(from, join(entry, 'link'));
    for (const [input, output] of [
      [from, to],
      [join(entry, 'link'), `${to}2`],
    ] as const) {
      expect(await cli([input, output, '--key-heads', '2'])).toMatchObject({ status: 0, stderr: '' });
      expect(contents(output)).toEqual(contents(from));
    }
  });

  it.each(['config.json', 'model.safetensors.index.json', 'model-2-of-2.safetensors', 'merges.txt'])(
    'reject the link %s that leaves the directory, also in a cache entry',
    async (name) => {
      const entry = directories.make();
      const from = join(entry, 'snapshots', 'abc');
      writeCheckpoint(from, randomCheckpoint({ type: 'BF16' }), 2);
      writeFileSync(join(from, 'merges.txt'), '');
      renameSync(join(from, name), join(entry, 'private'));
      symlinkSync(join('..', '..', 'private'), join(from, name));
      const { status, stdout, stderr } = await cli([from, join(entry, 'out'), '--key-heads', '1']);
      expect({ status, stdout }).toEqual({ status: 1, stdout: '' });
      expect(stderr).toMatch(/^diffqkv: .*outside the directory.* \(ERR_INVALID_CHECKPOINT\)\n$/);
      expect(stderr).toContain(`${join(from, name)}: a symbolic link to ${join(entry, 'private')}`);
      expect(readdirSync(entry).sort()).toEqual(['private', 'snapshots']);
    },
  );
});

describe('group sharing keeps the logits', () => {
  it.each<[string, CheckpointSpec, number, 'sigma' | 'llama', number]>([
    ['Sigma with augmented Q', { heads: [12, 3, 6] }, 6, 'sigma', 1],
    ['BF16, sharded', { heads: [8, 1, 4], type: 'BF16', tied: false }, 4, 'sigma', 2],
    ['fewer V heads than K heads', { heads: [6, 6, 1], type: 'F16' }, 6, 'sigma', 1],
    ['neither count divides the other', { heads: [12, 4, 6] }, 12, 'sigma', 1],
    [
      'Sigma without augmented Q: a Llama',
      { heads: [8, 2, 4], augQSize: 0, config: { tie_word_embeddings: undefined } },
      4,
      'llama',
      1,
    ],
    ['Llama GQA', { architecture: 'llama', heads: [8, 2, 2], tied: false }, 2, 'llama', 1],
  ])('%s', async (_, spec, count, architecture, numShards) => {
    const before = randomCheckpoint(spec);
    const { from, to } = await converted(before, ['--kv-group-sharing'], numShards);
    const after = readCheckpoint(to);
    expect(after.config).toMatchObject({
      model_type: architecture,
      num_key_value_heads: count,
      tie_word_embeddings: spec.tied ?? true,
    });
    if (architecture === 'sigma') expect(after.config).toMatchObject({ num_key_heads: count, num_value_heads: count });
    else
      for (const key of ['num_key_heads', 'num_value_heads', 'aug_q_dim']) expect(after.config).not.toHaveProperty(key);
    expectOthersKept(before, after);
    const tokens = new Random(6).tokens(40, 128);
    // The same numbers in float64.
    expect(modelLogits(after, tokens)).toEqual(modelLogits(before, tokens));
    const [a, b] = [await logitsOf(from, tokens), await logitsOf(to, tokens)];
    const type = (spec.type ?? 'F32').toLowerCase() as FloatType;
    expect(logitError(b, Float64Array.from(a))).toBeLessThanOrEqual(modelTolerances[type]);
  });

  it('writes the same text with the embedded model', async () => {
    const to = join(directories.make(), 'out');
    expect((await cli([tldrDirectory, to, '--kv-group-sharing'])).status).toBe(0);
    const { prompt, greedy } = tldr.cases[0] as { prompt: string; greedy: number[] };
    const model = await Model.load(to, { device: 'cpu' });
    try {
      const { tokens } = await model.generate(prompt, { maxTokens: greedy.length }).result;
      expect(tokens).toEqual(greedy);
      expect([model.config.numKHeads, model.config.numVHeads]).toEqual([4, 4]);
    } finally {
      model.dispose();
    }
  });

  it('pools first, then copies', async () => {
    const before = randomCheckpoint({ heads: [8, 4, 8] });
    const pooled = readCheckpoint((await converted(before, ['--key-heads', '2'])).to);
    const shared = readCheckpoint((await converted(before, ['--key-heads', '2', '--kv-group-sharing'])).to);
    const tokens = new Random(6).tokens(20, 128);
    expect(modelLogits(shared, tokens)).toEqual(modelLogits(pooled, tokens));
    expect(shared.config).toMatchObject({ num_key_heads: 8, num_value_heads: 8 });
  });
});

describe('--key-head-dim half', () => {
  const llama3 = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 64 };

  it.each<[string, CheckpointSpec]>([
    ['F32', {}],
    ['BF16, Llama 3 scaling', { type: 'BF16', architecture: 'llama', heads: [4, 2, 2], ropeScaling: llama3 }],
    ['F16, head size 12', { type: 'F16', headDim: 12 }],
  ])('%s: keeps every second row, and adds the lift that restores the size', async (_, spec) => {
    const before = randomCheckpoint(spec);
    const { headDim: size = 16, type = 'F32' } = spec;
    const after = readCheckpoint((await converted(before, ['--key-head-dim', 'half'])).to);
    expect(after.config).toMatchObject({
      model_type: 'sigma',
      head_dim: size,
      key_head_dim: size / 2,
      key_lift: { kind: 'linear', position: 'after_rope' },
      num_key_heads: 2,
    });
    expect(after.config).not.toHaveProperty('num_key_value_heads');
    expectOthersKept(before, after);
    for (let layer = 0; layer < 2; layer++) {
      const full = before.tensors.get(attention(layer, 'k_proj')) as CheckpointTensor;
      const half = after.tensors.get(attention(layer, 'k_proj')) as CheckpointTensor;
      const lift = after.tensors.get(attention(layer, 'k_lift_proj')) as CheckpointTensor;
      expect([half.type, half.shape, lift.type, lift.shape]).toEqual([type, [size, 64], type, [size, size / 2]]);
      for (let head = 0; head < 2; head++) {
        for (let i = 0; i < size / 4; i++) {
          const row = ({ data }: CheckpointTensor, r: number) => data.subarray(r * 64, (r + 1) * 64);
          expect(row(half, (head * size) / 2 + i)).toEqual(row(full, head * size + 2 * i));
          expect(row(half, (head * size) / 2 + i + size / 4)).toEqual(row(full, head * size + 2 * i + size / 2));
        }
      }
      expect(after.tensors.get(attention(layer, 'v_proj'))?.data).toEqual(
        before.tensors.get(attention(layer, 'v_proj'))?.data,
      );
      // RoPE at half of the size, then the lift. The result is K after RoPE at full size, with the
      // odd pairs at 0.
      const theta = before.config.rope_theta as number;
      const positions = [0, 1, 77, 500];
      const x = new Random(7).normals(4 * 64, 1, 'f32');
      const turned = (weight: CheckpointTensor, dim: number) =>
        rope(matmul(x, weight.data, 4, 64, 2 * dim), positions, 2, dim, ropeFrequencies(dim, theta, spec.ropeScaling));
      const lifted = matmul(turned(half, size / 2), lift.data, 8, size / 2, size);
      const expected = turned(full, size).map((value, i) => (i % 2 === 0 ? value : 0));
      expect(Math.max(...lifted.map((value, i) => Math.abs(value - (expected[i] as number))))).toBeLessThan(1e-12);
    }
  });

  it('computes what the original computes with every second row of K at 0', async () => {
    const before = randomCheckpoint({ type: 'BF16', heads: [8, 2, 4] });
    const { to } = await converted(before, ['--key-head-dim', 'half']);
    const after = readCheckpoint(to);
    for (let layer = 0; layer < 2; layer++) {
      const { data } = before.tensors.get(attention(layer, 'k_proj')) as CheckpointTensor;
      for (let i = 0; i < data.length; i++) if (Math.floor(i / 64) % 2 === 1) data[i] = 0;
    }
    const tokens = new Random(8).tokens(30, 128);
    const [expected, actual] = [modelLogits(before, tokens)[0], modelLogits(after, tokens)[0]] as [
      Float64Array,
      Float64Array,
    ];
    expect(Math.max(...actual.map((value, i) => Math.abs(value - (expected[i] as number))))).toBeLessThan(1e-12);
    await expectReference(to, after);
  });

  it('pools V by its own head size', async () => {
    const before = randomCheckpoint({ type: 'F32', heads: [8, 2, 4], valueHeadDim: 6 });
    const after = readCheckpoint((await converted(before, ['--value-heads', '2'])).to);
    const old = before.tensors.get(attention(0, 'v_proj'))?.data as Float32Array;
    const made = after.tensors.get(attention(0, 'v_proj')) as CheckpointTensor;
    expect(made.shape).toEqual([2 * 6, 64]);
    const size = 6 * 64;
    const mean = (head: number, i: number) =>
      ((old[2 * head * size + i] as number) + (old[(2 * head + 1) * size + i] as number)) / 2;
    expect(made.data).toEqual(Float32Array.from({ length: 2 * size }, (_, i) => mean(Math.floor(i / size), i % size)));
    expect(after.config).toEqual({ ...before.config, num_value_heads: 2 });
  });

  it('keeps half of the pooled heads together with pooling', async () => {
    const before = randomCheckpoint({ heads: [8, 4, 4], type: 'BF16' });
    const pooled = (await converted(before, ['--key-heads', '2'])).to;
    const twoSteps = `${pooled}-half`;
    expect((await cli([pooled, twoSteps, '--key-head-dim', 'half'])).status).toBe(0);
    const { to } = await converted(before, ['--key-heads', '2', '--key-head-dim', 'half']);
    expect(contents(to)).toEqual(contents(twoSteps));
    // The heads of a halved checkpoint can be pooled.
    const oneHead = `${to}-one`;
    expect((await cli([to, oneHead, '--key-heads', '1'])).status).toBe(0);
    const after = readCheckpoint(oneHead);
    expect(after.tensors.get(kProj)?.shape).toEqual([8, 64]);
    expect(after.tensors.get(attention(1, 'k_lift_proj'))).toEqual(
      readCheckpoint(to).tensors.get(attention(1, 'k_lift_proj')),
    );
    expect(after.config).toMatchObject({
      key_head_dim: 8,
      key_lift: { kind: 'linear', position: 'after_rope' },
      num_key_heads: 1,
    });
  });
});

describe('rejects and writes nothing', () => {
  const good = randomCheckpoint({ heads: [12, 6, 4] });
  const setUp = () => {
    const parent = directories.make();
    const from = join(parent, 'in');
    writeCheckpoint(from, good);
    return { parent, from, to: join(parent, 'out') };
  };

  it.each<[string, string[], RegExp]>([
    ['nothing to do', [], /--key-heads/],
    ['5 of 6 K heads', ['--key-heads', '5'], /--key-heads is 5.* 6 K heads/],
    ['more K heads', ['--key-heads', '12'], /12.* 6 K heads/],
    ['3 of 4 V heads', ['--value-heads', '3'], /--value-heads is 3.* 4 V heads/],
    ['no K heads', ['--key-heads', '0'], /is 0/],
    ['-2 K heads', ['--key-heads', '-2'], /is -2/],
    ['1.5 K heads', ['--key-heads', '1.5'], /1\.5/],
    ['a word instead of a number', ['--key-heads', 'two'], /'two'/],
    ['a third of the head size', ['--key-head-dim', 'third'], /'third'/],
    ['half, for readers that know one size', ['--key-head-dim', 'half', '--kv-group-sharing'], /one head size/],
  ])('%s', async (_, args, message) => {
    const { parent, from, to } = setUp();
    const { status, stdout, stderr } = await cli([from, to, ...args]);
    expect({ status, stdout }).toEqual({ status: 1, stdout: '' });
    expect(stderr).toMatch(/^diffqkv: [^\n]+ \(ERR_INVALID_ARGUMENT\)\n$/);
    expect(stderr).toMatch(message);
    expect(readdirSync(parent)).toEqual(['in']);
  });

  it('half of a head size that is not a multiple of 4 or that is already halved', async () => {
    const { parent, from, to } = setUp();
    writeCheckpoint(from, randomCheckpoint({ headDim: 10 }));
    const odd = await errorOf(() => convert(from, to, { keyHeadDim: 'half' }));
    expect([(odd as { code?: string }).code, odd.message]).toEqual([
      'ERR_INVALID_ARGUMENT',
      expect.stringContaining('10'),
    ]);
    writeCheckpoint(from, randomCheckpoint({}));
    expect((await cli([from, to, '--key-head-dim', 'half'])).status).toBe(0);
    for (const command of [{ keyHeadDim: 'half' }, { kvGroupSharing: true }]) {
      expect((await errorOf(() => convert(to, `${to}2`, command))).code).toBe('ERR_INVALID_ARGUMENT');
    }
    expect(readdirSync(parent).sort()).toEqual(['in', 'out']);
  });

  it.each<[string, (place: ReturnType<typeof setUp>) => string]>([
    ['the input itself', ({ from }) => from],
    ['the input by another name', ({ parent }) => join(parent, 'x', '..', 'in/')],
    [
      'a link to the input',
      ({ parent, from }) => {
        symlinkSync(from, join(parent, 'link'));
        return join(parent, 'link');
      },
    ],
    ['a directory inside the input', ({ from }) => join(from, 'new')],
    [
      'a directory that is not empty',
      ({ to }) => {
        mkdirSync(to);
        writeFileSync(join(to, 'mine'), 'x');
        return to;
      },
    ],
    [
      'a file',
      ({ to }) => {
        writeFileSync(to, 'mine');
        return to;
      },
    ],
    [
      'a dangling link',
      ({ to }) => {
        symlinkSync('/nowhere/at/all', to);
        return to;
      },
    ],
    ['in a directory that does not exist', ({ parent }) => join(parent, 'a', 'b')],
  ])('an output that is %s', async (_, prepare) => {
    const place = setUp();
    const to = prepare(place);
    const before = [readdirSync(place.parent).sort(), contents(place.from)];
    const error = await errorOf(() => convert(place.from, to, { keyHeads: 3 }));
    expect([error.code, error.message]).toEqual(['ERR_INVALID_ARGUMENT', expect.stringContaining(to)]);
    expect([readdirSync(place.parent).sort(), contents(place.from)]).toEqual(before);
  });

  it('an output that is an empty directory and a mount point', async () => {
    const { from, to, parent } = setUp();
    mkdirSync(to);
    const { stat } = fileSystem;
    // This simulates a mount point, because the test may lack the right to mount.
    const mounted = jest.spyOn(fileSystem, 'stat').mockImplementation(async (path) => {
      const info = await stat(path);
      return String(path).endsWith(`${sep}out`) ? Object.assign(info, { dev: info.dev + 1 }) : info;
    });
    const error = await errorOf(() => convert(from, to, { keyHeads: 3 })).finally(() => mounted.mockRestore());
    expect([error.code, error.message]).toEqual([
      'ERR_INVALID_ARGUMENT',
      expect.stringMatching(/out: a file system is mounted there/),
    ]);
    expect([readdirSync(parent).sort(), readdirSync(to)]).toEqual([['in', 'out'], []]);
  });

  it('a tensor to create that is already in a shard but not in the index', async () => {
    const { parent, from, to } = setUp();
    const name = attention(1, 'k_lift_proj');
    const lift: CheckpointTensor = { type: 'F32', shape: [16, 8], data: new Float32Array(128) };
    rmSync(join(from, 'model.safetensors'));
    writeCheckpoint(from, { ...good, tensors: new Map([...good.tensors, [name, lift]]) }, 2);
    const indexPath = join(from, 'model.safetensors.index.json');
    const index = JSON.parse(readFileSync(indexPath, 'utf8'));
    const shard = index.weight_map[name];
    delete index.weight_map[name];
    writeFileSync(indexPath, JSON.stringify(index));
    const error = await errorOf(() => convert(from, to, { keyHeadDim: 'half' }));
    expect([error.code, error.message]).toEqual([
      'ERR_INVALID_CHECKPOINT',
      expect.stringMatching(new RegExp(`^${join(from, shard)}: .*'${name}'`)),
    ]);
    expect(readdirSync(parent)).toEqual(['in']);
  });

  it('but accepts an empty directory as output', async () => {
    const { from, to, parent } = setUp();
    mkdirSync(to);
    expect((await cli([from, to, '--key-heads', '3'])).status).toBe(0);
    expect(readdirSync(parent).sort()).toEqual(['in', 'out']);
    expect(readdirSync(to).sort()).toEqual(['config.json', 'model.safetensors']);
  });

  // The converter does not read the tensors other than K and V, nor the config except the heads.
  const relevant =
    /k_proj|v_proj|layers\.2\.|safetensors|config\.json|index\.json|num_key|num_value|num_attention|head_dim/;
  const skipped = /^a tensor twice$|^weight_map empty$|biases|^more K heads/;
  const concerns = (list: typeof files) =>
    list.filter(({ name, names }) => names.every((part) => relevant.test(String(part))) && !skipped.test(name));
  const broken = {
    files: concerns(files),
    headers: concerns(headers),
    entries,
    tensors: tensors.filter(({ name }) => /\.[kv]_proj|a bias of K|an empty tensor|more layers/.test(name)),
    shards: shards.filter(({ name }) => !skipped.test(name)),
  };
  describe.each(Object.entries(broken))('broken %s', (_, breaks) => {
    it.each(breaks)('$name', async ({ apply, code = 'ERR_INVALID_CHECKPOINT', names, shards: numShards }) => {
      const parent = directories.make();
      const from = join(parent, 'in');
      const checkpoint = randomCheckpoint({});
      writeCheckpoint(from, checkpoint, numShards);
      apply(from, checkpoint);
      const error = await errorOf(() => convert(from, join(parent, 'out'), { keyHeads: 1 }));
      expect(error.message).not.toMatch(/\n/);
      expect([error.code, error.message]).toEqual([code, expect.stringContaining(from)]);
      for (const name of names) {
        if (typeof name === 'string') expect(error.message).toContain(name);
      }
      expect(readdirSync(parent).filter((name) => name !== 'in')).toEqual([]);
    });
  });

  it('keeps NaN and Infinity in config.json as Python writes them', async () => {
    const parent = directories.make();
    const [from, to] = [join(parent, 'in'), join(parent, 'out')];
    const checkpoint = randomCheckpoint({ config: { hash: '##', other: '(value)', list: '(list)' } });
    writeCheckpoint(from, checkpoint);
    const file = join(from, 'config.json');
    const text = readFileSync(file, 'utf8').replace('"(value)"', 'NaN').replace('"(list)"', '[-Infinity, "NaN", 1.0]');
    writeFileSync(file, text);
    expect(await cli([from, to, '--key-heads', '1'])).toMatchObject({ status: 0, stderr: '' });
    const written = readFileSync(join(to, 'config.json'), 'utf8');
    expect(written.replace(/\s/g, '')).toBe(text.replace(/\s/g, '').replace('"num_key_heads":2', '"num_key_heads":1'));
  });

  it('says what a folder is that has no checkpoint', async () => {
    const from = directories.make();
    writeFileSync(join(from, 'model-q4.gguf'), 'GGUF');
    const { status, stderr } = await cli([from, join(directories.make(), 'out'), '--key-heads', '1']);
    expect({ status, stderr }).toEqual({
      status: 1,
      stderr: expect.stringMatching(/^diffqkv: .*only GGUF weights.*\(ERR_UNSUPPORTED_MODEL\)\n$/),
    });
  });

  // The converter reads only the heads from the config. Other errors are left to the loader.
  const ofHeads =
    /^(num_(attention|key|value|key_value)_heads|num_hidden_layers|hidden_size|head_dim) |rchitecture|^model_type|heads|JSON|^(empty|NaN|null|a list|a string)$/;
  const all = [...configs, ...unsupported];
  describe.each([
    ['rejected', all.filter(({ name }) => ofHeads.test(name))],
    ['rejected or accepted', all.filter(({ name }) => !ofHeads.test(name))],
  ])('config %s', (which, breaks) => {
    it.each(breaks)('$name', async ({ apply, llama }) => {
      const parent = directories.make();
      const [from, to] = [join(parent, 'in'), join(parent, 'out')];
      const checkpoint = llama ? randomCheckpoint({ architecture: 'llama', heads: [4, 2, 2] }) : randomCheckpoint({});
      writeCheckpoint(from, checkpoint);
      apply(from, checkpoint);
      const write = jest.spyOn(process.stdout, 'write').mockReturnValue(true);
      const outcome = await convert(from, to, { keyHeads: 1 })
        .catch((error: Error & { code?: string }) => error)
        .finally(() => write.mockRestore());
      if (which !== 'rejected' && outcome === 0) {
        expect(readdirSync(to).sort()).toEqual(['config.json', 'model.safetensors']);
        const after = readCheckpoint(to);
        expect(after.config).toEqual({ ...readCheckpoint(from).config, num_key_heads: 1 });
        expectOthersKept(checkpoint, after);
        // K and V must also equal those with the unbroken config.
        const reference = join(parent, 'reference');
        writeCheckpoint(from, checkpoint);
        expect((await cli([from, reference, '--key-heads', '1'])).status).toBe(0);
        expect(contents(to)['model.safetensors']).toBe(contents(reference)['model.safetensors']);
        return;
      }
      const { code, message } = outcome as Error & { code?: string };
      expect([code, message]).toEqual([
        expect.stringMatching(/^ERR_(INVALID_CHECKPOINT|UNSUPPORTED_MODEL)$/),
        expect.stringContaining(from),
      ]);
      expect(readdirSync(parent)).toEqual(['in']);
    });
  });
});
