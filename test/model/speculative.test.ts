// Speculative decoding: the same tokens as without, and the same state of the session.

import { type GenerateOptions, type GenerationResult, Model, type SpeculativeOptions } from '../../lib/index';
import { native } from '../../lib/internal';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { firstBitDifference, logitError, modelTolerances } from '../support/compare';
import { errorOf, long, onEveryDevice } from '../support/devices';
import { tldrDirectory } from '../support/fixtures';
import { Random } from '../support/numbers';

const { compare } = require('./speculative_campaign.cjs') as {
  compare(
    model: Model,
    options: {
      count: number;
      together: number;
      maxTokens: number;
      speculative: Record<string, SpeculativeOptions>;
    },
  ): Promise<{ name: string; drawn: string; prompts: number; different: number; tokens: number; steps: number }[]>;
};

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

function small(vocabSize = 128, seed = 1, changes = {}): string {
  const directory = directories.make();
  const checkpoint = randomCheckpoint({ heads: [4, 1, 2], headDim: 32, numLayers: 1, vocabSize, seed, tied: false });
  writeCheckpoint(directory, { ...checkpoint, config: { ...checkpoint.config, ...changes } });
  return directory;
}

onEveryDevice((device) => {
  const onCpu = () => device().info.kind === 'cpu';

  long('generates what the embedded model generates without, one by one and in batches', async () => {
    const model = await Model.load(tldrDirectory, { device: device() });
    const draft = await Model.load(tldrDirectory, { device: device(), weightType: 'i4' });
    const sizes = onCpu() ? [1, 3, 8] : [2];
    for (const together of sizes) {
      const rows = await compare(model, {
        count: onCpu() ? 8 : 2,
        together,
        maxTokens: onCpu() ? 48 : 10,
        speculative: { ngram: {}, draft: { draft } },
      });
      expect(rows.map(({ different }) => different)).toEqual([0, 0, 0, 0]);
      for (const { name, drawn, tokens, steps } of rows) {
        // The draft model is nearly the same.
        if (name === 'draft') expect(tokens / steps).toBeGreaterThan(1.3);
        // Beside others nothing is proposed, because the rows of a pass are theirs.
        else if (onCpu() && together === 1 && drawn === 'greedy') expect(tokens / steps).toBeGreaterThan(1);
      }
    }
    await device().synchronize();
    expect(draft.kvCache.pages).toBe(0);
    draft.dispose();
    model.dispose();
  });

  long('ends within the tokens of a step, and then removes those after the end from the session', async () => {
    const model = await Model.load(tldrDirectory, { device: device() });
    const text = '# tar\n> Archiving utility.\n';
    const tokens = model.tokenizer?.encode(text) as number[];
    const all = (await model.generate(text, { maxTokens: onCpu() ? 400 : 12 }).result).text;
    const stops = [[], ...[4, 9, 17, 30].slice(0, onCpu() ? 4 : 2).map((at) => [all.slice(at, at + 2)])];
    let wasAhead = 0;
    for (const stop of stops) {
      const options = { maxTokens: onCpu() ? 400 : 12, stop };
      const expected = await model.generate(text, options).result;
      const session = await model.createSession();
      // It is right, and does not know the stop string.
      const speculative = { draft: model, maxTokens: 7 };
      const result = await model.generate(text, { ...options, session, speculative }).result;
      expect(result).toMatchObject({
        text: expected.text,
        tokens: expected.tokens,
        finishReason: expected.finishReason,
      });
      if (onCpu()) expect(result.finishReason).toBe('stop');
      expect([...(await session[native].tokens())]).toEqual([...tokens, ...result.tokens]);
      const { steps = 0, acceptedTokens = 0 } = result.speculative ?? {};
      wasAhead += Number(1 + steps + acceptedTokens > result.tokens.length);
      session.dispose();
    }
    expect(wasAhead).toBeGreaterThan(0);
    model.dispose();
  });

  describe('on a small model', () => {
    let model: Model;
    let other: Model;
    beforeAll(async () => {
      model = await Model.load(small(), { device: device() });
      other = await Model.load(small(128, 2), { device: device() });
    });
    afterAll(() => {
      model?.dispose();
      other?.dispose();
    });
    const settled = async () => {
      await device().synchronize();
      expect([model.kvCache.pages, other.kvCache.pages]).toEqual([0, 0]);
    };
    /** A prompt lookup, a draft that is right, and one that is nearly always wrong. */
    const kinds = (): [string, SpeculativeOptions][] => [
      ['ngram', { ngram: 2 }],
      ['the same model', { draft: model, maxTokens: 5 }],
      ['another model', { draft: other }],
    ];
    const prompt = [5, 9, 5, 9, 7];
    const generate = (options: GenerateOptions, from: number[] = prompt) => model.generate(from, options).result;

    it('gives the same tokens up to each limit, and counts steps', async () => {
      const longest = onCpu() ? 20 : 8;
      const all = (await generate({ maxTokens: longest, temperature: 1, seed: 3 })).tokens;
      for (const [kind, speculative] of kinds()) {
        for (const maxTokens of [1, 2, 3, 5, longest]) {
          const result = await generate({ maxTokens, temperature: 1, seed: 3, speculative });
          expect(result.tokens).toEqual(all.slice(0, maxTokens));
          expect(result.finishReason).toBe('length');
          expect(result.usage).toEqual({ promptTokens: 5, cachedTokens: 0, completionTokens: maxTokens });
          const { proposedTokens, acceptedTokens, steps } =
            result.speculative as Required<GenerationResult>['speculative'];
          expect(steps).toBe(maxTokens - 1 - acceptedTokens);
          expect(acceptedTokens).toBeLessThanOrEqual(proposedTokens);
          if (maxTokens <= 2) expect(proposedTokens).toBe(0);
          else if (kind === 'the same model') expect(acceptedTokens).toBe(proposedTokens);
          if (kind === 'another model' && maxTokens === longest) expect(acceptedTokens).toBeLessThan(proposedTokens);
        }
      }
      expect((await generate({ maxTokens: 2 })).speculative).toBe(undefined);
      await settled();
    });

    it('gives the same tokens and log probabilities with biases and penalties, which change with each token', async () => {
      const logitBias = { 3: 4, 9: Number.NEGATIVE_INFINITY, 100: 2 };
      for (const limits of [{ logitBias }, { logitBias, frequencyPenalty: -1, presencePenalty: 2 }]) {
        const options = { maxTokens: onCpu() ? 30 : 8, temperature: 0.5, seed: 4, logprobs: 2, ...limits };
        const { tokens, logprobs } = await generate(options);
        expect(tokens).not.toEqual((await generate({ ...options, logitBias: {}, frequencyPenalty: 0.1 })).tokens);
        for (const [kind, speculative] of kinds()) {
          const result = await generate({ ...options, speculative });
          expect(result.tokens).toEqual(tokens);
          if (onCpu()) expect(result.logprobs).toEqual(logprobs);
          expect(result.logprobs?.map(({ token }) => token)).toEqual(tokens);
          if (kind === 'the same model') expect(result.speculative?.acceptedTokens).toBeGreaterThan(0);
        }
      }
      await settled();
    });

    it('leaves a session with the prompt and the tokens, in several turns', async () => {
      for (const [, speculative] of kinds()) {
        const sessions = [
          await model.createSession({ vType: 'i8' }),
          await model.createSession({ vType: 'i8' }),
        ] as const;
        const expected: number[] = [];
        for (const [turn, maxTokens] of [7, 1, 12].slice(0, onCpu() ? 3 : 2).entries()) {
          const options = { maxTokens, temperature: turn, repetitionPenalty: 1.2, seed: turn };
          const results = [
            await generate({ ...options, session: sessions[0] }),
            await generate({ ...options, session: sessions[1], speculative }),
          ] as const;
          expect(results[1].tokens).toEqual(results[0].tokens);
          expected.push(...prompt, ...results[0].tokens);
          expect([...(await sessions[1][native].tokens())]).toEqual(expected);
          expect(sessions[1].kvCacheBytes).toEqual(sessions[0].kvCacheBytes);
        }
        const [a, b] = [await sessions[0].decode(1), await sessions[1].decode(1)];
        if (onCpu()) expect(firstBitDifference(a, b)).toBe(-1);
        else expect(logitError(b, Float64Array.from(a))).toBeLessThanOrEqual(modelTolerances.bf16);
        for (const session of sessions) session.dispose();
      }
      await settled();
    });

    it('fills a session to its last row', async () => {
      for (const [, speculative] of kinds()) {
        const session = await model.createSession({ maxKvLen: 15 });
        const { tokens, finishReason } = await generate({ maxTokens: Infinity, session, speculative });
        expect([tokens.length, finishReason, session.kvLen]).toEqual([10, 'length', 15]);
        expect(tokens).toEqual((await generate({ maxTokens: 10 })).tokens);
        session.dispose();
      }
    });

    it('shares passes among generations', async () => {
      const run = (count: number, speculative?: SpeculativeOptions) =>
        Promise.all(
          Array.from({ length: count }, (_, i) =>
            generate({ maxTokens: onCpu() ? 12 : 6, temperature: i % 2, seed: i, speculative }, [...prompt, i]),
          ),
        );
      for (const count of onCpu() ? [5, 9] : [3]) {
        const expected = await run(count);
        for (const [kind, speculative] of kinds()) {
          const results = await run(count, speculative);
          expect(results.map(({ tokens }) => tokens)).toEqual(expected.map(({ tokens }) => tokens));
          const proposed = results.reduce((sum, { speculative }) => sum + (speculative?.proposedTokens ?? 0), 0);
          if (kind === 'the same model' && count < 9) expect(proposed).toBeGreaterThan(0);
        }
      }
      await settled();
    });

    long('proposes nothing beside eight other generations', async () => {
      const controller = new AbortController();
      const { signal } = controller;
      const others = Array.from({ length: 8 }, () => generate({ maxTokens: 500, signal }));
      const { speculative } = await generate({ maxTokens: 6, speculative: { draft: model } });
      controller.abort();
      expect(speculative).toEqual({ proposedTokens: 0, acceptedTokens: 0, steps: 5 });
      await Promise.all(others);
      await settled();
    });

    it('streams each token in order, and stops within a few when the reader leaves', async () => {
      for (const [, speculative] of kinds()) {
        const options = { maxTokens: onCpu() ? 40 : 12, speculative };
        const all = (await generate({ maxTokens: options.maxTokens })).tokens;
        const streamed: number[] = [];
        for await (const { token } of model.generate(prompt, options)) streamed.push(token);
        expect(streamed).toEqual(all);
        const session = await model.createSession();
        const left = model.generate(prompt, { ...options, session });
        for await (const _ of left) break;
        const { tokens, finishReason } = await left.result;
        expect(finishReason).toBe('abort');
        expect(tokens).toEqual(all.slice(0, tokens.length));
        expect([...(await session[native].tokens())]).toEqual([...prompt, ...tokens]);
        session.dispose();
      }
      await settled();
    });

    it('stops while the draft model reads the prompt', async () => {
      const controller = new AbortController();
      const long = new Random(1).tokens(onCpu() ? 2000 : 600, 128);
      const session = await model.createSession();
      await session.prefill(long);
      const generation = model.generate([1], {
        session,
        signal: controller.signal,
        speculative: { draft: other },
        maxTokens: 30,
      });
      for await (const _ of generation) {
        controller.abort();
      }
      const { tokens, finishReason } = await generation.result;
      expect(finishReason).toBe('abort');
      expect(session.kvLen).toBe(long.length + 1 + tokens.length);
      session.dispose();
      await settled();
    });

    it('makes no session of the draft model if it is aborted before its turn', async () => {
      const session = await model.createSession();
      const running = model.generate(prompt, { session, maxTokens: 20 }).result;
      const created = jest.spyOn(other, 'createSession');
      const signal = AbortSignal.abort();
      const { result } = model.generate([1], { session, signal, speculative: { draft: other } });
      const speculative = { proposedTokens: 0, acceptedTokens: 0, steps: 0 };
      expect(await result).toMatchObject({ finishReason: 'abort', tokens: [], speculative });
      expect(created).not.toHaveBeenCalled();
      created.mockRestore();
      const { tokens } = await running;
      expect([...(await session[native].tokens())]).toEqual([...prompt, ...tokens]);
      session.dispose();
      await settled();
    });

    it('proposes nothing beyond the context of the draft model', async () => {
      const short = await Model.load(small(128, 1, { max_position_embeddings: 12 }), { device: device() });
      const { tokens, speculative } = await generate({ maxTokens: 20, speculative: { draft: short } });
      expect(tokens).toEqual((await generate({ maxTokens: 20 })).tokens);
      // 12 rows, and a proposal that is not appended.
      expect(speculative?.proposedTokens).toBe(speculative?.acceptedTokens);
      expect(speculative?.acceptedTokens).toBeLessThanOrEqual(8);
      expect(speculative?.acceptedTokens).toBeGreaterThan(3);
      const none = await generate({ maxTokens: 3, speculative: { draft: short } }, Array(14).fill(1));
      expect(none.speculative).toEqual({ proposedTokens: 0, acceptedTokens: 0, steps: 2 });
      short.dispose();
    });

    it('fails with the error of its draft model, and keeps the session in step', async () => {
      const draft = await Model.load(small(128, 2), { device: device() });
      const session = await model.createSession();
      const generation = model.generate(prompt, { session, maxTokens: 100, speculative: { draft } });
      const heard: number[] = [];
      const error = await errorOf(async () => {
        for await (const { token } of generation) {
          heard.push(token);
          if (heard.length === 3) draft.dispose();
        }
      });
      expect(error.code).toBe('ERR_DISPOSED');
      // The last token is not in the cache, as without proposals.
      expect([...(await session[native].tokens())]).toEqual([...prompt, ...heard.slice(0, -1)]);
      session.dispose();
      expect((await errorOf(() => generate({ speculative: { draft } }))).code).toBe('ERR_DISPOSED');
      await settled();
    });

    it('rejects other options', async () => {
      const wide = await Model.load(small(130), { device: device() });
      const fake = Object.create(Model.prototype);
      for (const [speculative, text] of [
        [null, 'speculative must be an object'],
        [true, 'speculative must be an object'],
        [{ ngrams: 3 }, 'unknown name "ngrams" in speculative: did you mean ngram?'],
        [{ ngram: 0 }, 'speculative.ngram'],
        [{ ngram: 17 }, 'speculative.ngram'],
        [{ ngram: true }, 'speculative.ngram'],
        [{ maxTokens: 0 }, 'speculative.maxTokens'],
        [{ maxTokens: 16 }, 'speculative.maxTokens'],
        [{ draft: null }, 'speculative.draft must be a model'],
        [{ draft: {} }, 'speculative.draft must be a model'],
        [{ draft: 'model' }, 'speculative.draft must be a model'],
        [{ draft: fake }, 'speculative.draft must be a model'],
        [{ draft: new Proxy(other, {}) }, 'speculative.draft must be a model'],
        [{ draft: other, ngram: 2 }, 'both ngram and draft'],
        [{ draft: wide }, 'vocabSize of 130'],
      ] as [SpeculativeOptions, string][]) {
        const error = await errorOf(() => generate({ speculative }));
        expect({ code: error.code, message: error.message }).toEqual({
          code: 'ERR_INVALID_ARGUMENT',
          message: expect.stringContaining(text),
        });
      }
      wide.dispose();
    });
  });
});
