// diffqkv convert --key-head-dim N: the factors of q . k, what the converted model computes, and the
// models that it rejects.

import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { convert } from '../../cli/convert';
import { DistanceSums } from '../../cli/convert_factor';
import { Model } from '../../lib/index';
import {
  type CheckpointSpec,
  randomCheckpoint,
  readCheckpoint,
  temporaryDirectories,
  writeCheckpoint,
} from '../support/checkpoints';
import { builtCli, runNode } from '../support/children';
import { logitError, modelTolerances } from '../support/compare';
import { convertIn } from '../support/convert';
import { errorOf } from '../support/devices';
import { projectRoot, tldrDirectory } from '../support/fixtures';
import { Random } from '../support/numbers';
import { rope, ropeFrequencies } from '../support/reference';
import { type Checkpoint, type CheckpointTensor, modelLogits } from '../support/reference_model';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const converted = async (checkpoint: Checkpoint, args: string[], numShards = 1) =>
  (await convertIn(directories.make(), checkpoint, args, numShards)).to;

const attention = (layer: number, part: string): string => `model.layers.${layer}.self_attn.${part}.weight`;
const tensor = ({ tensors }: Checkpoint, name: string): CheckpointTensor => tensors.get(name) as CheckpointTensor;

describe('the factors', () => {
  const [size, rank, numDistances] = [8, 4, 40];
  const frequencies = [...ropeFrequencies(size, 5000)];
  const random = new Random(3);
  // q q^T and k k^T of a few random vectors each.
  const queries = Array.from({ length: 12 }, () => random.normals(size, 1, 'f32'));
  const keys = Array.from({ length: 12 }, () => random.normals(size, 1, 'f32'));
  const moments = (vectors: Float32Array[]): Float64Array => {
    const sum = new Float64Array(size * size);
    for (const v of vectors)
      for (let i = 0; i < sum.length; i++)
        (sum[i] as number) += (v[Math.floor(i / size)] as number) * (v[i % size] as number);
    return sum;
  };
  const image = (matrix: Float64Array, v: Float32Array): Float64Array =>
    Float64Array.from({ length: rank }, (_, i) =>
      v.reduce((sum, x, row) => sum + (matrix[row * rank + i] as number) * x, 0),
    );
  const turned = (v: Float32Array | Float64Array, position: number): Float64Array =>
    rope(
      v,
      [position],
      1,
      v.length,
      v.length === size
        ? Float64Array.from(frequencies)
        : Float64Array.of(frequencies[0] as number, frequencies[2] as number),
    );
  const product = (a: Float64Array, b: Float64Array): number => a.reduce((sum, x, i) => sum + x * (b[i] as number), 0);

  /** The weighted sum of squared differences of the scores, by the definition. */
  function loss(q: Float64Array, k: Float64Array): number {
    let sum = 0;
    for (let distance = 0; distance < numDistances; distance++) {
      const weight = Math.log((distance + 1.5) / (distance + 0.5));
      for (const query of queries) {
        const [full, small] = [turned(query, 100), turned(image(q, query), 100)];
        for (const key of keys) {
          const score = product(full, turned(key, 100 - distance));
          sum += weight * (score - product(small, turned(image(k, key), 100 - distance))) ** 2;
        }
      }
    }
    return sum;
  }

  const { q, k } = new DistanceSums(frequencies, rank, numDistances).factor(moments(queries), moments(keys));
  const best = loss(q, k);

  it('are a minimum of the squared difference of the scores', () => {
    const selection = new Float64Array(size * rank);
    for (let i = 0; i < rank; i++) selection[i * size + i] = 1;
    expect(best).toBeLessThan(0.8 * loss(selection, selection));
    // A step of the right size in any direction changes the loss in the second order only.
    for (const part of ['q', 'k'] as const) {
      for (let trial = 0; trial < 4; trial++) {
        const step = random.normals(size * rank, 0.01, 'f32');
        const moved = (sign: number) => {
          const factors = { q: q.slice(), k: k.slice() };
          factors[part] = factors[part].map((x, i) => x + sign * (step[i] as number));
          return loss(factors.q, factors.k);
        };
        const [plus, minus] = [moved(1), moved(-1)];
        expect(Math.min(plus, minus)).toBeGreaterThan(0.999 * best);
        const [first, second] = [Math.abs(plus - minus), plus + minus - 2 * best];
        expect(first).toBeLessThan(second);
      }
    }
  });

  it('give the pairs of the new K the mean energy of the old pairs', () => {
    const energy = (vectors: Float64Array[], pair: number, pairs: number) =>
      vectors.reduce((sum, v) => sum + (v[pair] as number) ** 2 + (v[pair + pairs] as number) ** 2, 0);
    const all = keys.map((key) => Float64Array.from(key));
    const mean = [0, 1, 2, 3].reduce((sum, pair) => sum + energy(all, pair, 4), 0) / 4;
    const small = keys.map((key) => image(k, key));
    for (const pair of [0, 1]) expect(energy(small, pair, 2) / mean).toBeCloseTo(1, 6);
  });

  it('are the selection if Q or K is 0', () => {
    const sums = new DistanceSums(frequencies, rank, numDistances);
    const { k: selected } = sums.factor(moments(queries), new Float64Array(size * size));
    expect([...selected].map((x, i) => (x ? i : -1)).filter((i) => i >= 0)).toEqual([0, 9, 18, 27]);
  });
});

