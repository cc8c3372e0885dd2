// LongRoPE: a session whose length crosses original_max_position_embeddings (32 here) has the
// results of a new session of that length.

import { Model } from '../../lib/index';
import { variantFields, writeArchitecture } from '../support/architectures';
import { temporaryDirectories } from '../support/checkpoints';
import { firstBitDifference, logitError, modelTolerances } from '../support/compare';
import { errorOf, onEveryDevice } from '../support/devices';

const tokens = Array.from({ length: 60 }, (_, i) => (i * 29 + 7) % 64);

const directories = temporaryDirectories();
const directory = writeArchitecture(directories.make(), 'phi3', variantFields('phi3', 'longrope'));
afterAll(() => directories.cleanUp());

onEveryDevice((device) => {
  const load = (options = {}) => Model.load(directory, { device: device(), dtype: 'f32', ...options });

  /** The logits of a new session after the first `count` tokens. */
  async function expected(model: Model, count: number): Promise<Float32Array> {
    const session = await model.createSession();
    const logits = await session.prefill(tokens.slice(0, count));
    session.dispose();
    return logits;
  }
  const close = (a: Float32Array, b: Float32Array) => expect(logitError(a, b)).toBeLessThanOrEqual(modelTolerances.f32);

  it.each([0, 1 << 20])('crosses the length up and down, prefixCacheBytes %s', async (prefixCacheBytes) => {
    const model = await load({ prefixCacheBytes });
    const session = await model.createSession();
    await session.prefill(tokens.slice(0, 31));
    close(await session.decode(tokens[31] as number), await expected(model, 32));
    close(await session.decode(tokens[32] as number), await expected(model, 33));
    close(await session.prefill(tokens.slice(33, 50)), await expected(model, 50));
    expect(session.kvLen).toBe(50);
    // Below the length, and back.
    await session.truncate(10);
    close(await session.prefill(tokens.slice(10, 30)), await expected(model, 30));
    const fork = await session.fork();
    close(await session.prefill(tokens.slice(30, 40)), await expected(model, 40));
    close(await fork.decode(tokens[30] as number), await expected(model, 31));
    // The frequencies do differ: keys of the short ones give other logits.
    expect(logitError(await expected(model, 32), await expected(model, 33))).toBeGreaterThan(0.01);
    model.dispose();
  });

  it('gives the same in a batch whose sequences are on both sides', async () => {
    const model = await load();
    const prompts = [28, 30, 32, 40, 5].map((count) => tokens.slice(0, count));
    const options = { maxTokens: 6, temperature: 0 };
    const alone: number[][] = [];
    for (const prompt of prompts) alone.push((await model.generate(prompt, options).result).tokens);
    const together = await Promise.all(prompts.map((prompt) => model.generate(prompt, options).result));
    expect(together.map((result) => result.tokens)).toEqual(alone);
    model.dispose();
  });

  it('keeps the session if there is no room for a second cache', async () => {
    const probe = await load();
    const one = await probe.createSession();
    await one.prefill(tokens.slice(0, 30));
    const kvCacheBytes = probe.kvCache.bytes;
    const wanted = await one.decode(tokens[30] as number);
    probe.dispose();

    const model = await load({ kvCacheBytes });
    const session = await model.createSession();
    await session.prefill(tokens.slice(0, 30));
    const error = await errorOf(() => session.prefill(tokens.slice(30, 40)));
    expect(error.code).toBe('ERR_KV_CACHE_FULL');
    expect(session.kvLen).toBe(30);
    expect(firstBitDifference(await session.decode(tokens[30] as number), wanted)).toBe(-1);
    model.dispose();
  });
});
