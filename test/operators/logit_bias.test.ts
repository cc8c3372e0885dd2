// Masks of allowed tokens and biases of logits: of a batch step, and as options of generate. Each
// token is compared with the reference, applied to the logits of a second session.

import type { NativeBiases, NativeSampling } from '../../lib/addon';
import { Model, type Session } from '../../lib/index';
import { native } from '../../lib/internal';
import { LogitBiases } from '../../lib/logit_bias';
import { randomCheckpoint } from '../support/checkpoints';
import { errorOf, onEveryDevice, reduced } from '../support/devices';
import { Random } from '../support/numbers';
import { type Sampling, sample } from './reference_sampling';

const greedy: NativeSampling = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 4n };
const vocabSize = 300; // the last word of a mask has bits beyond it
const numWords = Math.ceil(vocabSize / 32);
const { NEGATIVE_INFINITY } = Number;

/** A mask that allows the tokens of `isAllowed`, with all bits beyond the vocabulary set. */
function maskOf(isAllowed: (token: number) => boolean): Uint32Array {
  const mask = new Uint32Array(numWords);
  for (let token = 0; token < 32 * numWords; token++) {
    if (token >= vocabSize || isAllowed(token)) mask[token >> 5] = (mask[token >> 5] as number) | (1 << (token & 31));
  }
  return mask;
}

function biasesOf(biases: ReadonlyMap<number, number>): NativeBiases {
  const tokens = Int32Array.from(biases.keys()).sort();
  return { tokens, values: Float32Array.from(tokens, (token) => biases.get(token) as number) };
}

/** What one row of a step has besides its session. */
type Limits = Pick<Sampling, 'allowed' | 'biases'>;

const some = new Map([
  [0, 0.5],
  [31, -0.75],
  [32, 2],
  [170, NEGATIVE_INFINITY],
  [299, 1.25],
]);
const prompt = [3, 250, 17, 17, 42];
const ofPrompt = new Map(prompt.map((token) => [token, 4]));
const all = new Map(Array.from({ length: vocabSize }, (_, token) => [token, ((token * 37) % 17) / 4 - 2]));

describe('LogitBiases', () => {
  it('adds the penalties of what was drawn to the given biases, in rising order of tokens', () => {
    const random = new Random(3);
    const given = new Map([
      [7, 1],
      [200, NEGATIVE_INFINITY],
    ]);
    const options = { logitBias: given, frequencyPenalty: 0.25, presencePenalty: -0.5 };
    const biases = LogitBiases.create(options, vocabSize) as LogitBiases;
    given.set(9, 5); // is not seen any more
    const counts = new Map<number, number>();
    for (let i = 0; i < 500; i++) {
      const expected = new Map([
        [7, 1],
        [200, NEGATIVE_INFINITY],
      ]);
      for (const [token, count] of counts) expected.set(token, (expected.get(token) ?? 0) - 0.25 * count + 0.5);
      expect(biases.current).toEqual(biasesOf(expected));
      const token = random.integer(0, vocabSize - 1);
      counts.set(token, (counts.get(token) ?? 0) + 1);
      biases.accept(token);
    }
  });

  it('is nothing without a bias or a penalty', () => {
    expect(LogitBiases.create({ logitBias: {}, frequencyPenalty: 0, presencePenalty: 0 }, 5)).toBeUndefined();
    expect(LogitBiases.create({ logitBias: new Map() }, 5)).toBeUndefined();
  });
});

