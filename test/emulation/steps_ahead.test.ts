// Steps that a GPU computes before anyone has asked for them: nobody can tell, but by the time.

import type { NativeBiases, NativeSampling } from '../../lib/addon';
import { type DeviceId, listDevices, Model, type Session } from '../../lib/index';
import { native } from '../../lib/internal';
import { randomCheckpoint } from '../support/checkpoints';
import { Random } from '../support/numbers';
import { emulation } from './module';

const there = listDevices().some(({ id }) => (id as string) === 'emulated');

const greedy: NativeSampling = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 1n };
const penalized: NativeSampling = { ...greedy, temperature: 1, topK: 40, repetitionPenalty: 1.3, seed: 7n };

/** What the next step of a session is: as the scheduler asks for it. */
interface Item {
  session: Session;
  token: number;
  draw: number;
  sampling: NativeSampling;
  /** Default true. */
  continues?: boolean;
  allowed?: Uint32Array;
  biases?: NativeBiases;
}

(there ? describe : describe.skip)('a step ahead', () => {
  let model: Model;

  beforeAll(async () => {
    const { config } = randomCheckpoint({ architecture: 'sigma', heads: [8, 2, 4] });
    model = await Model.random({ ...config, num_hidden_layers: 2 }, { device: 'emulated' as DeviceId, dtype: 'bf16' });
  });
  afterEach(() => emulation().fault('', 0, 0, 0));
  afterAll(() => model.dispose());

  async function step(...items: Item[]): Promise<number[]> {
    const results = await model[native].step({
      items: items.map(({ session, token, continues = true, ...item }) => ({
        session: session[native],
        tokens: Int32Array.of(token),
        chunks: 'next' as const,
        ...item,
        continues,
      })),
    });
    return results.map(({ token, error }) => {
      if (error !== undefined) throw error;
      return token as number;
    });
  }

  async function started(prompt: number[], options = {}): Promise<Session> {
    const session = await model.createSession(options);
    await session.prefill(prompt);
    return session;
  }

  /** The tokens that follow `token`, without steps ahead. */
  async function expectedAfter(session: Session, token: number, sampling: NativeSampling, count: number) {
    const copy = await session.fork();
    const tokens = [token];
    for (let draw = 0; draw < count; draw++) {
      tokens.push(...(await step({ session: copy, token: tokens.at(-1) as number, draw, sampling, continues: false })));
    }
    copy.dispose();
    return tokens.slice(1);
  }

  const passes = async (work: () => Promise<unknown>): Promise<number> => {
    emulation().fault('cudaGraphLaunch', Number.MAX_SAFE_INTEGER, 1, 0); // counts the calls
    await work();
    return emulation().fault('', 0, 0, 0);
  };

  it.each([
    ['greedy', greedy],
    ['drawn with a repetition penalty', penalized],
  ])('gives the tokens of steps that were asked for: %s, across a page', async (_, sampling) => {
    const session = await started(Array.from({ length: 50 }, (_, i) => i % 11));
    const expected = await expectedAfter(session, 5, sampling, 30);
    const tokens = [5];
    for (let draw = 0; draw < 30; draw++) {
      tokens.push(...(await step({ session, token: tokens.at(-1) as number, draw, sampling })));
    }
    expect(tokens.slice(1)).toEqual(expected);
    session.dispose();
  });

  it('is computed once, and only if it is likely to be asked for and its page is there', async () => {
    const session = await started([1, 2, 3]);
    const next = { session, sampling: greedy };
    let [token] = await step({ ...next, token: 4, draw: 0, continues: false });
    [token] = await step({ ...next, token: token as number, draw: 1, continues: false }); // it is recorded now
    const ask = async (draw: number, continues: boolean) => {
      [token] = await step({ ...next, token: token as number, draw, continues });
    };
    expect(await passes(() => ask(2, false))).toBe(1);
    expect(await passes(() => ask(3, true))).toBe(2); // its own and the next
    expect(await passes(() => ask(4, true))).toBe(1);
    expect(await passes(() => ask(5, false))).toBe(0);
    expect(await passes(() => ask(6, false))).toBe(1);
    while (session.kvLen < 63) await ask(session.kvLen, false);
    expect(await passes(() => ask(63, true))).toBe(1); // the next needs a page
    session.dispose();
  });

  it('is dropped if another token, draw or sampling is asked for', async () => {
    const session = await started([1, 2, 3]);
    const others: Partial<Item>[] = [
      { token: 9 },
      { draw: 5 },
      { sampling: { ...penalized, seed: 8n } },
      { sampling: greedy },
    ];
    for (const other of others) {
      const copy = await session.fork();
      const first = { session: copy, token: 4, draw: 0, sampling: penalized, continues: false };
      const [token] = await step(first);
      const item = { ...first, token: token as number, draw: 1, ...other };
      const expected = await step(item);
      copy.dispose();
      expect(await step({ ...first, session, continues: true })).toEqual([token]);
      expect(await step({ ...item, session })).toEqual(expected);
      await session.truncate(3);
    }
    session.dispose();
  });

  it('is dropped if a mask or biases are asked for, and not computed while there are some', async () => {
    const session = await started([1, 2, 3]);
    const first = { session, token: 4, draw: 0, sampling: greedy };
    const [token = 0] = await step({ ...first, continues: false });
    const [next = 0] = await step({ ...first, token, draw: 1, continues: false });
    await session.truncate(3);
    const allowed = new Uint32Array(Math.ceil(model.config.vocabSize / 32)).fill(0xffffffff);
    allowed[next >> 5] = (allowed[next >> 5] as number) & ~(1 << (next & 31));
    const biases = { tokens: Int32Array.of(next), values: Float32Array.of(Number.NEGATIVE_INFINITY) };
    const drawn: number[][] = [];
    for (const limits of [{ allowed }, { biases }]) {
      expect(await step(first)).toEqual([token]); // the next step is under way
      const item = { ...first, token, draw: 1, ...limits };
      expect(await passes(async () => void drawn.push(await step(item)))).toBe(1);
      const other = { ...first, token: drawn.at(-1)?.[0] as number, draw: 2, continues: false };
      expect(await passes(() => step(other))).toBe(1);
      await session.truncate(3);
    }
    expect(drawn[1]).toEqual(drawn[0]);
    expect(drawn[0]).not.toEqual([next]);
    session.dispose();
  });

  it('is dropped if the session changes, and kept if it is forked', async () => {
    const session = await started([1, 2, 3, 4, 5]);
    const changed = async (one: Session, continues: boolean) => {
      const item = { session: one, sampling: greedy, continues };
      const [token] = await step({ ...item, token: 6, draw: 0 });
      await one.truncate(4);
      return step({ ...item, token: token as number, draw: 1, continues: false });
    };
    const copy = await session.fork();
    const expected = await changed(copy, false);
    expect(await changed(session, true)).toEqual(expected);
    copy.dispose();

    const after = await expectedAfter(session, 7, greedy, 2);
    expect(await step({ session, token: 7, draw: 0, sampling: greedy })).toEqual(after.slice(0, 1));
    const fork = await session.fork();
    const next = { token: after[0] as number, draw: 1, sampling: greedy };
    expect(await passes(async () => expect(await step({ session, ...next })).toEqual(after.slice(1)))).toBeLessThan(2);
    expect(await step({ session: fork, ...next })).toEqual(after.slice(1));
    session.dispose();
    fork.dispose();
  });

  it('serves those of its sequences that go on', async () => {
    const sessions = await Promise.all([1, 2, 3].map((first) => started([first, 5, 6])));
    const items = sessions.map((session, i): Item => ({ session, token: i, draw: 0, sampling: penalized }));
    const expected = await Promise.all(sessions.map((session, i) => expectedAfter(session, i, penalized, 3)));
    const first = await step(...items);
    const [, b, c] = items.map((item, i): Item => ({ ...item, token: first[i] as number, draw: 1 }));
    const second = await step(c as Item, b as Item);
    expect([first[1], second[1]]).toEqual(expected[1]?.slice(0, 2));
    expect([first[2], second[0]]).toEqual(expected[2]?.slice(0, 2));
    const third = await step({ ...(b as Item), token: second[1] as number, draw: 2 });
    expect(third).toEqual(expected[1]?.slice(2));
    for (const session of sessions) session.dispose();
  });

  it('may fail in any call of the CUDA runtime: what was asked for has an error or its result', async () => {
    const session = await started([1, 2, 3]);
    const tokens = [4];
    let numErrors = 0;
    for (const call of ['cudaGraphLaunch', 'cudaMemcpyAsync', 'cudaEventRecord', 'cudaLaunchKernelEx']) {
      for (let first = 1; first <= 6; first++) {
        const item: Item = { session, token: tokens.at(-1) as number, draw: tokens.length, sampling: penalized };
        const copy = await session.fork();
        const expected = await step({ ...item, session: copy, continues: false });
        copy.dispose();
        const { kvLen } = session;
        emulation().fault(call, first, 1, 2);
        try {
          tokens.push(...(await step(item)));
        } catch (error) {
          expect(error).toMatchObject({ code: 'ERR_OUT_OF_MEMORY' });
          expect(session.kvLen).toBe(kvLen);
          numErrors++;
          emulation().fault('', 0, 0, 0);
          tokens.push(...(await step(item)));
        }
        emulation().fault('', 0, 0, 0);
        expect(tokens.slice(-1)).toEqual(expected);
      }
    }
    expect(numErrors).toBeGreaterThan(3);
    expect(numErrors).toBeLessThan(21);
    session.dispose();
  });

  it('leaves nothing behind: sessions that end in any way, in 200 random schedules', async () => {
    const random = new Random(1);
    for (let i = 0; i < 200; i++) {
      const controller = new AbortController();
      const session = await model.createSession();
      const generation = model.generate([i % 7, 3], {
        session,
        maxTokens: random.integer(1, 9),
        temperature: 1,
        seed: i,
        signal: controller.signal,
      });
      const way = random.integer(0, 3);
      if (way === 0) controller.abort();
      if (way === 1) session.dispose();
      await generation.result.catch(() => {});
      session.dispose();
    }
    await model[native].step({ items: [] });
    expect(model.kvCache.pages).toBe(0);
  });
});