async function logitsOf(directory: string, tokens: number[]): Promise<Float32Array> {
  const model = await Model.load(directory, { device: 'cpu' });
  try {
    const session = await model.createSession();
    return await session.prefill(tokens);
  } finally {
    model.dispose();
  }
}

describe('the converted model', () => {
  const tokens = new Random(5).tokens(40, 128);

  it('computes the same without rotation if the rank of K is N: SVD', async () => {
    // With this factor no pair turns by a visible angle.
    const before = randomCheckpoint({ config: { rope_scaling: { rope_type: 'linear', factor: 1e9 } } });
    const random = new Random(9);
    for (let layer = 0; layer < 2; layer++) {
      const { data } = tensor(before, attention(layer, 'k_proj'));
      for (let head = 0; head < 2; head++) {
        const [left, right] = [random.normals(16 * 4, 0.5, 'f32'), random.normals(4 * 64, 0.125, 'f32')];
        for (let i = 0; i < 16 * 64; i++)
          data[head * 16 * 64 + i] = [0, 1, 2, 3].reduce(
            (sum, r) => sum + (left[Math.floor(i / 64) * 4 + r] as number) * (right[r * 64 + (i % 64)] as number),
            0,
          );
      }
    }
    const to = await converted(before, ['--key-head-dim', '4']);
    const expected = await logitsOf(join(to, '..', 'in'), tokens);
    expect(logitError(await logitsOf(to, tokens), expected)).toBeLessThan(modelTolerances.f32);
    const half = await converted(before, ['--key-head-dim', 'half']);
    expect(logitError(await logitsOf(half, tokens), expected)).toBeGreaterThan(100 * modelTolerances.f32);
  });

  it.each<[string, CheckpointSpec, string[], number]>([
    ['Sigma, F32', {}, ['8'], 1],
    ['Sigma, F16, a quarter, in 3 shards', { type: 'F16' }, ['4'], 3],
    [
      'Llama, BF16, Llama 3 scaling, pooled',
      {
        type: 'BF16',
        architecture: 'llama',
        heads: [8, 4, 4],
        ropeScaling: { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 64 },
      },
      ['8', '--key-heads', '2'],
      2,
    ],
  ])('%s: only K and the last matrix of Q change', async (_, spec, args, numShards) => {
    const before = randomCheckpoint(spec);
    const to = await converted(before, ['--key-head-dim', ...args], numShards);
    const after = readCheckpoint(to);
    const size = Number(args[0]);
    expect(after.config).toMatchObject({
      model_type: 'sigma',
      head_dim: 16,
      key_head_dim: size,
      key_lift: { kind: 'linear', position: 'after_rope' },
      num_key_heads: 2,
    });
    const last = spec.architecture === 'llama' ? 'q_proj' : 'q_down_proj';
    const changed = new RegExp(`self_attn\\.(k_proj|k_lift_proj|${last})\\.weight$`);
    const names = [...after.tensors.keys()].filter((name) => !/k_lift_proj/.test(name));
    expect(names.sort()).toEqual([...before.tensors.keys()].sort());
    for (const name of names) if (!changed.test(name)) expect(tensor(after, name)).toEqual(tensor(before, name));
    const step = 16 / size;
    for (let layer = 0; layer < 2; layer++) {
      expect(tensor(after, attention(layer, 'k_proj')).shape).toEqual([2 * size, 64]);
      const lift = tensor(after, attention(layer, 'k_lift_proj'));
      expect(lift.shape).toEqual([16, size]);
      lift.data.forEach((value, i) => {
        expect(value).toBe(Math.floor(i / size) === (i % size) * step ? 1 : 0);
      });
      // Rows of Q that the lift does not read keep their bits. The others are new.
      const [old, made] = [tensor(before, attention(layer, last)), tensor(after, attention(layer, last))];
      const columns = old.shape[1] as number;
      for (let row = 0; row < (old.shape[0] as number); row++) {
        const rowOf = ({ data }: CheckpointTensor) => data.subarray(row * columns, (row + 1) * columns);
        if (row % step === 0) expect(rowOf(made)).not.toEqual(rowOf(old));
        else expect(rowOf(made)).toEqual(rowOf(old));
      }
    }
    const [expected] = modelLogits(after, tokens) as [Float64Array];
    const type = (spec.type ?? 'F32').toLowerCase() as 'f32' | 'f16' | 'bf16';
    expect(logitError(await logitsOf(to, tokens), expected)).toBeLessThanOrEqual(modelTolerances[type]);
  });

  it('loses less than half as much as half of the dimensions, on pages that it was not trained on', async () => {
    const pages = readFileSync(join(projectRoot, 'bench', 'data', 'tldr-heldout.txt'), 'utf8').split(/\n{2,}/);
    const loss = async (directory: string): Promise<number> => {
      const model = await Model.load(directory, { device: 'cpu', dtype: 'f32' });
      try {
        const session = await model.createSession();
        let [sum, count] = [0, 0];
        for (const page of pages.slice(0, 6)) {
          const text = [
            4094,
            ...((await model.tokenizer?.encodeAsync(`${page}\n`, { addSpecialTokens: false })) ?? []),
          ];
          await session.truncate(0);
          for (let i = 0; i + 1 < text.length; i++) {
            const logits = await session.decode(text[i] as number);
            const max = Math.max(...logits);
            const total = logits.reduce((all, logit) => all + Math.exp(logit - max), 0);
            sum += max + Math.log(total) - (logits[text[i + 1] as number] as number);
            count++;
          }
        }
        return sum / count;
      } finally {
        model.dispose();
      }
    };
    const parent = directories.make();
    const make = async (size: string) => {
      const to = join(parent, size);
      expect((await runNode([builtCli, 'convert', tldrDirectory, to, '--key-head-dim', size])).status).toBe(0);
      return to;
    };
    const full = await loss(tldrDirectory);
    const [half, factored] = [await loss(await make('half')), await loss(await make('16'))];
    expect(half - full).toBeGreaterThan(0.2);
    expect(factored - full).toBeLessThan((half - full) / 2);
  }, 600_000);
});

