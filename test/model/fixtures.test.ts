// Whole models compared with the float64 results in the fixtures.

import { Model, type Session } from '../../lib/index';
import { firstBitDifference, logitError, modelTolerances } from '../support/compare';
import { onEveryDevice, reduced } from '../support/devices';
import { expectAnswers, fixtures } from '../support/fixtures';
import { logSumExp } from '../support/reference';

onEveryDevice((device) => {
  describe.each(fixtures)('$name', ({ directory, cases: all, selectiveV, type }) => {
    const cases = reduced ? all.filter(({ tokens }) => tokens.length <= 40).slice(-2) : all;
    const tolerance = modelTolerances[type];
    let model: Model;
    beforeAll(async () => {
      model = await Model.load(directory, { device: device() });
    });
    afterAll(() => model?.dispose());

    const withSession = async (work: (session: Session) => Promise<void>): Promise<void> => {
      const session = await model.createSession({ selectiveV });
      try {
        await work(session);
      } finally {
        session.dispose();
      }
    };

    describe.each(cases.map((expected) => ({ length: expected.tokens.length, expected })))(
      '$length tokens',
      ({ length, expected }) => {
        const largest = Math.max(...expected.last_logits.map(Math.abs));

        it('computes the logits after prefill, the greedy tokens with the cache, and the logits after them', async () => {
          await withSession(async (session) => {
            await expectAnswers(session, expected, tolerance);
            expect(session.kvLen).toBe(length + expected.greedy.length);
          });
        });

        it('computes the logits of every position by decode only', async () => {
          await withSession(async (session) => {
            let logits: Float32Array = new Float32Array();
            for (const [i, token] of expected.tokens.entries()) {
              logits = await session.decode(token);
              const error = Math.abs(logSumExp(logits) - (expected.all_positions_logsumexp[i] as number));
              expect(error).toBeLessThanOrEqual(tolerance * largest);
            }
            expect(logitError(logits, expected.last_logits)).toBeLessThanOrEqual(tolerance);
          });
        });

        it('computes the same by prefill(n) and decode as by prefill(n + 1), and in pieces as whole', async () => {
          await withSession(async (session) => {
            const whole = await session.prefill(expected.tokens);
            for (const split of new Set([1, length >> 1, length - 1])) {
              if (split < 1 || split >= length) continue;
              await session.truncate(0);
              await session.prefill(expected.tokens.slice(0, split));
              const pieces = await session.prefill(expected.tokens.slice(split));
              // Each is a rounding of the same sum: both are within the tolerance of the exact
              // value and of each other.
              expect(logitError(pieces, whole)).toBeLessThanOrEqual(tolerance);
            }
          });
        });
      },
    );

    const { tokens, greedy: allGreedy } = cases[cases.length - 1] as (typeof cases)[0];
    const greedy = reduced ? allGreedy.slice(0, 6) : allGreedy;

    it('returns the same bits after truncate and decode', async () => {
      await withSession(async (session) => {
        await session.prefill(tokens);
        const first: Float32Array[] = [];
        for (const token of greedy) first.push(await session.decode(token));
        await session.truncate(tokens.length);
        expect(session.kvLen).toBe(tokens.length);
        for (const [i, token] of greedy.entries())
          expect(firstBitDifference(await session.decode(token), first[i] as Float32Array)).toBe(-1);
        await session.truncate(tokens.length + 3);
        for (const [i, token] of greedy.entries()) {
          if (i >= 3) expect(firstBitDifference(await session.decode(token), first[i] as Float32Array)).toBe(-1);
        }
        await session.truncate(0);
        await session.prefill(tokens);
        expect(firstBitDifference(await session.decode(greedy[0] as number), first[0] as Float32Array)).toBe(-1);
      });
    });

    it('continues with the same bits in a fork, and isolates parent and fork', async () => {
      await withSession(async (parent) => {
        await parent.prefill(tokens);
        const fork = await parent.fork();
        try {
          expect([fork.kvLen, fork.maxKvLen]).toEqual([parent.kvLen, parent.maxKvLen]);
          // The two alternate with different tokens. Then each path is repeated by itself.
          const other = greedy.map((token) => (token + 1) % model.config.vocabSize);
          const parentLogits: Float32Array[] = [];
          const forkLogits: Float32Array[] = [];
          for (const [i, token] of greedy.entries()) {
            parentLogits.push(await parent.decode(token));
            forkLogits.push(await fork.decode(other[i] as number));
          }
          expect(firstBitDifference(forkLogits[3] as Float32Array, parentLogits[3] as Float32Array)).not.toBe(-1);
          for (const [path, logits] of [
            [greedy, parentLogits],
            [other, forkLogits],
          ] as const) {
            await parent.truncate(0);
            await parent.prefill(tokens);
            for (const [i, token] of path.entries())
              expect(firstBitDifference(await parent.decode(token), logits[i] as Float32Array)).toBe(-1);
          }
          // A fork remains usable after its parent is disposed.
          await fork.truncate(tokens.length);
          parent.dispose();
          expect(firstBitDifference(await fork.decode(greedy[0] as number), parentLogits[0] as Float32Array)).toBe(-1);
        } finally {
          fork.dispose();
        }
      });
    });

    it('isolates two sessions that alternate', async () => {
      await withSession(async (a) => {
        await withSession(async (b) => {
          const alone = await a.prefill(tokens);
          await a.truncate(0);
          const reversed = [...tokens].reverse();
          const [mixed] = await Promise.all([a.prefill(tokens), b.prefill(reversed)]);
          expect(firstBitDifference(mixed as Float32Array, alone)).toBe(-1);
          const step = await a.decode(greedy[0] as number);
          await a.truncate(tokens.length);
          await b.decode(5);
          expect(firstBitDifference(await a.decode(greedy[0] as number), step)).toBe(-1);
        });
      });
    });
  });
});
