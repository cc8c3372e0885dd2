// Model.score, and the log probabilities of generated tokens: compared with the logits of a session.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type GenerateOptions, Model, type ModelOptions } from '../../lib/index';
import { native } from '../../lib/internal';
import { writeArchitecture } from '../support/architectures';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { firstBitDifference } from '../support/compare';
import { errorOf, long, onEveryDevice, reduced } from '../support/devices';
import { projectRoot, tldrDirectory } from '../support/fixtures';
import { expectCode, expectMessage, invalid } from '../support/misuse';
import { logProbs, topTokens } from '../support/reference';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const heldOut = readFileSync(join(projectRoot, 'bench', 'data', 'tldr-heldout.txt'), 'utf8');
const sequence = (length: number, vocabSize: number) => Array.from({ length }, (_, i) => (i * i + 7 * i) % vocabSize);

/** The log probabilities of the tokens after the first, by decoding. */
async function decoded(model: Model, tokens: readonly number[]): Promise<number[]> {
  const session = await model.createSession();
  const values: number[] = [];
  for (const [i, token] of tokens.slice(0, -1).entries()) {
    values.push(logProbs(await session.decode(token))[tokens[i + 1] as number] as number);
  }
  session.dispose();
  return values;
}

/** The largest difference. NaN if one is NaN. */
const distance = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Array.from(a, (x, i) => Math.abs(x - (b[i] as number))).reduce((most, x) => Math.max(most, x), 0);

