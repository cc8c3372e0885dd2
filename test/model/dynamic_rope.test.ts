// Dynamic RoPE: above max_position_embeddings (24 here) the frequencies depend on the length of the
// context. A prompt is computed with those of its whole length; tokens that follow one by one rotate
// only themselves, as in transformers.

import { Model } from '../../lib/index';
import { variantFields, writeArchitecture } from '../support/architectures';
import { temporaryDirectories } from '../support/checkpoints';
import { firstBitDifference, logitError, modelTolerances } from '../support/compare';
import { onEveryDevice } from '../support/devices';

const tokens = Array.from({ length: 200 }, (_, i) => (i * 29 + 7) % 64);

const directories = temporaryDirectories();
const directory = writeArchitecture(directories.make(), 'llama-rope', variantFields('llama-rope', 'dynamic'));
afterAll(() => directories.cleanUp());

onEveryDevice((device) => {
  const load = (options = {}) => Model.load(directory, { device: device(), dtype: 'f32', ...options });
  const close = (a: Float32Array, b: Float32Array) => expect(logitError(a, b)).toBeLessThanOrEqual(modelTolerances.f32);

  async function expected(model: Model, count: number): Promise<Float32Array> {
    const session = await model.createSession({ maxKvLen: 300 });
    const logits = await session.prefill(tokens.slice(0, count));
    session.dispose();
    return logits;
  }

  it('extends the context by its factor', async () => {
    const model = await load();
    expect(model.config.maxPositionEmbeddings).toBe(48);
    const session = await model.createSession();
    expect(session.maxKvLen).toBe(48);
    model.dispose();
  });

  it.each([0, 1 << 20])('prefills in pieces as in one, with prefixCacheBytes %s', async (prefixCacheBytes) => {
    const model = await load({ prefixCacheBytes });
    const session = await model.createSession({ maxKvLen: 300 });
    await session.prefill(tokens.slice(0, 20));
    close(await session.prefill(tokens.slice(20, 40)), await expected(model, 40));
    close(await session.prefill(tokens.slice(40, 190)), await expected(model, 190));
    // Down to another length, to the frequencies of a short context, and back.
    await session.truncate(100);
    close(await session.prefill(tokens.slice(100, 130)), await expected(model, 130));
    await session.truncate(10);
    close(await session.prefill(tokens.slice(10, 24)), await expected(model, 24));
    close(await session.prefill(tokens.slice(24, 150)), await expected(model, 150));
    await session.truncate(20);
    close(await session.decode(tokens[20] as number), await expected(model, 21));
    // The same prompt again, and a longer one that begins with it.
    close(await expected(model, 150), await expected(model, 150));
    close(await expected(model, 190), await session.truncate(0).then(() => session.prefill(tokens.slice(0, 190))));
    expect(logitError(await expected(model, 24), await expected(model, 25))).toBeGreaterThan(0.01);
    model.dispose();
  });

  it('decodes after truncate as after the shorter prompt', async () => {
    const model = await load();
    const session = await model.createSession({ maxKvLen: 300 });
    for (const kept of [150, 100, 24, 20]) {
      const other = await model.createSession({ maxKvLen: 300 });
      await other.prefill(tokens.slice(0, kept));
      await session.truncate(0);
      await session.prefill(tokens.slice(0, 190));
      await session.decode(3);
      await session.truncate(kept);
      for (const token of [4, 5]) close(await session.decode(token), await other.decode(token));
      other.dispose();
    }
    model.dispose();
  });

  it('keeps the keys if truncate removes only tokens that were decoded', async () => {
    const model = await load();
    const session = await model.createSession({ maxKvLen: 300 });
    await session.prefill(tokens.slice(0, 60));
    const first = await session.decode(3);
    await session.decode(4);
    await session.truncate(60);
    expect(firstBitDifference(await session.decode(3), first)).toBe(-1);
    model.dispose();
  });

  it('gives a sequence the same bits in a batch of other lengths', async () => {
    const model = await load();
    const prompts = [5, 20, 23, 24, 30, 37].map((count) => tokens.slice(0, count));
    const options = { maxTokens: 8, temperature: 0 };
    const alone: number[][] = [];
    for (const prompt of prompts) alone.push((await model.generate(prompt, options).result).tokens);
    const together = await Promise.all(prompts.map((prompt) => model.generate(prompt, options).result));
    expect(together.map((result) => result.tokens)).toEqual(alone);
    const session = await model.createSession();
    await session.prefill(tokens.slice(0, 24));
    const fork = await session.fork();
    expect(firstBitDifference(await fork.decode(3), await session.decode(3))).toBe(-1);
    model.dispose();
  });
});
