// Models whose matrices are quantized as they are loaded: each matrix is the right one, and batches do
// not change results.
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { kernels, Model, type ModelOptions } from '../../lib/index';
import { architecturesDirectory } from '../support/architectures';
import { randomCheckpoint, readCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { firstBitDifference, logitError, modelTolerances } from '../support/compare';
import { errorOf, long, onEveryDevice, reduced, withTensors } from '../support/devices';
import { tldrDirectory } from '../support/fixtures';
import { Random } from '../support/numbers';
import { dequantizeWeight } from '../support/reference';
import type { Checkpoint } from '../support/reference_model';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

onEveryDevice((opened) => {
  async function dequantized(data: Float32Array, shape: [number, number], type: 'i8' | 'i4'): Promise<Float32Array> {
    return withTensors(opened(), async (tensors) => {
      const { values, scales } = await kernels.quantizeWeight({ weight: tensors.make('f32', shape, data), type });
      tensors.keep(values);
      tensors.keep(scales);
      const length = values.shape.reduce((product, size) => product * size, 1);
      const integers = type === 'i8' ? new Int8Array(length) : new Int32Array(length);
      await values.readInto(integers);
      const [rows, columns] = shape;
      const packed = { values: integers, scales: await scales.read(), rows, columns, groupSize: 32 };
      return Float32Array.from(dequantizeWeight(packed));
    });
  }

  /** The checkpoint with the values of its quantized matrices, and an lm_head of its own. */
  async function withQuantizedValues(checkpoint: Checkpoint, type: 'i8' | 'i4'): Promise<Checkpoint> {
    const embed = checkpoint.tensors.get('model.embed_tokens.weight');
    const tensors = new Map(checkpoint.tensors);
    if (!tensors.has('lm_head.weight')) tensors.set('lm_head.weight', embed as NonNullable<typeof embed>);
    for (const [name, { shape, data }] of tensors) {
      if (shape.length < 2 || /embed_tokens|kv_b_proj|k_lift/.test(name)) continue;
      tensors.set(name, { type: 'F32', shape, data: await dequantized(data, shape as [number, number], type) });
    }
    return { config: { ...checkpoint.config, tie_word_embeddings: false }, tensors };
  }

  async function logitsOf(checkpoint: Checkpoint, options: ModelOptions, tokens: number[]): Promise<Float32Array> {
    const directory = directories.make();
    writeCheckpoint(directory, checkpoint);
    const model = await Model.load(directory, { device: opened(), dtype: 'f32', ...options });
    const session = await model.createSession();
    const logits = await session.prefill(tokens);
    model.dispose();
    return logits;
  }

  // W_q is not folded into these, because that would take more bytes.
  const notFolded: Parameters<typeof randomCheckpoint>[0] = { heads: [2, 1, 2], augQSize: 96 };
  const lifts = [
    { kind: 'linear', position: 'after_rope' },
    { kind: 'swiglu', position: 'before_rope', intermediate_size: 24 },
  ] as const;
  const checkpoints: [string, () => Checkpoint][] = [
    ...readdirSync(architecturesDirectory).map(
      (name) => [name, () => readCheckpoint(join(architecturesDirectory, name))] as [string, () => Checkpoint],
    ),
    ['sigma', () => randomCheckpoint(notFolded)],
    ['sigma, untied, hidden 80', () => randomCheckpoint({ ...notFolded, tied: false, hiddenSize: 80 })],
    ...lifts.map(
      (keyLift) =>
        [`sigma, K lift ${keyLift.kind}`, () => randomCheckpoint({ ...notFolded, keyHeadDim: 8, keyLift })] as [
          string,
          () => Checkpoint,
        ],
    ),
  ];

  it.each(checkpoints)('%s: has the values that the quantizer gives to each matrix', async (_, make) => {
    const checkpoint = make();
    const tokens = new Random(3).tokens(20, 60);
    for (const type of ['i8', 'i4'] as const) {
      const expected = await logitsOf(await withQuantizedValues(checkpoint, type), {}, tokens);
      const actual = await logitsOf(checkpoint, { weightType: type }, tokens);
      expect(logitError(actual, expected)).toBeLessThan(modelTolerances.f32);
    }
  });

  it('quantizes the product if W_q is folded into augmented Q', async () => {
    const checkpoint = randomCheckpoint({ augQSize: 16, hiddenSize: 64, heads: [8, 2, 4], headDim: 32 });
    const tokens = new Random(3).tokens(20, 60);
    const exact = await logitsOf(checkpoint, {}, tokens);
    for (const [weightType, limit] of [
      ['i8', 0.02],
      ['i4', 0.3],
    ] as const) {
      const error = logitError(await logitsOf(checkpoint, { weightType }, tokens), exact);
      expect(error).toBeLessThan(limit);
      expect(error).toBeGreaterThan(limit / 1000);
    }
  });

  long('counts the bytes, and quantizes the output matrix only if wanted', async () => {
    type Parts = Model['weightBytesByPart'];
    const sizes = new Map<string, number>();
    const byPart = new Map<string, Parts>();
    for (const [name, options] of Object.entries({
      none: {},
      i8: { weightType: 'i8' },
      i4: { weightType: 'i4' },
      i4of128: { weightType: 'i4', weightGroupSize: 128 },
      wideHead: { weightType: 'i4', quantizeLmHead: false },
    } satisfies Record<string, ModelOptions>)) {
      const model = await Model.load(tldrDirectory, { device: opened(), ...options });
      expect([model.dtype, model.weightType]).toEqual(['bf16', 'weightType' in options ? options.weightType : 'bf16']);
      sizes.set(name, model.weightBytes);
      byPart.set(name, model.weightBytesByPart);
      model.dispose();
    }
    const size = (name: string) => sizes.get(name) as number;
    const head = 4096 * 256;
    const [parts, quantized] = ['none', 'wideHead'].map((name) => byPart.get(name)) as [Parts, Parts];
    expect(parts).toMatchObject({ embedding: 2 * head, output: 0 });
    expect(quantized).toMatchObject({ embedding: 2 * head, output: 0, other: parts.other });
    for (const part of ['attention', 'augmentedQ', 'ffn'] as const) {
      expect(quantized[part] / parts[part]).toBeCloseTo((0.5 + 2 / 32) / 2, 2);
    }
    const matrices = (size('none') - 2 * head) / 2; // about: the norms are few
    const near = (name: string, bytes: number) => expect(Math.abs(size(name) / bytes - 1)).toBeLessThan(0.01);
    near('i8', 2 * head + (head + matrices) * (1 + 2 / 32));
    near('i4', 2 * head + (head + matrices) * (0.5 + 2 / 32));
    near('i4of128', 2 * head + (head + matrices) * (0.5 + 2 / 128));
    near('wideHead', 2 * head + matrices * (0.5 + 2 / 32));
  });

  describe.each(['i8', 'i4'] as const)('%s', (type) => {
    (type === 'i8' ? long : it)('each generation of a batch returns what it returns by itself', async () => {
      const model = await Model.load(tldrDirectory, { device: opened(), weightType: type });
      const prompts = ['tar', 'ls', 'git', 'docker', 'curl', 'find'].slice(0, reduced ? 3 : 6);
      const run = (prompt: string) =>
        model
          .generate(`# ${prompt}\n`, { maxTokens: reduced ? 6 : 12, temperature: 0 })
          .result.then(({ tokens }) => tokens);
      const alone: number[][] = [];
      for (const prompt of prompts) alone.push(await run(prompt));
      expect(await Promise.all(prompts.map(run))).toEqual(alone);
      model.dispose();
    });
  });

  long('loads the same weights each time, and draws random ones', async () => {
    const tokens = new Random(1).tokens(40, 4096);
    const twice: Float32Array[] = [];
    for (let i = 0; i < 2; i++) {
      const model = await Model.load(tldrDirectory, { device: opened(), weightType: 'i4' });
      twice.push(await (await model.createSession()).prefill(tokens));
      model.dispose();
    }
    expect(firstBitDifference(twice[0] as Float32Array, twice[1] as Float32Array)).toBe(-1);
    const { config } = randomCheckpoint();
    const drawn: Float32Array[] = [];
    for (const options of [{}, { weightType: 'i8' as const }]) {
      const model = await Model.random(config, { device: opened(), dtype: 'f32', ...options });
      drawn.push(await (await model.createSession()).prefill([1, 2, 3]));
      model.dispose();
    }
    const error = logitError(drawn[1] as Float32Array, drawn[0] as Float32Array);
    expect(error).toBeGreaterThan(0);
    expect(error).toBeLessThan(0.1);
  });

  it('rejects wrong options', async () => {
    const wrong: [object, string][] = [
      [{ weightType: 'i3' }, 'weightType'],
      [{ weightType: null }, 'weightType'],
      [{ weightType: 'i4', weightGroupSize: 16 }, 'weightGroupSize'],
      [{ weightType: 'i4', quantizeLmHead: 1 }, 'quantizeLmHead'],
      [{ weightGroupSize: 32 }, 'without weightType'],
      [{ quantizeLmHead: false }, 'without weightType'],
    ];
    for (const [options, text] of wrong) {
      const { code, message } = await errorOf(() => Model.load(tldrDirectory, { device: opened(), ...options }));
      expect([code, message]).toEqual(['ERR_INVALID_ARGUMENT', expect.stringContaining(text)]);
    }
  });
});
