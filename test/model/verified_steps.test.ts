// Steps that verify proposed tokens: they draw what decode steps draw, and leave the session as
// decode steps do, whatever was proposed.

import type { NativeSampling } from '../../lib/addon';
import { Model, type ModelOptions, type Session, type SessionOptions } from '../../lib/index';
import { native } from '../../lib/internal';
import { variantFields, writeArchitecture } from '../support/architectures';
import { type CheckpointSpec, randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { firstBitDifference, logitError, modelTolerances } from '../support/compare';
import { onEveryDevice, reduced } from '../support/devices';
import { type FloatType, Random } from '../support/numbers';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const greedy: NativeSampling = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 1n };
const drawn: NativeSampling = { ...greedy, temperature: 1, repetitionPenalty: 1.3, seed: 7n };

const random = (spec: CheckpointSpec) => () => {
  const directory = directories.make();
  writeCheckpoint(directory, randomCheckpoint({ heads: [4, 1, 2], tied: false, ...spec }));
  return directory;
};
const written = (folder: string, changes: Record<string, unknown>) => () =>
  writeArchitecture(directories.make(), folder, changes);
const lift = { headDim: 32, keyHeadDim: 16 };

interface Case {
  name: string;
  directory: () => string;
  options?: SessionOptions;
  /** Default: in f32. */
  load?: ModelOptions;
  /** Left out of reduced runs. */
  isMore?: boolean;
  /** Fewer tokens than proposed are verified where the frequencies of RoPE change. */
  changesRope?: boolean;
}

const cases: Case[] = [
  { name: 'f32', directory: random({}) },
  { name: 'bf16', directory: random({ type: 'BF16' }), load: {} },
  { name: 'f16 with i8 weights', directory: random({ type: 'F16' }), load: { weightType: 'i8' }, isMore: true },
  { name: 'bf16 with i4 weights', directory: random({ type: 'BF16' }), load: { weightType: 'i4' } },
  { name: 'an i8 and f8e4m3 cache', directory: random({}), options: { kType: 'i8', vType: 'f8e4m3' } },
  { name: 'selective V', directory: random({}), options: { selectiveV: { topK: 3 } } },
  { name: 'a window whose pages are released', directory: written('mistral', { sliding_window: 40 }) },
  { name: 'LongRoPE', directory: written('phi3', variantFields('phi3', 'longrope')), changesRope: true },
  { name: 'dynamic RoPE', directory: written('llama-rope', variantFields('llama-rope', 'dynamic')), changesRope: true },
  { name: 'latent attention', directory: written('youtu', {}) },
  { name: 'differential attention', directory: written('diffllama', {}), isMore: true },
  {
    name: 'lifted keys',
    directory: random({
      ...lift,
      keyLift: { kind: 'swiglu', intermediate_size: 24, position: 'after_rope' },
    }),
  },
  {
    name: 'a lift that Q absorbs',
    isMore: true,
    directory: random({ ...lift, keyLift: { kind: 'linear', position: 'after_rope' } }),
  },
];

