// Other shapes of the same model families against the float64 model: odd head counts, head sizes 8
// to 128, long prompts, shards, untied heads, all weight types, RoPE scaling, and types of weights
// and cache that are chosen at load. The test generates the checkpoints.

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Model } from '../../lib/index';
import { presets } from '../../lib/presets';
import { type CheckpointSpec, randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { logitError, modelTolerances } from '../support/compare';
import { errorOf, long, onEveryDevice, reduced } from '../support/devices';
import { type FloatType, Random } from '../support/numbers';
import type { SelectiveV } from '../support/reference';
import { modelLogits } from '../support/reference_model';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

interface Case {
  name: string;
  spec: CheckpointSpec;
  numShards?: number;
  numTokens?: number;
  selectiveV?: SelectiveV;
}

const llama3 = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 64 };

const cases: Case[] = [
  ...(
    [
      [12, 3, 6],
      [6, 6, 1],
      [16, 2, 16],
      [12, 4, 6],
      [4, 4, 2],
      [8, 1, 2],
      [4, 4, 4],
      [1, 1, 1],
      [5, 1, 5],
    ] as [number, number, number][]
  ).map((heads) => ({
    name: `heads ${heads.join('/')}`,
    spec: { heads, headDim: 16 },
  })),
  ...[8, 32, 80, 96, 128].map((headDim) => ({
    name: `head size ${headDim}`,
    spec: { headDim, heads: [4, 1, 2] as [number, number, number] },
  })),
  ...(['F32', 'F16', 'BF16'] as const).flatMap((type) => [
    {
      name: `${type}, untied, 3 shards`,
      spec: { type, tied: false, heads: [12, 3, 6] as [number, number, number], headDim: 32 },
      numShards: 3,
    },
    {
      name: `${type}, head size 128, a shard per tensor`,
      spec: { type, headDim: 128, heads: [6, 6, 1] as [number, number, number], numLayers: 1 },
      numShards: 100,
    },
    {
      name: `${type}, 16/2/16, head size 8`,
      spec: { type, headDim: 8, heads: [16, 2, 16] as [number, number, number] },
    },
    {
      name: `${type}, Llama 3`,
      spec: {
        type,
        architecture: 'llama' as const,
        heads: [8, 2, 2] as [number, number, number],
        ropeTheta: 500000,
        ropeScaling: llama3,
      },
      numTokens: 150,
    },
  ]),
  {
    name: 'sizes that are not multiples of anything',
    spec: { hiddenSize: 70, intermediateSize: 101, augQSize: 37, vocabSize: 131, headDim: 10, heads: [6, 3, 2] },
  },
  { name: 'without augmented Q', spec: { augQSize: 0 } },
  {
    name: 'aug_q_dim missing from the config, derived from q_up_proj',
    spec: { augQSize: 40, config: { aug_q_dim: undefined } },
  },
  { name: 'augmented Q larger than Q', spec: { augQSize: 200 } },
  {
    name: 'head_dim missing from the config',
    spec: { hiddenSize: 64, heads: [4, 2, 4], headDim: 16, config: { head_dim: undefined } },
  },
  { name: 'Sigma with Llama 3 RoPE scaling', spec: { ropeScaling: llama3 }, numTokens: 150 },
  {
    name: 'Llama MHA, num_key_value_heads missing',
    spec: { architecture: 'llama', heads: [4, 4, 4], config: { num_key_value_heads: undefined } },
  },
  {
    name: 'rope_theta missing: 10,000',
    spec: { ropeTheta: 10000, architecture: 'llama', heads: [4, 2, 2], config: { rope_theta: undefined } },
  },
  { name: 'one layer, one token', spec: { numLayers: 1 }, numTokens: 1 },
  { name: 'selective V', spec: { heads: [12, 3, 6] }, selectiveV: { topK: 3 } },
  { name: 'selective V, renormalized', spec: { heads: [6, 6, 1] }, selectiveV: { topK: 4, renormalize: true } },
  { name: 'selective V, BF16', spec: { heads: [8, 2, 4], type: 'BF16', headDim: 32 }, selectiveV: { topK: 8 } },
];

const tolerance = (spec: CheckpointSpec): number => modelTolerances[(spec.type ?? 'F32').toLowerCase() as FloatType];

