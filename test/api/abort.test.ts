// Aborts and progress of loads, prefills and generations.

import { Model, Tokenizer } from '../../lib/index';
import { firstBitDifference } from '../support/compare';
import { errorOf, long, onEveryDevice } from '../support/devices';
import { tldrDirectory } from '../support/fixtures';

onEveryDevice((device) => {
  describe('abort', () => {
    let model: Model;
    beforeAll(async () => {
      model = await Model.load(tldrDirectory, { device: device() });
    });
    afterAll(() => model.dispose());
    const prompt = '# tar\n> Archiving utility.\n';

    const expectAbort = async (work: () => unknown): Promise<void> => {
      const error = await errorOf(work);
      expect([error.name, error.code]).toEqual(['AbortError', 'ABORT_ERR']);
    };

    it('rejects a load that is aborted before or during loading', async () => {
      await expectAbort(() => Model.load(tldrDirectory, { device: device(), signal: AbortSignal.abort() }));
      const controller = new AbortController();
      let calls = 0;
      await expectAbort(() =>
        Model.load(tldrDirectory, {
          device: device(),
          signal: controller.signal,
          onProgress: () => {
            calls++;
            controller.abort();
          },
        }),
      );
      expect(calls).toBeGreaterThan(0);
      const again = await Model.load(tldrDirectory, { device: device(), signal: new AbortController().signal });
      again.dispose();
    });

    it('rejects a load that is aborted while the tokenizer is loaded', async () => {
      const controller = new AbortController();
      const { fromDirectory } = Tokenizer;
      const spy = jest.spyOn(Tokenizer, 'fromDirectory').mockImplementation((...args) => {
        const loading = fromDirectory(...args);
        controller.abort();
        return loading;
      });
      try {
        const error = await errorOf(() => Model.load(tldrDirectory, { device: device(), signal: controller.signal }));
        expect(error).toMatchObject({ code: 'ABORT_ERR', message: expect.stringContaining('while the tokenizer was') });
      } finally {
        spy.mockRestore();
      }
    });

    it('reports loaded bytes that rise to the total', async () => {
      const seen: { loadedBytes: number; totalBytes: number }[] = [];
      const own = await Model.load(tldrDirectory, {
        device: device(),
        onProgress: (progress) => void seen.push(progress),
      });
      expect(seen.length).toBeGreaterThan(2);
      const { totalBytes } = seen[0] as (typeof seen)[0];
      expect(seen[seen.length - 1]).toEqual({ loadedBytes: totalBytes, totalBytes });
      seen.forEach((progress, i) => {
        expect(progress.totalBytes).toBe(totalBytes);
        if (i > 0) expect(progress.loadedBytes).toBeGreaterThanOrEqual((seen[i - 1] as typeof progress).loadedBytes);
      });
      own.dispose();
    });

    it('fails the load with the error that onProgress throws', async () => {
      await expect(
        Model.load(tldrDirectory, {
          device: device(),
          onProgress: () => {
            throw new RangeError('mine');
          },
        }),
      ).rejects.toThrow('mine');
    });

    it('generate: returns an empty result and keeps the session if the signal fired before the call', async () => {
      const session = await model.createSession();
      const tokens = (model.tokenizer as NonNullable<Model['tokenizer']>).encode(prompt);
      const logits = await session.prefill(tokens);
      const result = await model.generate([5], { session, signal: AbortSignal.abort() }).result;
      expect(result).toMatchObject({ text: '', tokens: [], finishReason: 'abort' });
      expect(session.kvLen).toBe(tokens.length);
      await session.truncate(0);
      expect(firstBitDifference(await session.prefill(tokens), logits)).toBe(-1);
      session.dispose();
    });

    it('prefill: keeps the session if aborted before the call or within a long prompt', async () => {
      const session = await model.createSession();
      await session.prefill([1, 2]);
      await expectAbort(() => session.prefill([3], { signal: AbortSignal.abort() }));
      const controller = new AbortController();
      const long = session.prefill(new Array(1000).fill(7), { signal: controller.signal });
      controller.abort();
      await expectAbort(() => long);
      expect(session.kvLen).toBe(2);
      const whole = await model.createSession();
      await whole.prefill([1, 2]);
      expect(firstBitDifference(await session.decode(3), await whole.decode(3))).toBe(-1);
      session.dispose();
      whole.dispose();
    });

    it('generate: ends within a token after an abort between tokens', async () => {
      const controller = new AbortController();
      const session = await model.createSession();
      const generation = model.generate(prompt, { maxTokens: 500, signal: controller.signal, session });
      let count = 0;
      for await (const { token } of generation) {
        expect(Number.isInteger(token)).toBe(true);
        if (++count === 3) controller.abort();
      }
      const result = await generation.result;
      expect(result.finishReason).toBe('abort');
      expect(result.tokens.length).toBeLessThan(100);
      expect(session.kvLen).toBe(result.usage.promptTokens + result.tokens.length);
      await session.decode(1);
      session.dispose();
    });

    long('generate: restores the session after an abort within a long prompt', async () => {
      const long = new Array(1000).fill(0).map((_, i) => (i * 37) % 4000);
      const controller = new AbortController();
      const session = await model.createSession();
      let chunks = 0;
      const result = await model.generate(long, {
        session,
        signal: controller.signal,
        maxTokens: 4,
        onPrefillProgress: () => {
          chunks++;
          controller.abort();
        },
      }).result;
      expect(chunks).toBeGreaterThan(0);
      expect(result.finishReason).toBe('abort');
      expect(result.tokens.length).toBe(0);
      expect(session.kvLen).toBe(0);
      await session.prefill([1, 2, 3]);
      session.dispose();
    });
  });
});
