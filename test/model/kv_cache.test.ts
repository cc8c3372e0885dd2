// The paged cache: forks that share pages, the pool's budget, and the prefix cache. The logits of a
// session are compared with float64, and its pages with the pool's own count.

import { DiffqkvError, Model, type Session } from '../../lib/index';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { firstBitDifference, logitError, modelTolerances } from '../support/compare';
import { errorOf, long, onEveryDevice, reduced } from '../support/devices';
import { Random } from '../support/numbers';
import { modelLogits } from '../support/reference_model';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const checkpoint = randomCheckpoint({ heads: [8, 2, 4], headDim: 16 });
const tokens = new Random(3).tokens(300, 128);
const expected = modelLogits(checkpoint, tokens, { numLogits: tokens.length });
const pageTokens = 64;

onEveryDevice((device) => {
  let directory: string;
  let pageBytes: number;
  beforeAll(() => {
    directory = directories.make();
    writeCheckpoint(directory, checkpoint);
    pageBytes = pageTokens * (2 + 4) * 16 * 4 * 2;
  });
  const withModel = async (
    options: { kvCacheBytes?: number; prefixCacheBytes?: number },
    work: (model: Model) => Promise<void>,
  ): Promise<void> => {
    const model = await Model.load(directory, { device: device(), ...options });
    try {
      await work(model);
    } finally {
      model.dispose();
    }
  };
  const check = (logits: Float32Array, at: number) =>
    expect(logitError(logits, expected[at] as Float64Array)).toBeLessThanOrEqual(modelTolerances.f32);

  it('allocates pages as tokens arrive, and frees them', async () => {
    await withModel({}, async (model) => {
      const session = await model.createSession();
      const pages = () => model.kvCache.pages;
      expect(model.kvCache).toEqual({ pageTokens, pages: 0, prefixPages: 0, bytes: 0 });
      expect(session.kvCacheBytes).toEqual({ k: 0, v: 0 });
      for (const [length, count] of [
        [1, 1],
        [64, 1],
        [65, 2],
        [129, 3],
        [256, 4],
      ] as const) {
        check(await session.prefill(tokens.slice(session.kvLen, length)), length - 1);
        expect(pages()).toBe(count);
        expect(model.kvCache.bytes).toBe(count * pageBytes);
        expect(session.kvCacheBytes).toEqual({ k: (count * pageBytes) / 3, v: (count * pageBytes * 2) / 3 });
      }
      await session.truncate(64);
      expect(pages()).toBe(1);
      check(await session.prefill(tokens.slice(64, 70)), 69);
      expect(pages()).toBe(2);
      session.dispose();
      await device().synchronize();
      expect(model.kvCache).toEqual({ pageTokens, pages: 0, prefixPages: 0, bytes: 0 });
    });
  });

  it.each(reduced ? [64, 100] : [1, 63, 64, 65, 100, 128])(
    'shares the pages of a fork at %i tokens, and copies one on write',
    async (at) => {
      await withModel({}, async (model) => {
        const session = await model.createSession();
        await session.prefill(tokens.slice(0, at));
        const before = model.kvCache.pages;
        const forks: Session[] = [];
        for (let i = 0; i < 3; i++) forks.push(await session.fork());
        expect(model.kvCache.pages).toBe(before);
        // Each fork continues with other tokens, which the other forks must not see.
        const other = [5, 6, 7];
        for (const fork of forks) await fork.prefill(other);
        check(await session.prefill(tokens.slice(at, at + 30)), at + 29);
        for (const fork of forks) {
          await fork.truncate(at);
          check(await fork.prefill(tokens.slice(at, at + 40)), at + 39);
        }
        check(await session.decode(tokens[at + 30] as number), at + 30);
        const shared = Math.floor(at / pageTokens);
        const own = (length: number) => Math.ceil(length / pageTokens) - shared;
        expect(model.kvCache.pages).toBe(shared + own(at + 31) + 3 * own(at + 40));
        session.dispose();
        check(await (forks[0] as Session).decode(tokens[at + 40] as number), at + 40);
        for (const fork of forks) fork.dispose();
        await device().synchronize();
        expect(model.kvCache.pages).toBe(0);
      });
    },
  );

  it('uses exactly kvCacheBytes, and not a byte more', async () => {
    await withModel({ kvCacheBytes: 2 * pageBytes }, async (model) => {
      const session = await model.createSession();
      check(await session.prefill(tokens.slice(0, 128)), 127);
      expect(model.kvCache).toMatchObject({ pages: 2, bytes: 2 * pageBytes, maxBytes: 2 * pageBytes });
      expect((await errorOf(() => session.decode(5))).code).toBe('ERR_KV_CACHE_FULL');
    });
    await withModel({ kvCacheBytes: 2 * pageBytes - 1 }, async (model) => {
      const session = await model.createSession();
      check(await session.prefill(tokens.slice(0, 64)), 63);
      expect((await errorOf(() => session.decode(5))).code).toBe('ERR_KV_CACHE_FULL');
    });
    // Exactly full with the pages that the prefix cache gives up.
    const limits = { kvCacheBytes: 3 * pageBytes, prefixCacheBytes: 3 * pageBytes };
    await withModel(limits, async (model) => {
      const gone = await model.createSession();
      await gone.prefill(tokens.slice(0, 128).map((token) => token ^ 1));
      gone.dispose();
      const session = await model.createSession();
      check(await session.prefill(tokens.slice(0, 192)), 191);
      expect(model.kvCache).toMatchObject({ pages: 3, bytes: 3 * pageBytes });
    });
  });

  it.each([0, 90])('applies the repetition penalty to the whole history in a fork at %i tokens', async (before) => {
    await withModel({}, async (model) => {
      const penalized = { maxTokens: 6, repetitionPenalty: 1e6 };
      const generate = async (session: Session, prompt: readonly number[]) =>
        (await model.generate(prompt, { ...penalized, session }).result).tokens;
      // The tokens of the history are not drawn again, so a fork without it would draw others.
      const run = async (forks: boolean) => {
        const session = await model.createSession();
        if (before > 0) await session.prefill(tokens.slice(0, before));
        const first = await generate(session, [1, 2, 3]);
        const continued = forks ? await session.fork() : session;
        const second = await generate(continued, [4]);
        return { first, second };
      };
      const expected = await run(false);
      expect(await run(true)).toEqual(expected);
      const history = new Set([...tokens.slice(0, before), 1, 2, 3, 4, ...expected.first]);
      expect(expected.second.filter((token) => history.has(token))).toEqual([]);
    });
  });

  it('fails only the session that asks for a page of a full pool, and keeps its tokens', async () => {
    await withModel({ kvCacheBytes: 4 * pageBytes }, async (model) => {
      expect(model.kvCache.maxBytes).toBe(4 * pageBytes);
      const a = await model.createSession();
      const b = await model.createSession();
      await a.prefill(tokens.slice(0, 120));
      await b.prefill(tokens.slice(0, 64));
      for (const call of [() => a.prefill(tokens.slice(120, 280)), () => b.prefill(tokens.slice(64, 193))]) {
        const error = await errorOf(call);
        expect([error.code, error.message]).toEqual(['ERR_KV_CACHE_FULL', expect.stringContaining('kvCacheBytes')]);
      }
      expect([a.kvLen, b.kvLen, model.kvCache.pages]).toEqual([120, 64, 3]);
      check(await b.decode(tokens[64] as number), 64); // the fourth page
      const error = await errorOf(() => a.prefill(tokens.slice(120, 130)));
      expect(error.code).toBe('ERR_KV_CACHE_FULL');
      expect(error).toBeInstanceOf(DiffqkvError);
      check(await a.prefill(tokens.slice(120, 128)), 127); // within its second page
      const fork = await a.fork();
      await fork.truncate(100);
      const copy = await errorOf(() => fork.decode(7)); // a copy of a shared page needs a page too
      expect([copy.code, fork.kvLen]).toEqual(['ERR_KV_CACHE_FULL', 100]);
      await b.truncate(64);
      await fork.decode(7);
      await b.truncate(63);
      check(await b.decode(tokens[63] as number), 63);
    });
  });

  long('fails only the generation that needs a page', async () => {
    await withModel({ kvCacheBytes: 3 * pageBytes }, async (model) => {
      const long = model.generate(tokens.slice(0, 100), { maxTokens: 150 });
      const short = model.generate(tokens.slice(0, 20), { maxTokens: 30 });
      const outcomes = await Promise.all([long.result.catch((error) => error), short.result]);
      expect(outcomes[0].code).toBe('ERR_KV_CACHE_FULL');
      expect(outcomes[0]).toBeInstanceOf(DiffqkvError);
      const alone = await model.generate(tokens.slice(0, 20), { maxTokens: 30 }).result;
      expect(outcomes[1].tokens).toEqual(alone.tokens);
      await device().synchronize();
      expect(model.kvCache.pages).toBe(0);
    });
  });

  describe('the prefix cache', () => {
    it('shares the pages of an earlier prompt of any session, but only for an equal beginning', async () => {
      await withModel({ prefixCacheBytes: 100 * pageBytes }, async (model) => {
        const first = await model.createSession();
        check(await first.prefill(tokens.slice(0, 200)), 199);
        expect(model.kvCache).toMatchObject({ pages: 4, prefixPages: 3 });
        first.dispose();
        await device().synchronize();
        expect(model.kvCache).toMatchObject({ pages: 3, prefixPages: 3 });

        const second = await model.createSession();
        check(await second.prefill(tokens.slice(0, 150)), 149); // 2 pages from the prefix cache
        expect(model.kvCache).toMatchObject({ pages: 4, prefixPages: 3 });
        check(await second.prefill(tokens.slice(150, 250)), 249);
        // The cache already has the contents of its third page. Only page 4 is incomplete.
        expect(model.kvCache).toMatchObject({ pages: 5, prefixPages: 3 });

        // With another first token, nothing is shared.
        const other = await model.createSession();
        const changed = [(tokens[0] as number) ^ 1, ...tokens.slice(1, 200)];
        const [logits] = modelLogits(checkpoint, changed);
        expect(logitError(await other.prefill(changed), logits as Float64Array)).toBeLessThanOrEqual(
          modelTolerances.f32,
        );
        expect(model.kvCache).toMatchObject({ pages: 9, prefixPages: 6 });

        // All tokens are cached. The last is still computed for its logits.
        const same = await model.createSession();
        check(await same.prefill(tokens.slice(0, 192)), 191);
        expect(model.kvCache.prefixPages).toBe(6);
      });
    });

    it('never writes to a shared page after truncate and other tokens', async () => {
      await withModel({ prefixCacheBytes: 100 * pageBytes }, async (model) => {
        const first = await model.createSession();
        await first.prefill(tokens.slice(0, 130));
        const second = await model.createSession();
        await second.prefill(tokens.slice(0, 130));
        await second.truncate(70);
        await second.prefill([1, 2, 3, 4, 5, 6, 7, 8]);
        check(await first.decode(tokens[130] as number), 130);
        const third = await model.createSession();
        check(await third.prefill(tokens.slice(0, 131)), 130);
      });
    });

    long('separates the prefixes of other cache types and of selective V', async () => {
      await withModel({ prefixCacheBytes: 100 * pageBytes }, async (model) => {
        const logits: Float32Array[] = [];
        const options = [
          {},
          { vType: 'i8' as const },
          { selectiveV: { topK: 3 } },
          { selectiveV: { topK: 3, renormalize: true } },
        ];
        for (const one of [...options, ...options]) {
          const session = await model.createSession(one);
          logits.push(await session.prefill(tokens.slice(0, 100)));
          session.dispose();
        }
        expect(model.kvCache.prefixPages).toBe(4);
        for (let i = 0; i < 4; i++) {
          const [a, b] = [logits[i] as Float32Array, logits[i + 4] as Float32Array];
          expect(logitError(b, Float64Array.from(a))).toBeLessThanOrEqual(modelTolerances.bf16);
          for (let j = 0; j < i; j++) expect(firstBitDifference(a, logits[j] as Float32Array)).not.toBe(null);
        }
      });
    });

    long('stays within its bytes, keeps the most recently used pages, and yields pages to a full pool', async () => {
      await withModel({ prefixCacheBytes: 3 * pageBytes, kvCacheBytes: 5 * pageBytes }, async (model) => {
        const run = async (some: readonly number[]) => {
          const session = await model.createSession();
          await session.prefill(some);
          session.dispose();
          await device().synchronize();
        };
        const others = tokens.map((token) => (token + 1) % 128);
        await run(tokens.slice(0, 130));
        expect(model.kvCache.prefixPages).toBe(2);
        await run(others.slice(0, 130));
        expect(model.kvCache).toMatchObject({ pages: 3, prefixPages: 3 });
        const big = await model.createSession();
        check(await big.prefill(tokens.slice(0, 300)), 299); // 5 pages: the whole pool
        expect(model.kvCache.pages).toBe(5);
      });
    });

    // The first part of a prompt of 700 tokens: cached pages and a chunk of 512 tokens.
    const firstPart = async (model: Model, prompt: readonly number[]): Promise<number> => {
      const controller = new AbortController();
      const heard: number[] = [];
      const onPrefillProgress = ({ doneTokens }: { doneTokens: number }) => {
        heard.push(doneTokens);
        controller.abort();
      };
      await model.generate(prompt, { onPrefillProgress, signal: controller.signal }).result;
      return heard[0] as number;
    };
    const longer = (some: readonly number[]) => [...some.slice(0, 140), ...new Random(9).tokens(560, 128)];

    long.each([
      ['the later, whole', 1, 640],
      ['the earlier, its first page', 0, 576],
    ])('keeps the most recently used pages: %s', async (_, which, expectedPart) => {
      await withModel({ prefixCacheBytes: 3 * pageBytes }, async (model) => {
        const both = [tokens, tokens.map((token) => (token + 1) % 128)] as const;
        for (const some of both) {
          using session = await model.createSession();
          await session.prefill(some.slice(0, 130));
        }
        expect(await firstPart(model, longer(both[which] as number[]))).toBe(expectedPart);
      });
    });

    it('does not copy a page that only the prefix cache shares if no page is free', async () => {
      await withModel({ prefixCacheBytes: 2 * pageBytes, kvCacheBytes: 2 * pageBytes }, async (model) => {
        const session = await model.createSession();
        await session.prefill(tokens.slice(0, 128));
        expect(model.kvCache).toMatchObject({ pages: 2, prefixPages: 2 });
        await session.truncate(100);
        check(await session.decode(tokens[100] as number), 100);
        expect(model.kvCache.pages).toBe(2);
      });
    });

    it('loses nothing to a request that cannot fit', async () => {
      await withModel({ prefixCacheBytes: 10 * pageBytes, kvCacheBytes: 6 * pageBytes }, async (model) => {
        const a = await model.createSession();
        await a.prefill(tokens.slice(0, 130));
        const gone = await model.createSession();
        await gone.prefill(tokens.map((token) => token ^ 1).slice(0, 65));
        gone.dispose();
        await device().synchronize();
        const before = model.kvCache;
        expect(before).toMatchObject({ pages: 4, prefixPages: 3 });
        const b = await model.createSession();
        expect((await errorOf(() => b.prefill(new Random(6).tokens(400, 128)))).code).toBe('ERR_KV_CACHE_FULL');
        expect(model.kvCache).toEqual(before);
        check(await a.decode(tokens[130] as number), 130);
      });
    });

    long('skips cached tokens in generate with the same result', async () => {
      await withModel({ prefixCacheBytes: 100 * pageBytes }, async (model) => {
        const prompt = longer(tokens);
        const results = [await model.generate(prompt, { maxTokens: 10 }).result];
        expect(model.kvCache.prefixPages).toBe(11); // 709 tokens
        results.push(await model.generate(prompt, { maxTokens: 10 }).result);
        expect(results[1]?.tokens).toEqual(results[0]?.tokens);
        expect(await firstPart(model, prompt)).toBe(700); // all but the last page was cached
      });
    });
  });
});
