// A model whose layers all have a window releases the pages before it, and computes them again if
// truncate needs them.

import { join } from 'node:path';
import { Model } from '../../lib/index';
import { architecturesDirectory, writeArchitecture } from '../support/architectures';
import { temporaryDirectories } from '../support/checkpoints';
import { firstBitDifference, logitError, modelTolerances } from '../support/compare';
import { onEveryDevice } from '../support/devices';

const window = 40;
const pageTokens = 64;
const tokens = Array.from({ length: 500 }, (_, i) => (i * 29 + 7 + (i % 11)) % 64);

const directories = temporaryDirectories();
const directory = writeArchitecture(directories.make(), 'mistral', {
  sliding_window: window,
  max_position_embeddings: 1024,
});
afterAll(() => directories.cleanUp());

onEveryDevice((device) => {
  const load = (options = {}) => Model.load(directory, { device: device(), dtype: 'f32', ...options });
  const close = (a: Float32Array, b: Float32Array) => expect(logitError(a, b)).toBeLessThanOrEqual(modelTolerances.f32);

  /** The logits after the first `count` tokens, of a session that never releases what it reads. */
  async function expected(model: Model, count: number): Promise<Float32Array> {
    const session = await model.createSession();
    const logits = await session.prefill(tokens.slice(0, count));
    session.dispose();
    return logits;
  }

  it('holds the pages of two windows, whatever the length', async () => {
    const model = await load();
    const session = await model.createSession();
    let most = 0;
    let logits: Float32Array = new Float32Array();
    for (const [i, token] of tokens.entries()) {
      logits = await session.decode(token);
      most = Math.max(most, model.kvCache.pages);
      if (i === 63 || i === 64) expect(model.kvCache.pages).toBe(i - 62);
    }
    // A page can hold the first row of the window and another page its last row.
    expect(most).toBe(Math.ceil((2 * window - 1) / pageTokens) + 1);
    expect(session.kvCacheBytes.k).toBe(2 * pageTokens * 2 * 2 * 8 * 4); // layers, heads, head size, f32
    close(logits, await expected(model, tokens.length));
    session.dispose();
    await (await model.createSession()).truncate(0); // after the dispose
    expect(model.kvCache.pages).toBe(0);
    model.dispose();
  });

  it.each([0, 1 << 20])('truncates below what it holds, with prefixCacheBytes %s', async (prefixCacheBytes) => {
    const model = await load({ prefixCacheBytes });
    const session = await model.createSession();
    for (let i = 0; i < 400; i += 50) await session.prefill(tokens.slice(i, i + 50));
    const fork = await session.fork();
    await session.truncate(380);
    close(await session.decode(tokens[380] as number), await expected(model, 381));
    await session.truncate(130);
    expect(session.kvLen).toBe(130);
    close(await session.prefill(tokens.slice(130, 300)), await expected(model, 300));
    await session.truncate(10);
    close(await session.decode(tokens[10] as number), await expected(model, 11));
    close(await fork.decode(tokens[400] as number), await expected(model, 401));
    await fork.truncate(0);
    close(await fork.prefill(tokens.slice(0, 90)), await expected(model, 90));
    model.dispose();
  });

  it('generates more tokens than kvCacheBytes holds', async () => {
    const probe = await load();
    const one = await probe.createSession();
    await one.decode(1);
    const kvCacheBytes = 3 * probe.kvCache.bytes;
    probe.dispose();
    const model = await load({ kvCacheBytes });
    const wide = await load();
    const options = { maxTokens: 400, temperature: 0 };
    const { tokens: few } = await model.generate(tokens.slice(0, 20), options).result;
    const { tokens: many } = await wide.generate(tokens.slice(0, 20), options).result;
    expect(few).toHaveLength(400);
    expect(few).toEqual(many);
    expect(firstBitDifference(await expected(wide, 20), await expected(model, 20))).toBe(-1);
    model.dispose();
    wide.dispose();
  });

  it('holds no page that the prefix cache has and no window reaches', async () => {
    const pageBytes = 2 * 2 * 2 * 8 * 4 * pageTokens; // K and V, layers, heads, head size, f32
    const model = await load({ kvCacheBytes: 7 * pageBytes, prefixCacheBytes: 6 * pageBytes });
    const first = await model.createSession();
    for (let i = 0; i < 6; i++) await first.prefill(tokens.slice(i * pageTokens, (i + 1) * pageTokens));
    first.dispose();
    expect(model.kvCache.prefixPages).toBe(6);
    const session = await model.createSession();
    const logits = await session.prefill(tokens);
    model.dispose();
    const other = await load();
    close(logits, await expected(other, tokens.length));
    other.dispose();
  });

  it('releases no page if one layer has no window', async () => {
    const model = await Model.load(join(architecturesDirectory, 'ministral'), { device: device(), dtype: 'f32' });
    const session = await model.createSession({ maxKvLen: 400 });
    await session.prefill(tokens.slice(0, 400));
    expect(model.kvCache.pages).toBe(Math.ceil(400 / pageTokens));
    model.dispose();
  });
});
