// Sampling through generate: compares each token with the reference, applied to the logits of a
// second session.

import { Model } from '../../lib/index';
import { knownLogits, randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { argmax } from '../support/compare';
import { onEveryDevice, reduced } from '../support/devices';
import { philox4x32, type Sampling, sample, uniform } from './reference_sampling';

describe('the reference', () => {
  it('implements Philox with the known answers of the Random123 distribution', () => {
    const hex = (words: bigint[]): string => words.map((word) => word.toString(16).padStart(8, '0')).join(' ');
    expect(hex(philox4x32([0n, 0n, 0n, 0n], [0n, 0n]))).toBe('6627e8d5 e169c58d bc57ac4c 9b00dbd8');
    const ones = 0xffffffffn;
    expect(hex(philox4x32([ones, ones, ones, ones], [ones, ones]))).toBe('408f276d 41c83b0e a20bc7c6 6d5451fd');
    expect(hex(philox4x32([0x243f6a88n, 0x85a308d3n, 0x13198a2en, 0x03707344n], [0xa4093822n, 0x299f31d0n]))).toBe(
      'd16cfe09 94fdcceb 5001e420 24126ea1',
    );
  });

  it('is uniform', () => {
    let sum = 0;
    for (let step = 0; step < 20_000; step++) sum += uniform(7n, step);
    expect(Math.abs(sum / 20_000 - 0.5)).toBeLessThan(0.01);
  });

  it('filters as defined', () => {
    const logits = [Math.log(4), Math.log(1), Math.log(3), Math.log(2)];
    const draws = (options: Partial<Sampling>, history: number[] = []): number[] => {
      const seen = new Set<number>();
      for (let step = 0; step < 300; step++)
        seen.add(
          sample(
            logits,
            history,
            { temperature: 1, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 1n, ...options },
            step,
          ).token,
        );
      return [...seen].sort();
    };
    expect(draws({})).toEqual([0, 1, 2, 3]);
    expect(draws({ topK: 2 })).toEqual([0, 2]);
    expect(draws({ topP: 0.4 })).toEqual([0]);
    expect(draws({ topP: 0.41 })).toEqual([0, 2]);
    expect(draws({ minP: 0.5 })).toEqual([0, 2, 3]);
    expect(draws({ temperature: 0 })).toEqual([0]);
    expect(draws({ temperature: 0, repetitionPenalty: 100 }, [0])).toEqual([2]);
  });
});

const plain: Sampling = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 0n };
const settings: [string, Partial<Sampling>][] = [
  ['greedy', {}],
  ['greedy with a repetition penalty', { repetitionPenalty: 1.3 }],
  ['greedy with a penalty below 1', { repetitionPenalty: 0.7 }],
  ['temperature 1', { temperature: 1 }],
  ['temperature 0.3', { temperature: 0.3, seed: 5n }],
  ['temperature 5', { temperature: 5, seed: 6n }],
  ['a seed of 64 bits', { temperature: 1, seed: 0xfedcba9876543210n }],
  ['top 1', { temperature: 1, topK: 1 }],
  ['top 7', { temperature: 2, topK: 7 }],
  ['topK above the vocabulary', { temperature: 1, topK: 100_000 }],
  ['top-p 0.5', { temperature: 2, topP: 0.5 }],
  ['top-p 0.95', { temperature: 2, topP: 0.95, seed: 9n }],
  ['top-p tiny', { temperature: 2, topP: 1e-6 }],
  ['min-p 0.1', { temperature: 2, minP: 0.1 }],
  ['min-p 1', { temperature: 2, minP: 1 }],
  ['all of them', { temperature: 1.5, topK: 40, topP: 0.9, minP: 0.02, repetitionPenalty: 1.2, seed: 11n }],
];

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

/** The directory of a {@link knownLogits}. */
function checkpointOf(logits: readonly number[]): string {
  const directory = directories.make();
  writeCheckpoint(directory, knownLogits(logits));
  return directory;
}

