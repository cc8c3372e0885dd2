// Misuse of models and sessions returns a coded error and leaves the objects usable.

import { Model, type Session } from '../../lib/index';
import { native } from '../../lib/internal';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { firstBitDifference } from '../support/compare';
import { errorOf, onEveryDevice } from '../support/devices';
import { tldrDirectory } from '../support/fixtures';
import { type Anything, expectCode, invalid, show } from '../support/misuse';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

onEveryDevice((device) => {
  describe('models and sessions', () => {
    const checkpoint = randomCheckpoint({ maxPositionEmbeddings: 64 });
    let model: Model;
    let session: Session;
    beforeAll(async () => {
      const directory = directories.make();
      writeCheckpoint(directory, checkpoint);
      model = await Model.load(directory, { device: device() });
    });
    beforeEach(async () => {
      session = await model.createSession({ maxKvLen: 20 });
    });
    afterEach(() => session.dispose());
    afterAll(() => model.dispose());

    it.each([5, null, undefined, {}, [], true, ''].map((value) => [show(value), value]))(
      'Model.load rejects %s as a directory',
      async (_, value) => {
        await expectCode(() => Model.load(value as Anything), invalid);
      },
    );

    it.each(
      [
        { dtype: 'f64' },
        { dtype: 'i32' },
        { dtype: 5 },
        { dtype: null },
        { device: null },
        { onProgress: null },
        { signal: null },
        { device: 'tpu' },
        { device: 5 },
        { device: {} },
        { onProgress: 5 },
        { signal: {} },
        { signal: 5 },
      ].map((options) => [show(options), options]),
    )('Model.load rejects %s', async (_, options) => {
      const absent = 'device' in options && options.device === 'tpu';
      await expectCode(
        () => Model.load(tldrDirectory, options as Anything),
        absent ? 'ERR_DEVICE_UNAVAILABLE' : invalid,
      );
    });

    it.each<[unknown, string]>([
      [5, invalid],
      [null, invalid],
      [[], invalid],
      ['sigma-7b', invalid],
      [{ model_type: 'gpt2' }, 'ERR_UNSUPPORTED_MODEL'],
      [{}, 'ERR_UNSUPPORTED_MODEL'],
      [{ ...checkpoint.config, num_key_heads: 3 }, invalid],
      [{ ...checkpoint.config, hidden_size: -1 }, invalid],
    ])('Model.random rejects %j', async (config, code) => {
      await expectCode(() => Model.random(config as Anything, { device: device() }), code);
    });

    it.each([{ dtype: null }, { seed: null }, { seed: -1 }, { device: null }])(
      'Model.random rejects the options %j',
      async (options) => {
        await expectCode(() => Model.random(checkpoint.config, { device: device(), ...options } as Anything), invalid);
      },
    );

    it.each(
      [
        { maxKvLen: 0 },
        { maxKvLen: -1 },
        { maxKvLen: 1.5 },
        { maxKvLen: Number.NaN },
        { maxKvLen: '64' },
        { maxKvLen: 2 ** 53 },
        { kType: 'i32' },
        { kType: 'f64' },
        { vType: 5 },
        { vType: 'i32' },
        { maxKvLen: null },
        { kType: null },
        { vType: null },
        { selectiveV: null },
        { selectiveV: { topK: 0 } },
        { selectiveV: { topK: -1 } },
        { selectiveV: { topK: 1.5 } },
        { selectiveV: true },
        { selectiveV: {} },
      ].map((options) => [show(options), options]),
    )('createSession rejects %s', async (_, options) => {
      await expectCode(() => model.createSession(options as Anything), invalid, /./);
    });

    it('allocates cache memory as the cache fills, for any maxKvLen', async () => {
      const roomy = await Model.random(
        { ...checkpoint.config, max_position_embeddings: 2 ** 30, head_dim: 256 },
        { device: device() },
      );
      const long = await roomy.createSession({ maxKvLen: 2 ** 30 });
      await long.prefill([1, 2, 3]);
      const { k, v } = long.kvCacheBytes;
      expect(k + v).toBeLessThan(2 ** 28);
      roomy.dispose();
      await session.prefill([1]);
    });

    it('rejects a model larger than memory with ERR_OUT_OF_MEMORY instead of a crash', async () => {
      const config = {
        ...checkpoint.config,
        hidden_size: 2 ** 17,
        intermediate_size: 2 ** 20,
        num_hidden_layers: 1000,
      };
      await expectCode(() => Model.random(config, { device: device() }), 'ERR_OUT_OF_MEMORY', /\d{6,}/);
      await session.prefill([1]);
    });

    const badTokens: [string, unknown][] = [
      ['negative', [1, -1]],
      ['the size of the vocabulary', [128]],
      ['NaN', [Number.NaN]],
      ['a fraction', [1.5]],
      ['2^32 + 1', [2 ** 32 + 1]],
      ['2^53', [2 ** 53]],
      ['a string', ['1']],
      ['null', [null]],
      ['a hole', new Array(2)],
      ['no tokens', []],
      ['a number', 5],
      ['a text', 'text'],
      ['nothing', undefined],
      ['an object', {}],
      ['a bigint', [1n]],
    ];

    it.each(badTokens)('prefill rejects %s and keeps the session', async (_, tokens) => {
      const first = await session.prefill([1, 2, 3]);
      await expectCode(() => session.prefill(tokens as Anything), invalid, /./);
      expect(session.kvLen).toBe(3);
      await session.truncate(0);
      expect(firstBitDifference(await session.prefill([1, 2, 3]), first)).toBe(-1);
    });

    it.each(
      badTokens
        .map(([name, tokens]) => [name, Array.isArray(tokens) ? tokens[tokens.length - 1] : 'x'] as const)
        .filter(([name]) => name !== 'a hole'),
    )('decode rejects %s', async (_, token) => {
      await session.prefill([1, 2, 3]);
      await expectCode(() => session.decode(token as Anything), invalid);
      expect(session.kvLen).toBe(3);
    });

    it('accepts typed arrays and the largest token', async () => {
      const logits = await session.prefill([127, 0, 5]);
      await session.truncate(0);
      expect(firstBitDifference(await session.prefill(Int32Array.of(127, 0, 5) as Anything), logits)).toBe(-1);
    });

    it('rejects tokens for a full cache with ERR_KV_CACHE_FULL and keeps the cache', async () => {
      await session.prefill(new Array(18).fill(7));
      await expectCode(() => session.prefill([1, 2, 3]), 'ERR_KV_CACHE_FULL', '20', '18');
      expect(session.kvLen).toBe(18);
      const a = await session.decode(1);
      await session.decode(2);
      expect(session.kvLen).toBe(20);
      await expectCode(() => session.decode(3), 'ERR_KV_CACHE_FULL', '20');
      await expectCode(() => session.prefill([3]), 'ERR_KV_CACHE_FULL', '20');
      await session.truncate(18);
      expect(firstBitDifference(await session.decode(1), a)).toBe(-1);
      const whole = await model.createSession({ maxKvLen: 20 });
      await expectCode(() => whole.prefill(new Array(21).fill(7)), 'ERR_KV_CACHE_FULL', '21', '20');
      expect(whole.kvLen).toBe(0);
      await whole.prefill(new Array(20).fill(7));
      whole.dispose();
    });

    it("limits the cache to the config's context without maxKvLen", async () => {
      const whole = await model.createSession();
      expect(whole.maxKvLen).toBe(64);
      await expectCode(() => whole.prefill(new Array(65).fill(1)), 'ERR_KV_CACHE_FULL', '64');
      whole.dispose();
    });

    it.each(
      [-1, 4, 1.5, Number.NaN, Number.POSITIVE_INFINITY, '1', null, undefined, 2 ** 53].map((value) => [
        show(value),
        value,
      ]),
    )('truncate rejects %s', async (_, value) => {
      await session.prefill([1, 2, 3]);
      await expectCode(() => session.truncate(value as Anything), invalid);
      expect(session.kvLen).toBe(3);
      await session.truncate(3);
    });

    it('has no native property or method that a disposed model or session answers', async () => {
      const directory = directories.make();
      writeCheckpoint(directory, checkpoint);
      const other = await Model.load(directory, { device: device() });
      const own = await other.createSession();
      own.dispose();
      other.dispose();
      const item = { session: session[native], tokens: Int32Array.of(1), chunks: 'all' };
      const args = { items: [item], kvLen: 0, tokens: Int32Array.of(1), offset: 0, array: new Uint8Array(1) };
      for (const object of [other[native], own[native]] as Anything[]) {
        const names = Object.getOwnPropertyNames(Object.getPrototypeOf(object));
        const asked = names.filter((name) => name !== 'constructor' && name !== 'dispose');
        expect(asked.length).toBeGreaterThan(8);
        for (const name of asked) {
          const get = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(object), name)?.get;
          const error = await errorOf(async () => (get ? object[name] : object[name](args)));
          expect([name, error.code]).toEqual([name, 'ERR_DISPOSED']);
        }
      }
    });

    it("disposes sessions and models once, and a model's sessions with the model", async () => {
      const own = await Model.random(checkpoint.config, { device: device(), seed: 3 });
      const first = await own.createSession();
      const second = await own.createSession();
      await first.prefill([1]);
      first.dispose();
      first.dispose();
      first[Symbol.dispose]();
      for (const call of [() => first.prefill([1]), () => first.decode(1), () => first.truncate(0), () => first.fork()])
        await expectCode(call, 'ERR_DISPOSED', /session/i);
      await second.prefill([1]);
      own[Symbol.dispose]();
      await expectCode(() => own.createSession(), 'ERR_DISPOSED', /model/i);
      await expectCode(async () => own.generate([1]).result, 'ERR_DISPOSED');
      await expectCode(() => second.prefill([1]), 'ERR_DISPOSED', /session/i);
      second.dispose();
      own.dispose();
    });
  });
});