onEveryDevice((device) => {
  // What is after the last layer: a soft cap (gemma2), a scale (granite), an LM head of its own or that of
  // the embedding, quantized or not. And what a layer has for all rows: the latent row, two softmaxes, windows.
  const all: [string, string, ModelOptions][] = [
    ['gemma2', 'a soft cap of the logits', {}],
    ['granite', 'a scale of the logits', {}],
    ['qwen3', 'an LM head of i8', { weightType: 'i8' }],
    ['llama-rope', 'an LM head that is not quantized', { weightType: 'i4', quantizeLmHead: false }],
    ['minicpm3', 'latent attention', {}],
    ['diffllama', 'differential attention', {}],
    ['gemma3', 'windows', {}],
    ['arcee', 'an FFN without a gate', {}],
  ];
  it.each(reduced ? all.slice(0, 3) : all)('%s (%s) gives what decoding gives', async (folder, _, options) => {
    const directory = writeArchitecture(directories.make(), folder, {});
    const model = await Model.load(directory, { device: device(), dtype: 'f32', ...options });
    const tokens = sequence(64, model.config.vocabSize);
    const score = await model.score(tokens);
    expect(score.tokens).toEqual(tokens);
    expect(score.logprobs.length).toBe(tokens.length - 1);
    expect(distance(score.logprobs, await decoded(model, tokens))).toBeLessThan(1e-3);
    await device().synchronize(); // frees the session
    expect(model.kvCache.pages).toBe(0);
    model.dispose();
  });

  describe('chunks', () => {
    let model: Model;
    // Chunks have 512 tokens, unless a GPU has much memory.
    const tokens = sequence(reduced ? 520 : 1100, 120);
    let expected: Float32Array;
    beforeAll(async () => {
      const directory = directories.make();
      const spec = { hiddenSize: 32, heads: [2, 1, 2] as [number, number, number], intermediateSize: 32, augQSize: 0 };
      writeCheckpoint(directory, randomCheckpoint({ ...spec, vocabSize: 120, numLayers: 1 }));
      model = await Model.load(directory, { device: device(), prefixCacheBytes: 1 << 20 });
      expected = (await model.score(tokens)).logprobs;
    });
    afterAll(() => model.dispose());

    it('continue each other', async () => {
      const session = await model.createSession();
      let length = 0;
      for (const end of [1, 64, 65, 511, 512, 513, 1024, 1099].filter((place) => place < tokens.length)) {
        const next = logProbs(await session.prefill(tokens.slice(length, end)));
        expect(expected[end - 1]).toBeCloseTo(next[tokens[end] as number] as number, 4);
        length = end;
      }
      session.dispose();
    });

    it('have all rows, whatever the prefix cache has', async () => {
      const { prefixPages } = model.kvCache;
      expect(prefixPages).toBeGreaterThan(0);
      expect(firstBitDifference((await model.score(tokens)).logprobs, expected)).toBe(-1);
      await model.score(tokens.slice(0, 130).reverse()); // which does not evict prompts
      await device().synchronize();
      expect(model.kvCache).toMatchObject({ pages: prefixPages, prefixPages });
    });

    long('leave room for generations, and change nothing in them', async () => {
      const options = { maxTokens: 6, logprobs: 2 };
      const alone = await model.generate([5, 6], options).result;
      const generation = model.generate([5, 6], { ...options, maxTokens: 4 });
      await generation[Symbol.asyncIterator]().next();
      const order: string[] = [];
      const scores = Promise.all([model.score(tokens), model.score(tokens)]).finally(() => order.push('scores'));
      void generation.result.finally(() => order.push('generation'));
      for (const { logprobs } of await scores) expect(firstBitDifference(logprobs, expected)).toBe(-1);
      const { tokens: drawn, logprobs } = await generation.result;
      expect([drawn, logprobs]).toEqual([alone.tokens.slice(0, 4), alone.logprobs?.slice(0, 4)]);
      expect(order).toEqual(['generation', 'scores']); // of 6 chunks
    });

    /** The rows of an item of a batch, which appends all chunks. */
    const step = async (changes: object = {}) => {
      const session = await model.createSession();
      const item = { session: session[native], tokens: Int32Array.from(tokens.slice(0, -1)), chunks: 'all' as const };
      const rows = { rows: 'logProbs' as const, targets: Int32Array.from(tokens.slice(1)), ...changes };
      try {
        const [result] = await model[native].step({ items: [{ ...item, ...rows }] });
        if (result?.error !== undefined) {
          expect(session.kvLen).toBe(0);
          throw result.error;
        }
        return result?.rows as Float64Array;
      } finally {
        session.dispose();
      }
    };
    long('are one step of the native model, too', async () => {
      expect(firstBitDifference(Float32Array.from(await step()), expected)).toBe(-1);
    });

    it('have targets, which the device checks', async () => {
      const few = Int32Array.of(1, 2);
      await expectCode(() => step({ rows: 'all' }), invalid, 'rows is "all"');
      await expectCode(() => step({ targets: few }), invalid, 'targets has 2 tokens');
      await expectCode(() => step({ logits: new Float32Array(120) }), invalid, 'rows is given with sampling or logits');
      for (const wrong of [-1, 120]) {
        const outside = () => step({ tokens: few, targets: Int32Array.of(1, wrong) });
        await expectCode(outside, invalid, `token ${wrong} at index 1 is outside the vocabulary [0, 120)`);
      }
    });

    it('end when the signal is aborted', async () => {
      const abortable = () => {
        const controller = new AbortController();
        return { signal: controller.signal, abort: () => controller.abort() };
      };
      await expectCode(() => model.score(tokens, { signal: AbortSignal.abort() }), 'ABORT_ERR');
      const message = 'the signal was aborted before the whole text was computed';
      for (const call of ['score', 'embed'] as const) {
        const { signal, abort } = abortable();
        const started = call === 'score' ? model.score(tokens, { signal }) : model.embed([tokens], { signal });
        abort();
        await expectMessage(() => started, message, 'ABORT_ERR');
      }
      const { signal, abort } = abortable();
      const running = errorOf(() => model.score(tokens.slice(0, reduced ? 80 : undefined), { signal }));
      setTimeout(abort, 5);
      const error = await running.catch(() => null); // it may have been done
      if (error !== null) expect([error.code, error.message]).toEqual(['ABORT_ERR', message]);
      expect((await model.score([1, 2, 3])).logprobs.length).toBe(2);
      await device().synchronize();
      expect(model.kvCache.pages).toBe(model.kvCache.prefixPages);
    });

    it('of one token give nothing, and of two one', async () => {
      expect(await model.score([7])).toEqual({ tokens: [7], logprobs: new Float32Array(0) });
      expect((await model.score([7, 8])).logprobs[0]).toBeCloseTo((await decoded(model, [7, 8]))[0] as number, 4);
    });

    it('must fit into the context', async () => {
      expect((await model.score(new Array(2048).fill(1))).logprobs.length).toBe(2047);
      const text = new Array(2049).fill(1);
      const message = 'the text has 2049 tokens, and the context of the model has 2048: pass it in parts';
      await expectMessage(() => model.score(text), message, 'ERR_KV_CACHE_FULL');
      await expectMessage(() => model.embed([[1], text]), message, 'ERR_KV_CACHE_FULL');
    });
  });

  describe('the embedded model', () => {
    let model: Model;
    beforeAll(async () => {
      model = await Model.load(tldrDirectory, { device: device(), dtype: 'f32' });
    });
    afterAll(() => model.dispose());

    long('scores a text with the tokens of a prompt', async () => {
      const text = heldOut.slice(0, 300);
      const { tokens, logprobs } = await model.score(text);
      expect(tokens).toEqual(model.tokenizer?.encode(text));
      expect(firstBitDifference((await model.score(tokens)).logprobs, logprobs)).toBe(-1);
    });

    long('scores held-out pages as decoding does, with the perplexity of a trained model', async () => {
      const { tokens, logprobs } = await model.score(heldOut.slice(0, 2000));
      expect(distance(logprobs, await decoded(model, tokens))).toBeLessThan(1e-3);
      expect(Math.exp(-logprobs.reduce((sum, x) => sum + x, 0) / logprobs.length)).toBeLessThan(40);
    });

    it('gives the log probabilities of the tokens that it generates, as they are without options', async () => {
      const prompt = '# tar\n';
      const maxTokens = reduced ? 2 : 4;
      const options: GenerateOptions = { maxTokens, temperature: 1.5, topK: 20, repetitionPenalty: 1.3, seed: 4 };
      const plain = await model.generate(prompt, options).result;
      expect(plain).not.toHaveProperty('logprobs');
      // Beside others that have none, or another number of them.
      const generation = model.generate(prompt, { ...options, logprobs: 3 });
      const others = [
        model.generate(prompt, options).result,
        model.generate('x', { logprobs: 0, maxTokens: 2 }).result,
      ];
      const emitted = [];
      for await (const token of generation) emitted.push(token);
      const { tokens, logprobs = [] } = await generation.result;
      expect(tokens).toEqual(plain.tokens);
      expect((await others[0])?.tokens).toEqual(plain.tokens);
      expect((await others[1])?.logprobs?.map(({ topLogprobs }) => topLogprobs)).toEqual([[], []]);
      expect(emitted.map(({ logprob, topLogprobs }) => ({ logprob, topLogprobs }))).toEqual(
        logprobs.map(({ logprob, topLogprobs }) => ({ logprob, topLogprobs })),
      );
      const session = await model.createSession();
      let logits = await session.prefill(model.tokenizer?.encode(prompt) as number[]);
      for (const [i, token] of tokens.entries()) {
        const expected = logProbs(logits);
        const { logprob, topLogprobs, text } = logprobs[i] as (typeof logprobs)[0];
        expect(logprob).toBeCloseTo(expected[token] as number, 3);
        expect(text).toBe(model.tokenizer?.stream({ continued: true, skipSpecialTokens: false }).push(token));
        expect(topLogprobs.map((likely) => likely.token)).toEqual(topTokens(logits, 3));
        for (const likely of topLogprobs) expect(likely.logprob).toBeCloseTo(expected[likely.token] as number, 3);
        logits = await session.decode(token);
      }
      session.dispose();
    });

    it('rejects wrong arguments', async () => {
      const generate = (logprobs: unknown) => model.generate('x', { logprobs: logprobs as number }).result;
      for (const wrong of [-1, 21, 1.5, true, null, Number.NaN]) {
        await expectCode(() => generate(wrong), invalid, 'logprobs must be an integer from 0 to 20');
      }
      await expectMessage(() => model.score(5 as never), 'text must be a string or an array of tokens, not 5');
      await expectMessage(() => model.score([]), 'text must be at least one token id, not an array of 0');
      const texts = ['a', 'b'] as never;
      await expectMessage(() => model.score(texts), 'text must be one text or one array of tokens, not an array of 2');
      await expectMessage(() => model.score([4096]), 'text[0] must be an integer from 0 to 4095, not 4096');
      await expectMessage(() => model.score('x', null as never), 'options must be an object, not null');
      await expectMessage(() => model.score('x', { signal: 1 as never }), 'signal must be an AbortSignal, not 1');
    });
  });

  it('needs a tokenizer for text, and a model that is not disposed', async () => {
    const model = await Model.random(randomCheckpoint().config, { device: device() });
    await expectMessage(
      () => model.score('x'),
      'text: a text requires a tokenizer, and the model has no tokenizer.json: pass tokens',
    );
    expect((await model.generate([1], { maxTokens: 1, logprobs: 1 }).result).logprobs?.[0]?.text).toBe('');
    model.dispose();
    for (const tokens of [[1], [1, 2]]) await expectCode(() => model.score(tokens), 'ERR_DISPOSED');
  });
});