onEveryDevice((device) => {
  const onCpu = () => device().info.kind === 'cpu';

  const item = (session: Session, tokens: number[], sampling: NativeSampling, draw: number) => ({
    session: session[native],
    tokens: Int32Array.from(tokens),
    chunks: 'next' as const,
    sampling,
    draw,
    continues: true,
  });

  async function decode(session: Session, token: number, sampling: NativeSampling, draw: number): Promise<number> {
    const [result] = await session.model[native].step({ items: [item(session, [token], sampling, draw)] });
    if (result?.error !== undefined) throw result.error;
    return result?.token as number;
  }

  async function verify(session: Session, tokens: number[], sampling: NativeSampling, draw: number): Promise<number[]> {
    const items = [{ ...item(session, tokens, sampling, draw), verifies: true }];
    const [result] = await session.model[native].step({ items });
    if (result?.error !== undefined) throw result.error;
    expect(result).toEqual({ consumed: result?.drawn?.length, drawn: result?.drawn });
    return result?.drawn as number[];
  }

  const sameLogits = (a: Float32Array, b: Float32Array, type: FloatType) => {
    if (onCpu()) expect(firstBitDifference(a, b)).toBe(-1);
    else expect(logitError(a, Float64Array.from(b))).toBeLessThanOrEqual(modelTolerances[type]);
  };

  describe.each(cases.filter(({ isMore }) => !(isMore && reduced)))(
    '$name',
    ({ directory, options, load = { dtype: 'f32' }, changesRope }) => {
      const samplings: [string, NativeSampling][] = [
        ['drawn with a repetition penalty', drawn],
        ['greedy', greedy],
      ];
      it.each(samplings.slice(0, reduced ? 1 : 2))('draws as decode steps do: %s', async (_, sampling) => {
        const model = await Model.load(directory(), { device: device(), prefixCacheBytes: 1 << 20, ...load });
        const plain = await model.createSession({ ...options, maxKvLen: 200 });
        // Crosses the frequencies' length in the first steps (24 or 32), or a page of 64 tokens.
        await plain.prefill(new Random(3).tokens(changesRope ? 20 : 58, 64));
        const session = await plain.fork();
        const count = onCpu() ? 80 : reduced ? 8 : 20;
        const expected = [5];
        while (expected.length <= count) {
          expected.push(await decode(plain, expected.at(-1) as number, sampling, expected.length - 1));
        }
        const { kvLen } = session;
        const sizes = [3, 2, 16, 1, 7];
        const numFound: number[] = [];
        for (let step = 0, done = 0; done < count; step++) {
          const size = Math.min(sizes[step % sizes.length] as number, count - done);
          const tokens = expected.slice(done, done + size);
          const wrong = step % 3 === 1 ? size : 1 + ((step * 5) % size);
          if (wrong < size) tokens[wrong] = ((tokens[wrong] as number) + 1) % 64;
          const found = await verify(session, tokens, sampling, done);
          expect(found).toEqual(expected.slice(done + 1, done + 1 + found.length));
          numFound.push(found.length);
          if (changesRope) expect(found.length).toBeLessThanOrEqual(Math.min(wrong, size));
          else expect(found.length).toBe(Math.min(wrong, size));
          done += found.length;
          expect(session.kvLen).toBe(kvLen + done);
        }
        expect(Math.max(...numFound)).toBeGreaterThan(1);
        expect(session.kvCacheBytes).toEqual(plain.kvCacheBytes);
        expect(await session[native].tokens()).toEqual(await plain[native].tokens());
        sameLogits(await session.decode(9), await plain.decode(9), model.dtype as FloatType);
        model.dispose();
      });
    },
  );

  describe('on a small model', () => {
    let model: Model;
    beforeAll(async () => {
      model = await Model.load(random({})(), { device: device() });
    });
    afterAll(() => model.dispose());

    async function started(maxKvLen?: number): Promise<Session> {
      const session = await model.createSession({ maxKvLen });
      await session.prefill([1, 2, 3]);
      return session;
    }
    async function expectedAfter(session: Session, token: number, sampling: NativeSampling, count: number) {
      const copy = await session.fork();
      const tokens = [token];
      for (let draw = 0; draw < count; draw++) tokens.push(await decode(copy, tokens[draw] as number, sampling, draw));
      copy.dispose();
      return tokens;
    }

    it('shares passes of up to 16 rows with decode steps and prompts', async () => {
      const sizes = reduced ? [5, 1, 11] : [5, 1, 9, 1, 7, 3, 16];
      const sessions = await Promise.all(sizes.map(() => started()));
      const expected = await Promise.all(
        sessions.map((session, i) => expectedAfter(session, i, i % 2 ? greedy : drawn, 16)),
      );
      const prompt = await started();
      const results = await model[native].step({
        items: [
          ...sizes.map((size, i) => ({
            ...item(sessions[i] as Session, expected[i]?.slice(0, size) as number[], i % 2 ? greedy : drawn, 0),
            verifies: size > 1,
          })),
          item(prompt, [4, 5, 6], greedy, 0),
        ],
      });
      sizes.forEach((size, i) => {
        const { error, token, drawn } = results[i] ?? {};
        expect(error).toBe(undefined);
        expect(drawn ?? [token]).toEqual(expected[i]?.slice(1, size + 1));
        expect(sessions[i]?.kvLen).toBe(3 + size);
      });
      expect(results.at(-1)).toMatchObject({ consumed: 3, token: expect.any(Number) });
      for (const session of [...sessions, prompt]) session.dispose();
    });

    const small = async (numPages: number) => {
      const session = await started();
      const { k, v } = session.kvCacheBytes;
      session.dispose();
      return Model.load(random({})(), { device: device(), kvCacheBytes: numPages * (k + v) });
    };

    it('verifies the tokens that its page has room for if the cache has no page for more', async () => {
      const model = await small(1);
      const session = await model.createSession();
      await session.prefill(new Random(4).tokens(61, 64));
      const expected = [7];
      for (let i = 0; i < 3; i++) expected.push(await decode(session, expected[i] as number, greedy, i));
      await session.truncate(61);
      expect(await verify(session, [...expected, 8, 9], greedy, 0)).toEqual(expected.slice(1));
      expect(session.kvLen).toBe(64);
      await expect(verify(session, [expected[3] as number, 8], greedy, 3)).rejects.toMatchObject({
        code: 'ERR_KV_CACHE_FULL',
      });
      expect(session.kvLen).toBe(64);
      model.dispose();
    });

    it('leaves the last page of the cache to a decode step', async () => {
      const model = await small(3);
      const [a, b] = [await model.createSession(), await model.createSession()];
      await a.prefill(new Random(4).tokens(62, 64));
      await b.prefill(new Random(5).tokens(64, 64));
      const items = [{ ...item(a, [1, 2, 3, 4], greedy, 0), verifies: true }, item(b, [1], greedy, 0)];
      const results = await model[native].step({ items });
      expect(results.map(({ error }) => error)).toEqual([undefined, undefined]);
      expect(b.kvLen).toBe(65);
      model.dispose();
    });

    it('rejects what cannot be verified, and leaves the session unchanged', async () => {
      const session = await started(10);
      const code = (tokens: number[], changes = {}) =>
        model[native]
          .step({ items: [{ ...item(session, tokens, greedy, 0), verifies: true, ...changes }] })
          .then(([result]) => (result?.error as { code?: string } | undefined)?.code);
      expect(await code(Array(17).fill(1))).toBe('ERR_INVALID_ARGUMENT');
      expect(await code([1, 2], { sampling: undefined })).toBe('ERR_INVALID_ARGUMENT');
      expect(await code([1, 2], { logits: new Float32Array(model.config.vocabSize) })).toBe('ERR_INVALID_ARGUMENT');
      expect(await code([1, 2], { allowed: new Uint32Array(4).fill(0xffffffff) })).toBe('ERR_INVALID_ARGUMENT');
      const biases = { tokens: Int32Array.of(1), values: Float32Array.of(1) };
      expect(await code([1, 2], { biases })).toBe('ERR_INVALID_ARGUMENT');
      expect(await code([1, 2], { rowBiases: [biases] })).toBe('ERR_INVALID_ARGUMENT');
      expect(await code([1, 1000])).toBe('ERR_INVALID_ARGUMENT');
      expect(await code(Array(8).fill(1))).toBe('ERR_KV_CACHE_FULL');
      expect(session.kvLen).toBe(3);
      session.dispose();
    });
  });
});