onEveryDevice((device) => {
  describe('with known logits', () => {
    const models = new Map<string, Model>();
    afterAll(() => {
      for (const model of models.values()) model.dispose();
    });

    /** The tokens that `model` draws, and those of the reference from the same logits. */
    const draw = async (logits: readonly number[], options: Partial<Sampling>): Promise<[number[], number[]]> => {
      const key = logits.join();
      if (!models.has(key)) models.set(key, await Model.load(checkpointOf(logits), { device: device() }));
      const model = models.get(key) as Model;
      const sampling = { ...plain, temperature: 1, seed: 3n, ...options };
      const { tokens } = await model.generate([0], {
        ...sampling,
        maxTokens: reduced ? (logits.length > 1000 ? 4 : 12) : 24,
      }).result;
      const session = await model.createSession();
      const seen = await session.prefill([0]);
      session.dispose();
      return [tokens, tokens.map((_, step) => sample(seen, [], sampling, step).token)];
    };

    // Equal logits have weights of exactly 1, and the others of exactly 0.
    const few = [0, 0, -1e4, 0, 0, ...new Array(40).fill(-1e4)];
    it.each([
      ['top-p stops when the mass is reached exactly', { topP: 0.5 }, [0, 1]],
      ['top-p of three quarters', { topP: 0.75 }, [0, 1, 3]],
      ['top-p just above the mass of a token', { topP: 0.251 }, [0, 1]],
      ['min-p 1 keeps all that equal the most likely token', { minP: 1 }, [0, 1, 3, 4]],
      ['min-p 1 after top-p', { minP: 1, topP: 0.75 }, [0, 1, 3]],
      ['top-k keeps the earlier of equal tokens', { topK: 3 }, [0, 1, 3]],
      ['top-p counts what top-k kept', { topK: 2, topP: 0.5 }, [0]],
    ])('%s', async (_, options, kept) => {
      const [tokens, expected] = await draw(few, options);
      expect(tokens).toEqual(expected);
      expect([...new Set(tokens)].sort()).toEqual(kept);
    });

    // More than the 4,096 that the CPU keeps in a heap. 1,400 likely tokens lie between less likely ones.
    const many = Array.from({ length: 4200 }, (_, token) => (token % 3 === 1 ? 1 : 0));
    it.each(reduced ? [1401, 4096, 4097] : [1, 1400, 1401, 4095, 4096, 4097, 4150, 4199, 4200])(
      'top %i of 4,200 tokens with ties',
      async (topK) => {
        const [tokens, expected] = await draw(many, { topK, temperature: 2 });
        expect(tokens).toEqual(expected);
      },
    );
    it.each(reduced ? [4097] : [4096, 4097, 4190])('top %i of 4,200 equal tokens are the first ones', async (topK) => {
      // Seeds of draws near the end of what is kept.
      const [tokens, expected] = await draw(new Array(4200).fill(0.5), { topK });
      expect(tokens).toEqual(expected);
      expect(Math.max(...tokens)).toBeLessThan(topK);
    });
    it('top-p of 4,200 equal tokens keeps the first ones', async () => {
      const [tokens, expected] = await draw(new Array(4200).fill(0.5), { topP: 0.25 });
      expect(tokens).toEqual(expected);
      expect(Math.max(...tokens)).toBeLessThan(1050);
    });

    it.each([{}, { temperature: 1, topK: 1 }])(
      '-0 and 0 are equal logits, so the earlier token wins: %j',
      async (options) => {
        // The penalty makes -0 of the logit of token 5.
        const logits = new Array(64).fill(-1);
        logits[5] = -1e-40;
        logits[9] = 0;
        const model = await Model.load(checkpointOf(logits), { device: device() });
        const { tokens } = await model.generate([5], { ...options, repetitionPenalty: 1e-6, maxTokens: 3 }).result;
        expect(tokens).toEqual([5, 5, 5]);
        model.dispose();
      },
    );
  });

  let model: Model;
  beforeAll(async () => {
    model = await Model.random(randomCheckpoint({ vocabSize: 300 }).config, {
      device: device(),
      dtype: 'f32',
      seed: 2,
    });
  });
  afterAll(() => model?.dispose());
  const prompt = [3, 250, 17, 17, 42];

  it.each(settings)("draws the reference's tokens: %s", async (_, options) => {
    const sampling = { ...plain, ...options };
    const maxTokens = reduced ? 20 : 60;
    const { tokens } = await model.generate(prompt, { ...sampling, maxTokens }).result;
    const session = await model.createSession();
    let logits = await session.prefill(prompt);
    const history = [...prompt];
    let numClose = 0;
    for (const [step, token] of tokens.entries()) {
      const expected = sample(logits, history, sampling, step);
      // The second session may round differently, so a draw at an edge may go either way.
      if (expected.margin < 1e-6) numClose++;
      else expect(token).toBe(expected.token);
      history.push(token);
      logits = await session.decode(token);
    }
    expect(tokens.length).toBe(maxTokens);
    expect(numClose).toBeLessThan(3);
    session.dispose();
  });

  it('repeats tokens for an equal seed, changes them for another, and draws a random seed by default', async () => {
    const run = async (seed?: number | bigint): Promise<string> =>
      (await model.generate(prompt, { temperature: 1, seed, maxTokens: 30 }).result).tokens.join();
    expect(await run(5)).toBe(await run(5));
    expect(await run(5)).toBe(await run(5n));
    expect(await run(5)).not.toBe(await run(6));
    expect(await run()).not.toBe(await run());
  });

  it('is greedy with top 1, min-p 1 or a tiny top-p', async () => {
    const greedy = (await model.generate(prompt, { maxTokens: 20 }).result).tokens;
    const session = await model.createSession();
    expect(greedy[0]).toBe(argmax(await session.prefill(prompt)));
    session.dispose();
    for (const options of [{ topK: 1 }, { minP: 1 }, { topP: 1e-9 }]) {
      expect(
        (await model.generate(prompt, { temperature: 3, seed: 1, maxTokens: 20, ...options }).result).tokens,
      ).toEqual(greedy);
    }
  });

  it('penalizes the tokens that the session contained before', async () => {
    const session = await model.createSession();
    await session.prefill(prompt);
    const { tokens } = await model.generate([8], { session, repetitionPenalty: 1.5, maxTokens: 30 }).result;
    const other = await model.createSession();
    let logits = await other.prefill([...prompt, 8]);
    const history = [...prompt, 8];
    for (const [step, token] of tokens.entries()) {
      const expected = sample(logits, history, { ...plain, repetitionPenalty: 1.5 }, step);
      if (expected.margin >= 1e-5) expect(token).toBe(expected.token);
      history.push(token);
      logits = await other.decode(token);
    }
    session.dispose();
    other.dispose();
  });

  it('does not penalize truncated tokens', async () => {
    const session = await model.createSession();
    await model.generate([...prompt, 8, 9, 10], { session, repetitionPenalty: 1.5, maxTokens: 20 }).result;
    await session.truncate(prompt.length);
    const again = await model.generate([20, 21, 22, 23], { session, repetitionPenalty: 1.5, maxTokens: 30 }).result;
    const fresh = await model.createSession();
    await fresh.prefill(prompt);
    const other = await model.generate([20, 21, 22, 23], { session: fresh, repetitionPenalty: 1.5, maxTokens: 30 })
      .result;
    expect(again.tokens).toEqual(other.tokens);
    session.dispose();
    fresh.dispose();
  });

  it('draws with the frequencies of the softmax', async () => {
    const session = await model.createSession();
    const logits = await session.prefill(prompt);
    const top = [...logits]
      .map((score, token) => ({ score, token }))
      .sort((a, b) => b.score - a.score)
      .slice(0, 3);
    const weights = top.map(({ score }) => Math.exp(score - (top[0] as { score: number }).score));
    const total = weights.reduce((a, b) => a + b, 0);
    const counts = new Map<number, number>();
    const rounds = device().id === 'emulated' ? (reduced ? 100 : 200) : 1500;
    for (let seed = 0; seed < rounds; seed++) {
      await session.truncate(prompt.length - 1);
      const [token] = (
        await model.generate([prompt[prompt.length - 1] as number], {
          session,
          temperature: 1,
          topK: 3,
          seed,
          maxTokens: 1,
        }).result
      ).tokens as [number];
      counts.set(token, (counts.get(token) ?? 0) + 1);
    }
    for (const [i, { token }] of top.entries()) {
      const p = (weights[i] as number) / total;
      // The limit is five standard deviations.
      expect(Math.abs((counts.get(token) ?? 0) / rounds - p)).toBeLessThan(
        5 * Math.sqrt((p * (1 - p)) / rounds) + 1e-9,
      );
    }
    expect([...counts.values()].reduce((a, b) => a + b, 0)).toBe(rounds);
    session.dispose();
  }, 60_000);

  it.each(
    [
      { temperature: Number.NaN },
      { temperature: -1 },
      { temperature: Number.POSITIVE_INFINITY },
      { temperature: '1' },
      { temperature: 1e39 },
      { topK: -1 },
      { topK: 1.5 },
      { topK: Number.NaN },
      { topK: '5' },
      { topP: 0 },
      { topP: 1.1 },
      { topP: -0.1 },
      { topP: Number.NaN },
      { minP: -0.1 },
      { minP: 1.1 },
      { minP: Number.NaN },
      { repetitionPenalty: 0 },
      { repetitionPenalty: -1 },
      { repetitionPenalty: Number.NaN },
      { repetitionPenalty: Number.POSITIVE_INFINITY },
      { seed: -1 },
      { seed: 1.5 },
      { seed: 2n ** 64n },
      { seed: 'x' },
      { seed: Number.NaN },
      { maxTokens: 0 },
      { maxTokens: -1 },
      { maxTokens: 1.5 },
      { maxTokens: Number.NaN },
      { maxTokens: '5' },
    ].map(
      (options) =>
        [
          Object.entries(options)
            .map(([key, value]) => `${key} ${String(value)}`)
            .join(),
          options,
        ] as const,
    ),
  )('rejects %s', async (_, options) => {
    // biome-ignore lint/suspicious/noExplicitAny: what a caller without types may pass
    await expect(model.generate(prompt, options as any).result).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringContaining(Object.keys(options)[0] as string),
    });
  });
});
