// Model.embed, compared with the hidden states of the float64 model.

import { Model } from '../../lib/index';
import { writeArchitecture } from '../support/architectures';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { firstBitDifference, logitError, modelTolerances } from '../support/compare';
import { onEveryDevice, reduced } from '../support/devices';
import { tldrDirectory } from '../support/fixtures';
import { expectCode, expectMessage } from '../support/misuse';
import { modelStates } from '../support/reference_model';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const sequence = (length: number, first = 0) => Array.from({ length }, (_, i) => (first + i * i + 7 * i) % 120);
const length = (x: ArrayLike<number>) => Math.hypot(...Array.from(x));

onEveryDevice((device) => {
  // Untied, so that the states are not rows of the embedding.
  const checkpoint = randomCheckpoint({ vocabSize: 120, tied: false });
  let model: Model;
  beforeAll(async () => {
    const directory = directories.make();
    writeCheckpoint(directory, checkpoint);
    model = await Model.load(directory, { device: device(), prefixCacheBytes: 1 << 20 });
  });
  afterAll(() => model.dispose());

  const expected = (tokens: number[], pooling: 'last' | 'mean'): Float64Array => {
    const states = modelStates(checkpoint, tokens, { numLogits: pooling === 'last' ? 1 : tokens.length });
    const mean = (i: number) => states.reduce((sum, state) => sum + (state[i] as number), 0) / states.length;
    return Float64Array.from(states[0] as Float64Array, (_, i) => mean(i));
  };

  // 530 tokens are two chunks, unless a GPU has much memory.
  const lengths = reduced ? [1, 2, 20] : [1, 2, 17, 66, 530];
  it.each(['last', 'mean'] as const)('%s: pools the states after the final norm', async (pooling) => {
    const texts = lengths.map((size) => sequence(size, size));
    const raw = await model.embed(texts, { pooling, normalize: false });
    const unit = await model.embed(texts, { pooling });
    for (const [i, text] of texts.entries()) {
      const wanted = expected(text, pooling);
      const [embedding, direction] = [raw[i] as Float32Array, unit[i] as Float32Array];
      expect(embedding).toBeInstanceOf(Float32Array);
      expect(logitError(embedding, wanted)).toBeLessThan(modelTolerances.f32);
      expect(length(direction)).toBeCloseTo(1, 5);
      expect(
        logitError(
          direction,
          wanted.map((x) => x / length(wanted)),
        ),
      ).toBeLessThan(modelTolerances.f32);
    }
    await device().synchronize(); // frees the sessions
    expect(model.kvCache.pages).toBe(model.kvCache.prefixPages);
  });

  it('has the same bits whatever else is computed', async () => {
    const texts = [sequence(reduced ? 20 : 70), sequence(3, 4), sequence(1, 9), sequence(20)];
    const options = { pooling: 'mean' } as const;
    const together = await model.embed(texts, options);
    const busy = [model.generate([3], { maxTokens: 6 }).result, model.score(sequence(30))];
    const others = texts.map((text) => model.embed([text], options));
    for (const [i, other] of (await Promise.all(others)).entries()) {
      expect(firstBitDifference(other[0] as Float32Array, together[i] as Float32Array)).toBe(-1);
    }
    await Promise.all(busy);
    expect(await model.embed([])).toEqual([]);
  });

  it('leaves the scale of the logits out', async () => {
    const embeddings = [];
    for (const changes of [{}, { logits_scaling: 1 }]) {
      const directory = writeArchitecture(directories.make(), 'granite', changes);
      const granite = await Model.load(directory, { device: device(), dtype: 'f32' });
      embeddings.push(...(await granite.embed([[5, 60, 3, 22, 9]], { normalize: false })));
      granite.dispose();
    }
    const [scaled, plain] = embeddings as [Float32Array, Float32Array];
    expect(logitError(scaled, plain)).toBeLessThan(1e-6);
  });

  it('gives texts the tokens of a prompt', async () => {
    const text = await Model.load(tldrDirectory, { device: device() });
    const tokens = text.tokenizer?.encode('list files') as number[];
    const [a, b] = (await text.embed(['list files', tokens])) as [Float32Array, Float32Array];
    expect(a.length).toBe(text.config.hiddenSize);
    expect(firstBitDifference(a, b)).toBe(-1);
    text.dispose();
  });

  it('rejects wrong arguments', async () => {
    await expectMessage(() => model.embed('x' as never), 'texts must be an array of texts or of token arrays, not "x"');
    await expectMessage(() => model.embed([5 as never]), 'texts[0] must be a string or an array of tokens, not 5');
    await expectMessage(() => model.embed([[]]), 'texts[0] must be at least one token id, not an array of 0');
    const sparse: string[] = [];
    sparse[1] = 'x';
    await expectMessage(() => model.embed(sparse), 'texts[0] must be a string or an array of tokens, not undefined');
    await expectMessage(
      () => model.embed([[1], 'x']),
      'texts[1]: a text requires a tokenizer, and the model has no tokenizer.json: pass tokens',
    );
    await expectMessage(() => model.embed([[1], [120]]), 'texts[1][0] must be an integer from 0 to 119, not 120');
    await expectMessage(
      () => model.embed([[1]], { pooling: 'max' as never }),
      `pooling must be 'last' or 'mean', not "max"`,
    );
    await expectMessage(() => model.embed([[1]], { normalize: 1 as never }), 'normalize must be a boolean, not 1');
    await expectMessage(() => model.embed([[1]], null as never), 'options must be an object, not null');
    await expectCode(() => model.embed([[1]], { signal: AbortSignal.abort() }), 'ABORT_ERR');
  });

  it('rejects states that are not finite, and a model that is disposed', async () => {
    const broken = randomCheckpoint();
    (broken.tensors.get('model.norm.weight') as { data: Float32Array }).data[3] = Number.NaN;
    const directory = directories.make();
    writeCheckpoint(directory, broken);
    const other = await Model.load(directory, { device: device() });
    await expectCode(() => other.embed([[1, 2]]), 'ERR_UNSUPPORTED_MODEL', 'invalid hidden states with dtype f32');
    other.dispose();
    for (const texts of [[[1, 2]], []]) await expectCode(() => other.embed(texts), 'ERR_DISPOSED');
  });
});