onEveryDevice((device) => {
  let model: Model;
  beforeAll(async () => {
    const { config } = randomCheckpoint({ vocabSize });
    model = await Model.random(config, { device: device(), dtype: 'f32', seed: 2 });
  });
  afterAll(() => model?.dispose());

  const itemOf = (session: Session, tokens: readonly number[], sampling: NativeSampling, limits: Limits, draw = 0) => ({
    session: session[native],
    tokens: Int32Array.from(tokens),
    chunks: 'all' as const,
    sampling,
    draw,
    continues: true,
    allowed: limits.allowed,
    biases: limits.biases && biasesOf(limits.biases),
  });

  const drawn: [name: string, Partial<NativeSampling>][] = [
    ['greedy', {}],
    ['temperature 2', { temperature: 2 }],
    ['temperature 1 with a repetition penalty', { temperature: 1, repetitionPenalty: 2 }],
    ['top 7', { temperature: 2, topK: 7 }],
    ['top-p 0.9', { temperature: 2, topP: 0.9 }],
    ['all of them', { temperature: 1.5, topK: 40, topP: 0.9, minP: 0.02, repetitionPenalty: 1.2 }],
  ];
  const limited: [name: string, Limits][] = [
    ['a mask of every third token', { allowed: maskOf((token) => token % 3 === 1) }],
    ['a mask of fewer tokens than top-k', { allowed: maskOf((token) => token === 5 || token >= 297) }],
    ['some biases', { biases: some }],
    ['biases of all tokens', { biases: all }],
    ['biases of the prompt', { biases: ofPrompt }],
    ['a mask and biases', { allowed: maskOf((token) => token > 20 && token < 299), biases: some }],
  ];
  it.each(drawn.flatMap(([name, sampling]) => limited.map((limits) => [name, ...limits, sampling] as const)))(
    "draws the reference's tokens: %s, %s",
    async (_, __, limits, options) => {
      const sampling = { ...greedy, ...options };
      using session = await model.createSession();
      using other = await model.createSession();
      let numClose = 0;
      const steps = reduced ? 3 : 12;
      const history = [...prompt];
      let appended: readonly number[] = prompt;
      let logits = await other.prefill(prompt);
      for (let step = 0; step < steps; step++) {
        const items = [itemOf(session, appended, sampling, limits, step)];
        const [result] = await model[native].step({ items });
        expect(result?.error).toBeUndefined();
        const token = result?.token as number;
        const expected = sample(logits, history, { ...sampling, ...limits }, step);
        // The second session may round differently, so a draw at an edge may go either way.
        if (expected.margin < 1e-6) numClose++;
        else expect(token).toBe(expected.token);
        history.push(token);
        appended = [token];
        logits = await other.decode(token);
      }
      expect(numClose).toBeLessThan(2);
    },
  );

  it('draws for each row of a batch what it draws alone, with and without masks and biases', async () => {
    const sampling = { ...greedy, temperature: 1.5, repetitionPenalty: 1.1 };
    const rows: Limits[] = [{}, ...limited.map(([, limits]) => limits), {}, { allowed: maskOf(() => true) }];
    const run = async (indices: readonly number[]): Promise<number[][]> => {
      const sessions = await Promise.all(indices.map(() => model.createSession()));
      for (const session of sessions) await session.prefill(prompt);
      const tokens: number[][] = indices.map((i) => [i]);
      for (let draw = 0; draw < 4; draw++) {
        const items = sessions.map((session, j) => {
          const limits = rows[indices[j] as number] as Limits;
          // Masks change from step to step.
          const { allowed } = limits;
          const mask = draw % 2 === 1 && allowed ? allowed.map((word) => word | 0xff00) : allowed;
          return itemOf(session, tokens[j]?.slice(-1) as number[], sampling, { ...limits, allowed: mask }, draw);
        });
        const results = await model[native].step({ items });
        results.forEach(({ token }, j) => void tokens[j]?.push(token as number));
      }
      for (const session of sessions) session.dispose();
      return tokens;
    };
    const alone: number[][] = [];
    for (const i of rows.keys()) alone.push(...(await run([i])));
    expect(await run([...rows.keys()])).toEqual(alone);
    // Rows without any are as they are by themselves, and a mask of all tokens changes nothing.
    expect(alone.at(-1)?.slice(1)).not.toEqual(alone[1]?.slice(1));
  });

  it('fails only the item whose mask or biases leave no token, and restores its session', async () => {
    using a = await model.createSession();
    using b = await model.createSession();
    const none = new Map(Array.from({ length: vocabSize }, (_, token) => [token, NEGATIVE_INFINITY]));
    const rest = new Map([...none].slice(0, 299));
    for (const limits of [
      { allowed: maskOf(() => false) },
      { biases: none },
      { allowed: maskOf((token) => token < 299), biases: rest },
    ]) {
      for (const temperature of [0, 1]) {
        const sampling = { ...greedy, temperature };
        const results = await model[native].step({
          items: [itemOf(a, [5], sampling, limits), itemOf(b, [5], sampling, {})],
        });
        expect(results[0]).toMatchObject({
          consumed: 0,
          error: {
            code: 'ERR_INVALID_ARGUMENT',
            message: expect.stringMatching(/mask of allowed tokens and the biases leave none of the 300 logits/),
          },
        });
        expect(results[1]?.token).toBeGreaterThanOrEqual(0);
        expect(a.kvLen).toBe(0);
      }
    }
    const [result] = await model[native].step({ items: [itemOf(a, [5], greedy, { biases: rest })] });
    expect(result?.token).toBe(299);
  });

  const masks = [new Uint32Array(numWords - 1), new Uint32Array(numWords + 1), new Int32Array(numWords), [1]];
  const biases: [tokens: unknown, values: unknown, what: string][] = [
    [Int32Array.of(5), Float32Array.of(1, 2), 'biases.values'],
    [[5], Float32Array.of(1), 'biases.tokens'],
    [Int32Array.of(5, 5), Float32Array.of(1, 2), 'biases.tokens[1] is 5'],
    [Int32Array.of(6, 5), Float32Array.of(1, 2), 'biases.tokens[1] is 5'],
    [Int32Array.of(-1), Float32Array.of(1), 'biases.tokens[0] is -1'],
    [Int32Array.of(vocabSize), Float32Array.of(1), 'biases.tokens[0] is 300'],
    [Int32Array.of(5), Float32Array.of(Number.NaN), 'biases.values[0] is nan'],
    [Int32Array.of(5), Float32Array.of(Number.POSITIVE_INFINITY), 'biases.values[0] is inf'],
  ];
  it.each([
    ...masks.map((allowed) => [{ allowed }, 'allowed'] as const),
    ...biases.map(([tokens, values, what]) => [{ biases: { tokens, values } }, what] as const),
  ])('a step rejects wrong masks and biases: %j', async (wrong, what) => {
    using session = await model.createSession();
    const item = { ...itemOf(session, prompt, greedy, {}), ...wrong };
    // biome-ignore lint/suspicious/noExplicitAny: wrong types
    const error = await errorOf(() => model[native].step({ items: [item as any] }));
    expect([error.code, error.message]).toEqual(['ERR_INVALID_ARGUMENT', expect.stringContaining(what)]);
  });

  describe('generate', () => {
    const maxTokens = reduced ? 6 : 20;

    it.each([0, 1.5])("subtracts the penalties of the generation's tokens, at temperature %d", async (temperature) => {
      const penalties = { frequencyPenalty: 0.6, presencePenalty: 0.4 };
      using session = await model.createSession();
      await session.prefill(prompt); // what was in the session is not counted
      const options = { ...penalties, logitBias: Object.fromEntries(some), temperature, seed: 8, maxTokens, session };
      const { tokens } = await model.generate([8], options).result;
      using other = await model.createSession();
      let logits = await other.prefill([...prompt, 8]);
      for (const [step, token] of tokens.entries()) {
        const counts = new Map<number, number>();
        for (const before of tokens.slice(0, step)) counts.set(before, (counts.get(before) ?? 0) + 1);
        const biases = new Map(some);
        for (const [drawnToken, count] of counts) {
          biases.set(drawnToken, (some.get(drawnToken) ?? 0) - 0.6 * count - 0.4);
        }
        const expected = sample(logits, [], { ...greedy, temperature, seed: 8n, biases }, step);
        if (expected.margin >= 1e-5) expect(token).toBe(expected.token);
        logits = await other.decode(token);
      }
      expect(tokens.length).toBe(maxTokens);
    });

    it('draws each generation of a batch as alone, and takes logitBias as an object or a Map', async () => {
      const wanted = new Map([
        [11, 100],
        [12, 100],
      ]);
      const requests = [
        {},
        { logitBias: wanted },
        { logitBias: Object.fromEntries(wanted) },
        { presencePenalty: 2, repetitionPenalty: 1.2 },
        { frequencyPenalty: -2 },
        { temperature: 0 },
      ].map((options) => ({ temperature: 1, seed: 5, maxTokens, ...options }));
      const alone: number[][] = [];
      for (const options of requests) alone.push((await model.generate(prompt, options).result).tokens);
      const together = await Promise.all(requests.map((options) => model.generate(prompt, options).result));
      expect(together.map(({ tokens }) => tokens)).toEqual(alone);
      expect(alone[2]).toEqual(alone[1]);
      expect(alone[1]?.filter((token) => !wanted.has(token))).toEqual([]);
      expect(alone[0]).not.toEqual(alone[4]);
    });

    it('never draws a token of bias -Infinity', async () => {
      const { tokens } = await model.generate(prompt, { maxTokens: 4 }).result;
      const logitBias = new Map(tokens.map((token) => [token, NEGATIVE_INFINITY]));
      const other = await model.generate(prompt, { maxTokens, logitBias }).result;
      expect(other.tokens.filter((token) => logitBias.has(token))).toEqual([]);
    });

    const forbidden = Object.fromEntries(Array.from({ length: vocabSize }, (_, token) => [token, NEGATIVE_INFINITY]));
    it.each([
      [{ logitBias: [1] }, 'logitBias must be an object or a Map'],
      [{ logitBias: 5 }, 'logitBias must be'],
      [{ logitBias: null }, 'logitBias must be'],
      [{ logitBias: { 300: 1 } }, 'a key of logitBias must be a token, an integer from 0 to 299'],
      [{ logitBias: { '-1': 1 } }, 'a key of logitBias must be a token'],
      [{ logitBias: { '01': 1 } }, 'a key of logitBias must be a token'],
      [{ logitBias: { '': 1 } }, 'a key of logitBias must be a token'],
      [{ logitBias: new Map([[1.5, 1]]) }, 'a key of logitBias must be a token'],
      [{ logitBias: new Map([['1', 1]]) }, 'a key of logitBias must be a token'],
      [{ logitBias: { 5: Number.NaN } }, 'logitBias[5] must be a number'],
      [{ logitBias: { 5: Number.POSITIVE_INFINITY } }, 'logitBias[5] must be a number'],
      [{ logitBias: { 5: 1e7 } }, 'logitBias[5] must be a number from -1000000 to 1000000'],
      [{ logitBias: { 5: '1' } }, 'logitBias[5] must be a number'],
      [{ logitBias: forbidden }, 'logitBias forbids all tokens'],
      [{ frequencyPenalty: 2.1 }, 'frequencyPenalty must be a number from -2 to 2'],
      [{ frequencyPenalty: '1' }, 'frequencyPenalty'],
      [{ presencePenalty: -2.1 }, 'presencePenalty must be a number from -2 to 2'],
      [{ presencePenalty: Number.NaN }, 'presencePenalty'],
      [{ presencePenalty: null }, 'presencePenalty'],
    ])('rejects %j', async (options, message) => {
      // biome-ignore lint/suspicious/noExplicitAny: what a caller without types may pass
      const error = await errorOf(() => model.generate(prompt, options as any).result);
      expect([error.code, error.message]).toEqual(['ERR_INVALID_ARGUMENT', expect.stringContaining(message)]);
    });
  });
});