onEveryDevice((device) => {
  it.each(cases)('$name', async ({ spec, numShards, numTokens = 37, selectiveV }) => {
    const checkpoint = randomCheckpoint(spec);
    const directory = directories.make();
    writeCheckpoint(directory, checkpoint, numShards);
    const model = await Model.load(directory, { device: device() });
    try {
      let count = 0;
      for (const { shape } of checkpoint.tensors.values()) count += shape.reduce((a, b) => a * b, 1);
      expect(model.numParameters).toBe(count);
      const tokens = new Random(3).tokens(numTokens, model.config.vocabSize);
      const session = await model.createSession({ selectiveV });
      const expected = modelLogits(checkpoint, tokens, { selectiveV, numLogits: Math.min(3, numTokens) });
      const last = expected[expected.length - 1] as Float64Array;
      expect(logitError(await session.prefill(tokens), last)).toBeLessThanOrEqual(tolerance(spec));
      if (numTokens > 3) {
        await session.truncate(numTokens - 3);
        for (const [i, logits] of expected.entries()) {
          expect(logitError(await session.decode(tokens[numTokens - 3 + i] as number), logits)).toBeLessThanOrEqual(
            tolerance(spec),
          );
        }
      }
    } finally {
      model.dispose();
    }
  });

  long(
    'tensors of several chunks: the logits of the last rows, as they are stored, converted and quantized',
    async () => {
      // A chunk is 4 Mi elements. The matrix is the last tensor of the file, so nothing follows it.
      const [vocabSize, hiddenSize, rows] = [43_700, 97, 40];
      const spec: CheckpointSpec = { type: 'BF16', tied: false, numLayers: 1, hiddenSize, intermediateSize: 32 };
      const small = randomCheckpoint({ ...spec, vocabSize: 128 });
      const name = 'lm_head.weight';
      const all = new Random(12).normals(vocabSize * hiddenSize, 0.1, 'bf16');
      const last = all.slice(-rows * hiddenSize);
      const withMatrix = (data: Float32Array) => {
        const count = data.length / hiddenSize;
        const tensors = new Map(small.tensors);
        const embed = tensors.get('model.embed_tokens.weight') as { data: Float32Array };
        const embedding = new Float32Array(count * hiddenSize);
        embedding.set(embed.data.subarray(0, rows * hiddenSize));
        tensors.set('model.embed_tokens.weight', { type: 'BF16', shape: [count, hiddenSize], data: embedding });
        tensors.delete(name);
        tensors.set(name, { type: 'BF16', shape: [count, hiddenSize], data });
        const directory = directories.make();
        writeCheckpoint(directory, { config: { ...small.config, vocab_size: count }, tensors });
        return directory;
      };
      const [whole, part] = [withMatrix(all), withMatrix(last)];
      for (const options of [{}, { dtype: 'f32' }, { weightType: 'i8' }, { weightType: 'i4' }] as const) {
        const logits: Float32Array[] = [];
        for (const directory of [whole, part]) {
          const model = await Model.load(directory, { device: device(), ...options });
          const session = await model.createSession();
          logits.push(await session.prefill([1, 2, 3]));
          model.dispose();
        }
        const [ofWhole, ofPart] = logits as [Float32Array, Float32Array];
        expect(ofPart.some((x) => x !== 0)).toBe(true);
        expect(logitError(ofWhole.slice(-rows), Float64Array.from(ofPart))).toBeLessThanOrEqual(1e-6);
      }
    },
  );

  describe('a prompt of several chunks', () => {
    const spec: CheckpointSpec = {
      heads: [6, 3, 2],
      headDim: 16,
      hiddenSize: 48,
      intermediateSize: 64,
      augQSize: 48,
      vocabSize: 96,
      numLayers: 2,
    };

    const types = ['BF16', 'F32', 'F16'] as const;
    long.each(reduced ? types.slice(0, 1) : types)(
      '%s: returns the same whole, in uneven pieces and with decode at the end',
      async (type) => {
        // A chunk is 512 tokens. The emulated device is slow.
        const length = device().id === 'emulated' ? 600 : 1500;
        const tokens = new Random(4).tokens(length, 96);
        const checkpoint = randomCheckpoint({ ...spec, type });
        const expected = modelLogits(checkpoint, tokens, { numLogits: 2 });
        const directory = directories.make();
        writeCheckpoint(directory, checkpoint);
        const model = await Model.load(directory, { device: device() });
        try {
          const session = await model.createSession();
          const limit = tolerance({ type });
          const whole = await session.prefill(tokens);
          expect(logitError(whole, expected[1] as Float64Array)).toBeLessThanOrEqual(limit);
          await session.truncate(length - 2);
          expect(
            logitError(await session.decode(tokens[length - 2] as number), expected[0] as Float64Array),
          ).toBeLessThanOrEqual(limit);
          expect(
            logitError(await session.decode(tokens[length - 1] as number), expected[1] as Float64Array),
          ).toBeLessThanOrEqual(limit);
          const pieces = await model.createSession();
          let logits: Float32Array = new Float32Array();
          for (const [from, to] of [
            [0, 1],
            [1, 513],
            [513, 570],
            [570, length - 1],
            [length - 1, length],
          ] as const)
            logits = await pieces.prefill(tokens.slice(from, to));
          expect(logitError(logits, expected[1] as Float64Array)).toBeLessThanOrEqual(limit);
          expect(logitError(logits, whole)).toBeLessThanOrEqual(limit);
        } finally {
          model.dispose();
        }
      },
    );

    it('handles selective V at that length', async () => {
      const tokens = new Random(4).tokens(device().id === 'emulated' ? 600 : 1500, 96);
      const checkpoint = randomCheckpoint({ ...spec, numLayers: 1 });
      const directory = directories.make();
      writeCheckpoint(directory, checkpoint);
      const model = await Model.load(directory, { device: device() });
      try {
        const selectiveV = { topK: 100 };
        const session = await model.createSession({ selectiveV });
        const [expected] = modelLogits(checkpoint, tokens, { selectiveV });
        expect(logitError(await session.prefill(tokens), expected as Float64Array)).toBeLessThanOrEqual(tolerance({}));
      } finally {
        model.dispose();
      }
    });
  });

  describe('types', () => {
    const spec: CheckpointSpec = { heads: [8, 2, 4], headDim: 32 };
    const checkpoint = randomCheckpoint(spec);
    const tokens = new Random(5).tokens(40, 128);
    const [expected] = modelLogits(checkpoint, tokens) as [Float64Array];
    let directory = '';
    beforeAll(() => {
      directory = directories.make();
      writeCheckpoint(directory, checkpoint);
    });

    it.each(['f32', 'f16', 'bf16'] as const)('loads weights as %s', async (dtype) => {
      const model = await Model.load(directory, { device: device(), dtype });
      try {
        const session = await model.createSession();
        const error = logitError(await session.prefill(tokens), expected);
        expect(error).toBeLessThanOrEqual(modelTolerances[dtype]);
        // A smaller error would mean that the type was ignored.
        if (dtype !== 'f32') expect(error).toBeGreaterThan(modelTolerances.f32);
        const bytes = 40 * 2 * 32 * (dtype === 'f32' ? 4 : 2);
        const { k, v } = session.kvCacheBytes;
        expect(v).toBe(2 * k);
        expect(k).toBeGreaterThanOrEqual(bytes);
      } finally {
        model.dispose();
      }
    });

    it.each([
      ['bf16', 'f32'],
      ['f32', 'bf16'],
      ['f16', 'f16'],
      ['bf16', 'f16'],
    ] as const)('stores K as %s and V as %s in the cache', async (kType, vType) => {
      const model = await Model.load(directory, { device: device() });
      try {
        const size = { f32: 4, f16: 2, bf16: 2 };
        const session = await model.createSession({ kType, vType, maxKvLen: 64 });
        expect(session.maxKvLen).toBe(64);
        const { k, v } = session.kvCacheBytes;
        expect(k / size[kType]).toBe(v / size[vType] / 2);
        expect(logitError(await session.prefill(tokens), expected)).toBeLessThanOrEqual(modelTolerances.bf16);
        const fork = await session.fork();
        await session.truncate(39);
        expect(logitError(await session.decode(tokens[39] as number), expected)).toBeLessThanOrEqual(
          modelTolerances.bf16,
        );
        expect(fork.kvCacheBytes).toEqual(session.kvCacheBytes);
      } finally {
        model.dispose();
      }
    });
  });

  describe('Model.random', () => {
    it.each([
      ['sigma-1.5b', 2.02e9],
      ['sigma-10b', 9.99e9],
    ] as const)("%s has the parameters that the paper's code has", (name, expected) => {
      // Computes the count from the shapes, because creating the model would take gigabytes. The
      // test below shows that the addon counts the same.
      const c: Record<string, unknown> = presets[name];
      const size = (field: string): number => c[field] as number;
      const qSize = size('num_attention_heads') * size('head_dim');
      const perLayer =
        2 * size('hidden_size') +
        size('hidden_size') * (2 * qSize + (size('num_key_heads') + size('num_value_heads')) * size('head_dim')) +
        3 * size('aug_q_dim') * qSize +
        3 * size('hidden_size') * size('intermediate_size');
      const count =
        size('vocab_size') * size('hidden_size') + size('hidden_size') + size('num_hidden_layers') * perLayer;
      expect(Math.abs(count / expected - 1)).toBeLessThan(0.003);
      expect([c.num_attention_heads, c.num_key_heads, c.num_value_heads]).toEqual([32, 4, 16]);
    });

    const { config } = randomCheckpoint({ heads: [12, 3, 6] });

    it('keeps numbers as written: integers past 64 bits, and 64.0 is not an integer', async () => {
      // JSON writes 1e19 without a decimal point.
      const model = await Model.random({ ...config, rope_theta: 1e19 }, { device: device() });
      expect(model.config.ropeTheta).toBe(1e19);
      model.dispose();
      const directory = directories.make();
      writeCheckpoint(directory, randomCheckpoint({ heads: [12, 3, 6] }));
      const file = join(directory, 'config.json');
      writeFileSync(file, readFileSync(file, 'utf8').replace(/("hidden_size": *)(\d+)/, '$1$2.0'));
      expect((await errorOf(() => Model.load(directory, { device: device() }))).message).toMatch(
        /hidden_size is \d+\.0; it must be an integer/,
      );
    });

    it('draws weights of a normal distribution', async () => {
      // A logit is a sum of two weights times the two elements of a normed row, which has the length
      // sqrt(2), so logits are as weights times sqrt(2): of variance 1.
      const vocabSize = 40_000;
      const small = { ...config, hidden_size: 2, vocab_size: vocabSize, tie_word_embeddings: false };
      const model = await Model.random(small, { device: device(), dtype: 'f32', seed: 3 });
      const session = await model.createSession();
      const logits = [...(await session.prefill([1]))];
      const mean = (power: number) => logits.reduce((sum, x) => sum + x ** power, 0) / vocabSize;
      expect(Math.abs(mean(1))).toBeLessThan(0.02);
      expect(Math.abs(mean(2) - 1)).toBeLessThan(0.03);
      expect(Math.abs(mean(4) - 3)).toBeLessThan(0.2);
      const share = (limit: number) => logits.filter((x) => Math.abs(x) < limit).length / vocabSize;
      for (const [limit, expected] of [
        [0.1, 0.0797],
        [1, 0.6827],
        [2, 0.9545],
      ] as const) {
        expect(Math.abs(share(limit) - expected)).toBeLessThan(0.01);
      }
      model.dispose();
    });

    it('draws the same weights for the same seed', async () => {
      const run = async (seed: number): Promise<Float32Array> => {
        const model = await Model.random(config, { device: device(), seed });
        try {
          const session = await model.createSession();
          return await session.prefill([1, 2, 3]);
        } finally {
          model.dispose();
        }
      };
      const first = await run(7);
      expect(first.every(Number.isFinite)).toBe(true);
      expect(await run(7)).toEqual(first);
      expect(await run(8)).not.toEqual(first);
    });

    it.each(['f32', 'bf16', 'f16'] as const)('%s', async (dtype) => {
      const model = await Model.random(config, { device: device(), dtype, seed: 1 });
      try {
        const session = await model.createSession();
        expect((await session.prefill([1, 2, 3])).every(Number.isFinite)).toBe(true);
        expect(model.tokenizer).toBeNull();
        let count = 0;
        for (const { shape } of randomCheckpoint({ heads: [12, 3, 6] }).tensors.values())
          count += shape.reduce((a, b) => a * b, 1);
        expect(model.numParameters).toBe(count);
      } finally {
        model.dispose();
      }
    });
  });
});
