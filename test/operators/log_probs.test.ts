// log_probs through generate and score: compares with the reference, applied to the logits of a
// session.

import { Model } from '../../lib/index';
import { knownLogits, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { expectClose, tolerances } from '../support/compare';
import { onEveryDevice } from '../support/devices';
import { expectCode } from '../support/misuse';
import { Random } from '../support/numbers';
import { logProbs, topTokens } from '../support/reference';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const normals = (count: number, scale: number) => [...new Random(count).normals(count, scale, 'f32')];
const largest = 3e38;
const wrapped = (i: number, size: number): number => ((i % size) + size) % size;
const entry = (values: Float32Array, i: number): Float32Array => values.subarray(i, i + 1);

onEveryDevice((device) => {
  const load = (logits: readonly number[]): Promise<Model> => {
    const directory = directories.make();
    writeCheckpoint(directory, knownLogits(logits));
    return Model.load(directory, { device: device() });
  };

  it.each<[string, number[]]>([
    ['a single token', [3]],
    ['5 tokens', normals(5, 3)],
    ['31 tokens', normals(31, 3)],
    ['2,049 tokens, in rows that are not aligned', normals(2049, 3)],
    ['9,004 tokens', normals(9004, 3)],
    ['logits far apart', [-900, 0, -200, -80, -88, -1e4, -1e30, -largest]],
    ['large logits', [largest, largest / 2, 0, -largest]],
    ['rising logits', Array.from({ length: 2500 }, (_, i) => i / 100)],
    ['falling logits', Array.from({ length: 2500 }, (_, i) => -i / 100)],
    ['equal logits', new Array(2500).fill(1.5)],
    ['zeros of both signs and others', Array.from({ length: 600 }, (_, i) => [0, -0, -1][i % 3] as number)],
    ['a largest logit in the last place', [...new Array(2050).fill(-3), 4]],
  ])('%s', async (_, known) => {
    const model = await load(known);
    const session = await model.createSession();
    const logits = await session.prefill([0]);
    const expected = Float32Array.from(logProbs(logits));
    const top = topTokens(logits, 20);
    const { tokens, logprobs = [] } = await model.generate([0], {
      ...{ temperature: 1, seed: 5, maxTokens: 2, logprobs: 20 },
    }).result;
    expect(logprobs.map(({ token }) => token)).toEqual(tokens);
    for (const { token, logprob, topLogprobs } of logprobs) {
      expectClose(Float32Array.of(logprob), entry(expected, token), tolerances.f32, 1);
      expect(topLogprobs.map((likely) => likely.token)).toEqual(top);
      const values = Float32Array.from(topLogprobs, (likely) => likely.logprob);
      const wanted = Float32Array.from(top, (likely) => expected[likely] as number);
      expectClose(values, wanted, tolerances.f32, top.length);
    }
    // The first and the last tokens. Of small rows more than are in memory at once.
    const text = Array.from({ length: known.length > 500 ? 5 : 67 }, (_, i) => (i % 2 ? i : -1 - i));
    const { tokens: given, logprobs: scores } = await model.score(text.map((i) => wrapped(i, known.length)));
    for (const [i, token] of given.slice(1).entries()) {
      expectClose(entry(scores, i), entry(expected, token), tolerances.f32, 1);
    }
    model.dispose();
  });

  it('gives so many of the most likely tokens as are asked for', async () => {
    const model = await load([1, 3, 2, 0]);
    for (const count of [0, 1, 3, 4, 20]) {
      const { logprobs } = await model.generate([0], { maxTokens: 1, logprobs: count }).result;
      const tokens = logprobs?.[0]?.topLogprobs.map(({ token }) => token);
      expect(tokens).toEqual([1, 2, 0, 3].slice(0, count));
    }
    model.dispose();
  });

  it.each([
    ['NaN', [1, Number.NaN, 2]],
    ['+Infinity', [1, Number.POSITIVE_INFINITY, 2]],
    ['-Infinity only', new Array(3).fill(Number.NEGATIVE_INFINITY)],
  ])('score rejects logits of %s', async (_, known) => {
    const model = await load(known);
    await expectCode(() => model.score([0, 1]), 'ERR_UNSUPPORTED_MODEL', 'invalid logits with dtype f32');
    model.dispose();
  });
});
