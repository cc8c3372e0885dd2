// Calls on a session run in the order in which they were made, also during a generation on it. The
// logits of a session are compared with those of a new one that has the expected tokens.

import { Model, openDevice, type Session } from '../../lib/index';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { firstBitDifference, logitError, modelTolerances } from '../support/compare';
import { errorOf, long, onEveryDevice, reduced } from '../support/devices';
import { tldrDirectory } from '../support/fixtures';
import { Random } from '../support/numbers';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

// Several chunks of 512 tokens.
const prompt = new Random(5).tokens(reduced ? 520 : 1100, 128);
const numChunks = Math.ceil(prompt.length / 512);
const maxTokens = 4;

onEveryDevice((device) => {
  let directory: string;
  let model: Model;
  let session: Session;
  /** The tokens that a generation appends to an empty session: its prompt and its own. */
  let generated: number[];
  beforeAll(async () => {
    directory = directories.make();
    writeCheckpoint(directory, randomCheckpoint({ heads: [4, 1, 2], headDim: 32, numLayers: 1 }));
    model = await Model.load(directory, { device: device() });
    generated = [...prompt, ...(await model.generate(prompt, { maxTokens }).result).tokens];
  });
  afterAll(() => model?.dispose());
  beforeEach(async () => {
    session = await model.createSession();
  });
  afterEach(() => session.dispose());

  const expectTokens = async (which: Session, tokens: readonly number[]): Promise<void> => {
    expect(which.kvLen).toBe(tokens.length);
    using fresh = await model.createSession();
    const expected = await fresh.prefill([...tokens, 7]);
    using fork = await which.fork();
    const logits = await fork.decode(7);
    expect(logitError(logits, Float64Array.from(expected))).toBeLessThanOrEqual(modelTolerances.f32);
  };
  const start = (options: Parameters<Model['generate']>[1] = {}) =>
    model.generate(prompt, { maxTokens, session, ...options });

  it('runs each method that is called after generate behind the generation, in the order of the calls', async () => {
    const generation = start();
    const done: string[] = [];
    const note =
      (name: string) =>
      <T>(value: T): T => {
        done.push(name);
        return value;
      };
    const [result, , fork] = await Promise.all([
      generation.result.then(note('generation')),
      session.prefill([7, 8, 9]).then(note('prefill')),
      session.fork().then(note('fork')),
      session.truncate(5).then(note('truncate')),
      session.decode(11).then(note('decode')),
    ]);
    expect(done.length).toBe(5);
    expect(done[0]).toBe('generation');
    expect(result.tokens).toEqual(generated.slice(prompt.length));
    await expectTokens(session, [...prompt.slice(0, 5), 11]);
    await expectTokens(fork, [...generated, 7, 8, 9]);
    fork.dispose();
  });

  it('ends a generation whose signal is aborted before the call at once, behind another one', async () => {
    const running = start().result;
    let isRunning = true;
    void running.then(() => {
      isRunning = false;
    });
    const { finishReason, tokens } = await start({ signal: AbortSignal.abort() }).result;
    expect({ finishReason, tokens, isRunning }).toEqual({ finishReason: 'abort', tokens: [], isRunning: true });
    expect((await running).tokens).toEqual(generated.slice(prompt.length));
    await expectTokens(session, generated);
  });

  it.each(reduced ? ['truncate'] : ['prefill', 'decode', 'truncate', 'fork'])(
    'runs %s behind a generation whose callback makes it',
    async (name) => {
      let call: Promise<unknown> | undefined;
      const generation = start({
        onPrefillProgress: ({ doneTokens }) => {
          if (doneTokens !== 512) return;
          const calls: Record<string, () => Promise<unknown>> = {
            prefill: () => session.prefill([1, 2]),
            decode: () => session.decode(1),
            truncate: () => session.truncate(0),
            fork: async () => (await session.fork()).dispose(),
          };
          call = calls[name]?.();
        },
      });
      expect((await generation.result).tokens).toEqual(generated.slice(prompt.length));
      await call;
      const appended = { prefill: [1, 2], decode: [1], fork: [] }[name];
      await expectTokens(session, appended === undefined ? [] : [...generated, ...appended]);
    },
  );

  it('removes exactly its own tokens after an abort within the prompt', async () => {
    await session.prefill([1, 2, 3]);
    const controller = new AbortController();
    let call: Promise<unknown> | undefined;
    const generation = start({
      signal: controller.signal,
      onPrefillProgress: ({ doneTokens }) => {
        if (doneTokens !== 512) return;
        call = session.prefill([10, 11, 12, 13]);
        controller.abort();
      },
    });
    expect((await generation.result).finishReason).toBe('abort');
    await call;
    await expectTokens(session, [1, 2, 3, 10, 11, 12, 13]);
  });

  it('does not hang if a callback or the body of a loop awaits a call on the session', async () => {
    const awaited: string[] = [];
    const generation = start({
      onPrefillProgress: async () => {
        await session.prefill([1]);
        awaited.push('callback');
      },
    });
    for await (const _ of generation) {
      if (awaited.includes('body')) continue;
      awaited.push('body');
      await session.prefill([2]);
    }
    await session.truncate(0);
    expect(awaited.sort()).toEqual(['body', ...new Array(numChunks).fill('callback')]);
  });

  it('runs generations on one session one after another, between the calls before and after', async () => {
    const results = await Promise.all([
      session.prefill([1, 2]).then(() => 'prefill'),
      model.generate([3, 4], { session, maxTokens: 3 }).result,
      session.truncate(1).then(() => 'truncate'),
      model.generate([5], { session, maxTokens: 2 }).result,
      session.decode(6).then(() => 'decode'),
    ]);
    using reference = await model.createSession();
    await reference.prefill([1, 2]);
    expect(results[1]?.tokens).toEqual(
      (await model.generate([3, 4], { session: reference, maxTokens: 3 }).result).tokens,
    );
    await reference.truncate(1);
    const last = (await model.generate([5], { session: reference, maxTokens: 2 }).result).tokens;
    expect(results[3]?.tokens).toEqual(last);
    await expectTokens(session, [1, 5, ...last, 6]);
  });

  long(
    'encodes the prompt of a generation for the session as it is in its turn, from its state at the call',
    async () => {
      const text = await Model.load(tldrDirectory, { device: device() });
      const own = await text.createSession();
      const tokens = [3, 4, 5];
      const first = text.generate('# tar\n', { session: own, maxTokens: 1 });
      const second = text.generate('abc', { session: own, maxTokens: 1 });
      const third = text.generate(tokens, { session: own, maxTokens: 1 });
      tokens.fill(9);
      const results = await Promise.all([first.result, second.result, third.result]);
      // Only the first has a begin-of-text token.
      const alone = await text.generate('abc', { maxTokens: 1 }).result;
      expect(results[1]?.usage.promptTokens).toBe(alone.usage.promptTokens - 1);
      // A call before the generation counts although nobody has awaited it.
      const filled = await text.createSession({ maxKvLen: 20 });
      const [logits, late] = await Promise.all([
        filled.prefill([5, 6]),
        text.generate('abc', { session: filled, maxTokens: 100 }).result,
      ]);
      expect(logits.length).toBe(text.config.vocabSize);
      expect(late.usage.promptTokens).toBe(alone.usage.promptTokens - 1);
      expect([late.finishReason, filled.kvLen]).toEqual(['length', 20]);
      const again = await text.createSession();
      await text.generate('# tar\n', { session: again, maxTokens: 1 }).result;
      await text.generate('abc', { session: again, maxTokens: 1 }).result;
      const expected = await text.generate([3, 4, 5], { session: again, maxTokens: 1 }).result;
      expect(results[2]?.tokens).toEqual(expected.tokens);
      text.dispose();
    },
  );

  it('ends what waits as soon as its signal is aborted, without touching the session', async () => {
    const controller = new AbortController();
    const { signal } = controller;
    const running = start({ maxTokens: reduced ? 5 : 200 });
    const waiting = model.generate([1], { session, signal });
    const left = model.generate([1], { session });
    const prefill = session.prefill([1], { signal });
    const decode = session.decode(3);
    let ended = false;
    void running.result.then(() => {
      ended = true;
    });
    controller.abort();
    await left[Symbol.asyncIterator]().return();
    expect((await left.result).finishReason).toBe('abort');
    expect((await errorOf(() => prefill)).code).toBe('ABORT_ERR');
    expect(await waiting.result).toMatchObject({ tokens: [], finishReason: 'abort', usage: { promptTokens: 1 } });
    expect(ended).toBe(false);
    const { tokens } = await running.result;
    await decode;
    await expectTokens(session, [...prompt, ...tokens, 3]);
  });

  it('ends a generation and all that waits for it with ERR_DISPOSED after dispose', async () => {
    const generation = start({ maxTokens: 500 });
    const waiting = [
      session.prefill([1]),
      session.fork(),
      session.truncate(0),
      model.generate([1], { session }).result,
      session.decode(2),
    ];
    for await (const _ of generation) {
      session.dispose();
      break;
    }
    for (const call of [generation.result, ...waiting]) {
      expect((await errorOf(() => call)).code).toBe('ERR_DISPOSED');
    }
  });

  it('completes the calls before dispose', async () => {
    const calls = [session.prefill([1, 2, 3]), session.decode(4)] as const;
    const fork = session.fork();
    session.dispose();
    using fresh = await model.createSession();
    expect(firstBitDifference(await calls[0], await fresh.prefill([1, 2, 3]))).toBe(-1);
    expect(firstBitDifference(await calls[1], await fresh.decode(4))).toBe(-1);
    await expectTokens(await fork, [1, 2, 3, 4]);
  });

  it('completes the calls before the model and its device are disposed', async () => {
    using reference = await model.createSession();
    const expected = [await reference.prefill(prompt), await reference.decode(4)];
    const own = await openDevice(device().id as Parameters<typeof openDevice>[0]);
    const other = await Model.load(directory, { device: own });
    const doomed = await other.createSession();
    const tensor = own.tensor('f32', [2], Float32Array.of(1, 2));
    const logits = [doomed.prefill(prompt), doomed.decode(4)];
    const values = tensor.read();
    other.dispose();
    own.dispose();
    const late = errorOf(() => doomed.decode(5));
    for (const [i, call] of logits.entries()) {
      expect(firstBitDifference(await call, expected[i] as Float32Array)).toBe(-1);
    }
    expect([...(await values)]).toEqual([1, 2]);
    expect((await late).code).toBe('ERR_DISPOSED');
  });

  it('names what does not fit, the limit and the remedy if the cache is full', async () => {
    const context = model.config.maxPositionEmbeddings;
    const long = new Array(context + 1).fill(5);
    const message = async (work: () => Promise<unknown>) => {
      const error = await errorOf(work);
      expect(error.code).toBe('ERR_KV_CACHE_FULL');
      return error.message;
    };
    expect(await message(() => model.generate(long).result)).toBe(
      `the prompt has ${context + 1} tokens, and the context of the model has ${context}: use a shorter prompt`,
    );
    const small = await model.createSession({ maxKvLen: 10 });
    await small.prefill([1, 2, 3]);
    expect(await message(() => model.generate(long.slice(0, 8), { session: small }).result)).toBe(
      'the prompt has 8 tokens, and maxKvLen of the session is 10, 3 of them in use ' +
        `(the context of the model has ${context}): use a shorter prompt, or truncate the session, ` +
        'or create the session with a larger maxKvLen',
    );
    expect(await message(() => small.prefill(long.slice(0, 8)))).toMatch(
      new RegExp(`8 tokens do not fit, 3 are in use and maxKvLen is 10 .*context.* ${context}`),
    );
    expect(small.kvLen).toBe(3);
    small.dispose();
  });
});
