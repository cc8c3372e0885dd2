// Abort signals: their listeners, hostile ones, and the moments at which they count. Also what
// leaving an iteration early stops.

import { getEventListeners } from 'node:events';
import { Model, Tokenizer } from '../../lib/index';
import { errorOf } from '../support/devices';
import { tldrDirectory } from '../support/fixtures';
import type { Anything } from '../support/misuse';

const invalid = 'ERR_INVALID_ARGUMENT';

let model: Model;
beforeAll(async () => {
  model = await Model.load(tldrDirectory, { device: 'cpu' });
});
afterAll(() => model.dispose());
afterEach(() => jest.restoreAllMocks());

describe('a signal', () => {
  it('gets one listener for 100 calls, and none is left after they end', async () => {
    const warnings: Error[] = [];
    const onWarning = (warning: Error) => warnings.push(warning);
    process.on('warning', onWarning);
    const controller = new AbortController();
    const { signal } = controller;
    const listeners = () => getEventListeners(signal, 'abort').length;
    const session = await model.createSession();
    const generations = Array.from({ length: 100 }, () => model.generate([1, 2], { maxTokens: 3, signal }));
    const queued = model.generate([1], { maxTokens: 2, session, signal });
    const calls = [session.prefill([1, 2, 3], { signal }), session.prefill([4], { signal })];
    const failed = errorOf(() => model.generate([-1], { signal }).result);
    const load = Model.load(tldrDirectory, { device: 'cpu', signal });
    expect(listeners()).toBe(1);
    for (const { result } of [...generations, queued]) await result;
    for (const call of calls) await call;
    (await load).dispose();
    await failed;
    expect(listeners()).toBe(0);

    const aborted = Array.from({ length: 20 }, () => model.generate([1, 2], { signal }));
    const prefills = [1, 2, 3].map(() => session.prefill(new Array(900).fill(5), { signal }));
    expect(listeners()).toBe(1);
    await new Promise((resolve) => setTimeout(resolve, 20));
    controller.abort();
    for (const { result } of aborted) expect((await result).finishReason).toBe('abort');
    for (const prefill of prefills) await prefill.catch(({ code }) => expect(code).toBe('ABORT_ERR'));
    expect(listeners()).toBe(0);
    session.dispose();
    await new Promise((resolve) => setImmediate(resolve));
    process.off('warning', onWarning);
    expect(warnings).toEqual([]);
  });

  const hostile = (): [string, Anything][] => {
    const throwing = (name: string) =>
      Object.defineProperty({ aborted: false, addEventListener() {}, removeEventListener() {} }, name, {
        get() {
          throw new RangeError('mine');
        },
      });
    return [
      ['whose aborted throws', throwing('aborted')],
      ['whose addEventListener throws', throwing('addEventListener')],
      ['without addEventListener', { aborted: false }],
      ['null', null],
      ['a string', 'x'],
    ];
  };
  it.each(hostile())('%s is ERR_INVALID_ARGUMENT', async (_, signal) => {
    const session = await model.createSession();
    for (const work of [
      () => model.generate([1], { signal, session }).result,
      () => model.generate([1], { signal }).result,
      () => session.prefill([1], { signal }),
      () => Model.load(tldrDirectory, { device: 'cpu', signal }),
    ]) {
      expect((await errorOf(work)).code).toBe(invalid);
    }
    await session.decode(1);
    session.dispose();
  });

  it('whose tag throws, and that is no signal, is ERR_INVALID_ARGUMENT too', async () => {
    const signal = {
      get [Symbol.toStringTag]() {
        throw new RangeError('mine');
      },
    } as Anything;
    expect((await errorOf(() => model.generate([1], { signal }).result)).code).toBe(invalid);
  });

  it('that fires while the tokenizer is read rejects the load', async () => {
    const controller = new AbortController();
    const read = Tokenizer.fromDirectory;
    jest.spyOn(Tokenizer, 'fromDirectory').mockImplementation(async (directory) => {
      const tokenizer = await read.call(Tokenizer, directory);
      controller.abort();
      return tokenizer;
    });
    const error = await errorOf(() => Model.load(tldrDirectory, { device: 'cpu', signal: controller.signal }));
    expect([error.name, error.code]).toEqual(['AbortError', 'ABORT_ERR']);
    expect(getEventListeners(controller.signal, 'abort')).toEqual([]);
  });
});

describe('leaving an iteration', () => {
  it.each(['return', 'throw'] as const)('by %s before the first next stops the generation', async (how) => {
    const generation = model.generate('# tar\n', { maxTokens: 900 });
    const iterator = generation[Symbol.asyncIterator]();
    const mine = new Error('mine');
    if (how === 'return') expect(await iterator.return()).toEqual({ done: true, value: undefined });
    else expect(await errorOf(() => iterator.throw(mine))).toBe(mine);
    const { finishReason, tokens } = await generation.result;
    expect(finishReason).toBe('abort');
    expect(tokens.length).toBeLessThan(100);
    expect(await iterator.next()).toEqual({ done: true, value: undefined });
  });

  it('by return stops the generation also while a next is pending', async () => {
    const generation = model.generate(new Array(1000).fill(5), { maxTokens: 20 });
    const iterator = generation[Symbol.asyncIterator]();
    const next = iterator.next();
    await iterator.return();
    expect((await generation.result).finishReason).toBe('abort');
    await next;
  });

  it('by break waits until the session is free', async () => {
    const session = await model.createSession();
    const generation = model.generate('# tar\n', { session, maxTokens: 900 });
    let isSettled = false;
    void generation.result.then(() => {
      isSettled = true;
    });
    for await (const _ of generation) break;
    expect(isSettled).toBe(true);
    const { usage } = await generation.result;
    expect(session.kvLen).toBe(usage.promptTokens + usage.completionTokens);
    session.dispose();
  });

  it('by an error of the body stops the generation, and keeps the error', async () => {
    const generation = model.generate('# tar\n', { maxTokens: 900 });
    const mine = new Error('mine');
    const error = await errorOf(async () => {
      for await (const _ of generation) throw mine;
    });
    expect(error).toBe(mine);
    expect((await generation.result).finishReason).toBe('abort');
  });
});
