// Many generations, and long lists of stop strings, share the event loop: the work of each turn is
// limited. Counts instead of times, because other processes may hold the CPU.

import type { NativeSession } from '../../lib/addon';
import { Model } from '../../lib/index';
import { Scheduler } from '../../lib/scheduler';
import { StopFilter } from '../../lib/stop';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

/** Calls `onTurn` in each turn of the event loop until `work` settles. */
async function withTurns<T>(onTurn: () => void, work: () => Promise<T>): Promise<T> {
  let isDone = false;
  const turn = () => {
    onTurn();
    if (!isDone) setImmediate(turn);
  };
  setImmediate(turn);
  return work().finally(() => {
    isDone = true;
  });
}

it('starts at most 64 of 600 generations in a turn of the event loop', async () => {
  const directory = directories.make();
  writeCheckpoint(directory, randomCheckpoint({ numLayers: 1 }));
  const model = await Model.load(directory, { device: 'cpu' });
  let inTurn = 0;
  let most = 0;
  let started = 0;
  const create = model.createSession;
  jest.spyOn(model, 'createSession').mockImplementation((options) => {
    most = Math.max(most, ++inTurn);
    started++;
    return create.call(model, options);
  });
  const generate = (i: number) => model.generate([1 + (i % 100)], { maxTokens: 3 }).result;
  const all = () => Promise.all(Array.from({ length: 600 }, (_, i) => generate(i)));
  const results = await withTurns(() => {
    inTurn = 0;
  }, all);
  expect(started).toBe(600);
  expect(most).toBeLessThanOrEqual(64);
  jest.restoreAllMocks();
  for (const i of [0, 7, 599]) expect(results[i]?.tokens).toEqual((await generate(i)).tokens);
  model.dispose();
});

it('gives a step the tokens of at most 256 generations, in order of arrival, and one prompt', async () => {
  const steps: number[][] = [];
  const scheduler = new Scheduler(async (items) => {
    steps.push(items.map(({ tokens }) => tokens[0] as number));
    return items.map(({ tokens }) => ({ consumed: tokens.length, token: tokens[0] as number }));
  });
  const session = { kvLen: 0 } as NativeSession;
  const next = (...tokens: number[]) =>
    scheduler.next({ session, tokens: Int32Array.from(tokens), draw: 0, continues: false });
  const order = Array.from({ length: 600 }, (_, i) => i);
  const prompts = [next(-1, -1), next(-2, -2)];
  expect(await Promise.all(order.map((i) => next(i)))).toEqual(order);
  await Promise.all(prompts);
  expect(steps.map(({ length }) => length)).toEqual([256, 256, 90]);
  expect(steps.flat().filter((token) => token >= 0)).toEqual(order);
  expect(steps.flatMap((step, i) => step.filter((token) => token < 0).map((token) => [i, token]))).toEqual([
    [0, -1],
    [1, -2],
  ]);
});

it('builds the table of the most stop strings in several turns of the event loop', async () => {
  for (const stops of [
    Array.from({ length: 9000 }, (_, i) => `@@${i}`),
    Array.from({ length: 65_000 }, (_, i) => String.fromCharCode(0x4e00 + (i % 20_000))),
    ['x'.repeat(65_536)],
  ]) {
    let turns = 0;
    await withTurns(
      () => turns++,
      () => StopFilter.create(stops),
    );
    expect(turns).toBeGreaterThanOrEqual(10);
  }
});