describe('rejects and writes nothing', () => {
  const yarn = { rope_type: 'yarn', factor: 4 };
  it.each<[string, Checkpoint, string, string, RegExp]>([
    ['an odd size', randomCheckpoint({}), '1', 'ERR_INVALID_ARGUMENT', /is 1; .* even divisor .* 16/],
    ['a size that is no divisor', randomCheckpoint({}), '6', 'ERR_INVALID_ARGUMENT', /is 6; .* divisor/],
    ['the size that K has', randomCheckpoint({}), '16', 'ERR_INVALID_ARGUMENT', /is 16; .* below/],
    ['size 0', randomCheckpoint({}), '0', 'ERR_INVALID_ARGUMENT', /is 0/],
    ['a word', randomCheckpoint({}), '8.0', 'ERR_INVALID_ARGUMENT', /'8\.0'/],
    [
      'a model with a lift',
      randomCheckpoint({ keyHeadDim: 8, keyLift: { kind: 'linear', position: 'after_rope' } }),
      '4',
      'ERR_INVALID_ARGUMENT',
      /lift already/,
    ],
    ['YaRN, half', randomCheckpoint({ config: { rope_scaling: yarn } }), 'half', 'ERR_UNSUPPORTED_MODEL', /'yarn'/],
    ['YaRN', randomCheckpoint({ config: { rope_scaling: yarn } }), '8', 'ERR_UNSUPPORTED_MODEL', /"yarn"|'yarn'/],
    [
      'RoPE of a part',
      randomCheckpoint({ architecture: 'llama', heads: [4, 2, 2], config: { partial_rotary_factor: 0.5 } }),
      '8',
      'ERR_UNSUPPORTED_MODEL',
      /part of the head/,
    ],
    [
      'RoPE for each layer type',
      randomCheckpoint({ config: { rope_parameters: { full_attention: { rope_theta: 1e4 } } } }),
      '8',
      'ERR_UNSUPPORTED_MODEL',
      /full_attention/,
    ],
    [
      'no rope_theta',
      randomCheckpoint({ config: { rope_theta: undefined } }),
      '8',
      'ERR_INVALID_CHECKPOINT',
      /rope_theta/,
    ],
    [
      'a RoPE factor of 0',
      randomCheckpoint({ config: { rope_scaling: { type: 'linear', factor: 0 } } }),
      '8',
      'ERR_INVALID_CHECKPOINT',
      /factor is 0/,
    ],
  ])('%s', async (_, checkpoint, size, code, message) => {
    const parent = directories.make();
    writeCheckpoint(join(parent, 'in'), checkpoint);
    const error = await errorOf(() => convert(join(parent, 'in'), join(parent, 'out'), { keyHeadDim: size }));
    expect([error.code, error.message]).toEqual([code, expect.stringMatching(message)]);
    expect(readdirSync(parent)).toEqual(['in']);
  });

  it.each<[string, (checkpoint: Checkpoint) => void, string, RegExp]>([
    [
      'a weight that is not finite',
      (checkpoint) => {
        tensor(checkpoint, attention(1, 'q_down_proj')).data[5] = Number.NaN;
      },
      'ERR_INVALID_CHECKPOINT',
      /layer 1 .* not finite/,
    ],
    [
      'no norm',
      ({ tensors }) => {
        tensors.delete('model.layers.1.input_layernorm.weight');
      },
      'ERR_INVALID_CHECKPOINT',
      /'model\.layers\.1\.input_layernorm\.weight' is missing/,
    ],
    [
      'Q of another shape',
      (checkpoint) => {
        tensor(checkpoint, attention(0, 'q_down_proj')).shape = [32, 96];
      },
      'ERR_INVALID_CHECKPOINT',
      /q_down_proj\.weight' has shape \[32, 96\]; config\.json requires \[64, \*\]/,
    ],
  ])('%s', async (_, damage, code, message) => {
    const parent = directories.make();
    const checkpoint = randomCheckpoint({});
    damage(checkpoint);
    writeCheckpoint(join(parent, 'in'), checkpoint);
    const error = await errorOf(() => convert(join(parent, 'in'), join(parent, 'out'), { keyHeadDim: '8' }));
    expect([error.code, error.message]).toEqual([code, expect.stringMatching(message)]);
    expect(readdirSync(parent)).toEqual(['in']);
  });

  it('a weight of another type', async () => {
    const parent = directories.make();
    const from = join(parent, 'in');
    writeCheckpoint(from, randomCheckpoint({}));
    const path = join(from, 'model.safetensors');
    const file = readFileSync(path, 'latin1');
    const name = '"model.layers.0.input_layernorm.weight":{"dtype":"F32"';
    expect(file).toContain(name);
    writeFileSync(path, file.replace(name, name.replace('F32', 'I32')), 'latin1');
    const error = await errorOf(() => convert(from, join(parent, 'out'), { keyHeadDim: '8' }));
    expect([error.code, error.message]).toEqual([
      'ERR_UNSUPPORTED_MODEL',
      expect.stringMatching(/input_layernorm\.weight' has dtype I32/),
    ]);
  });
});
