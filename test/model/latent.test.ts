// Latent attention (MLA): one cached row for K and V of all heads.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Model } from '../../lib/index';
import { firstBitDifference, logitError } from '../support/compare';
import { errorOf, onEveryDevice } from '../support/devices';
import type { KvType } from '../support/numbers';

const directory = join(__dirname, 'architectures', 'youtu');
const { variants } = JSON.parse(readFileSync(join(directory, 'expected.json'), 'utf8'));
const { tokens } = variants[0].cases.at(-1) as { tokens: number[] };

onEveryDevice((device) => {
  let model: Model;
  beforeAll(async () => {
    model = await Model.load(directory, { device: device(), dtype: 'f32' });
  });
  afterAll(() => model.dispose());

  it('caches one row of rank + rope elements for each token and layer', async () => {
    expect(model.config).toMatchObject({ numKHeads: 1, numVHeads: 1, headDimK: 20, headDimVo: 20 });
    for (const [kType, bytes] of [
      ['f32', 80],
      ['bf16', 40],
      ['i8', 22],
    ] as const) {
      const session = await model.createSession({ kType, vType: kType });
      await session.prefill(tokens);
      const page = Math.ceil((64 * bytes) / 128) * 128;
      expect(session.kvCacheBytes).toEqual({ k: page * model.config.numLayers, v: 0 });
      session.dispose();
    }
  });

  it('rejects types of K and V that differ', async () => {
    const error = await errorOf(() => model.createSession({ kType: 'bf16', vType: 'f16' }));
    expect(error.code).toBe('ERR_INVALID_ARGUMENT');
    expect(error.message).toContain('vType');
    const session = await model.createSession({ kType: 'bf16' });
    session.dispose();
  });

  it.each<[KvType, number]>([
    ['f16', 2e-3],
    ['bf16', 2e-2],
    ['i8', 3e-2],
    ['f8e4m3', 0.15],
  ])('decodes with a cache of type %s', async (kType, tolerance) => {
    const logits: Float32Array[] = [];
    for (const type of ['f32', kType] as const) {
      const session = await model.createSession({ kType: type });
      await session.prefill(tokens.slice(0, -1));
      logits.push(await session.decode(tokens.at(-1) as number));
      session.dispose();
    }
    const error = logitError(logits[1] as Float32Array, logits[0] as Float32Array);
    expect(error).toBeLessThanOrEqual(tolerance);
    expect(error).toBeGreaterThan(0);
  });

  it('forks copy a shared page before they write to it', async () => {
    const session = await model.createSession();
    await session.prefill(tokens.slice(0, 10));
    const fork = await session.fork();
    await session.prefill(tokens.slice(20, 30));
    const logits = await fork.prefill(tokens.slice(10, 20));
    const alone = await model.createSession();
    await alone.prefill(tokens.slice(0, 10));
    expect(firstBitDifference(await alone.prefill(tokens.slice(10, 20)), logits)).toBe(-1);
    for (const one of [session, fork, alone]) one.dispose();
  });

  it('has selective V: with all keys it changes nothing, with fewer it does', async () => {
    const results: Float32Array[] = [];
    for (const topK of [0, 64, 3]) {
      const session = await model.createSession(topK > 0 ? { selectiveV: { topK } } : {});
      results.push(await session.prefill(tokens));
      session.dispose();
    }
    const [plain, all, few] = results as [Float32Array, Float32Array, Float32Array];
    expect(logitError(all, plain)).toBeLessThanOrEqual(1e-5);
    expect(logitError(few, plain)).toBeGreaterThan(1e-3);
  });
});
