// kv_append is the only writer of a cache and has no public call. The tests observe its output
// through a session's logits.

import { Model, type Session } from '../../lib/index';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { firstBitDifference, logitError, modelTolerances } from '../support/compare';
import { long, onEveryDevice, reduced } from '../support/devices';
import { Random } from '../support/numbers';
import { modelLogits } from '../support/reference_model';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const types = ['f32', 'bf16', 'f16'] as const;

onEveryDevice((device) => {
  // Heads and sizes that do not fill a vector register, and tiles of keys in all alignments.
  describe.each([
    [[6, 3, 2], 10],
    [[12, 3, 6], 8],
    [[8, 1, 2], 64],
    [[4, 4, 1], 96],
  ] as [[number, number, number], number][])('heads %j of size %i', (heads, headDim) => {
    const checkpoint = randomCheckpoint({ heads, headDim });
    const tokens = new Random(8).tokens(140, 128);
    const expected = modelLogits(checkpoint, tokens, { numLogits: tokens.length });
    let model: Model;
    beforeAll(async () => {
      const directory = directories.make();
      writeCheckpoint(directory, checkpoint);
      model = await Model.load(directory, { device: device() });
    });
    afterAll(() => model?.dispose());

    const withSession = async (
      options: Parameters<Model['createSession']>[0],
      work: (session: Session) => Promise<void>,
    ): Promise<void> => {
      const session = await model.createSession(options);
      try {
        await work(session);
      } finally {
        session.dispose();
      }
    };

    const pairs = types.flatMap((kType) => types.map((vType) => [kType, vType] as const));
    it.each(pairs.filter((_, i) => !reduced || (i + headDim / 2) % 4 === 0))(
      'stores K as %s and V as %s correctly after every append, of any length at any position',
      async (kType, vType) => {
        const tolerance = kType === 'f32' && vType === 'f32' ? modelTolerances.f32 : modelTolerances.bf16;
        await withSession({ kType, vType, maxKvLen: tokens.length }, async (session) => {
          let at = 0;
          for (const length of [1, 1, 2, 13, 1, 15, 16, 17, 31, 1, 33, 1, 1, 7]) {
            const logits =
              length === 1
                ? await session.decode(tokens[at] as number)
                : await session.prefill(tokens.slice(at, at + length));
            at += length;
            expect(session.kvLen).toBe(at);
            expect(logitError(logits, expected[at - 1] as Float64Array)).toBeLessThanOrEqual(tolerance);
          }
          expect(at).toBe(tokens.length);
        });
      },
    );

    long('overwrites truncated tokens and keeps the tokens before them', async () => {
      await withSession({}, async (session) => {
        await session.prefill(tokens.slice(0, 50));
        const before = await session.decode(tokens[50] as number);
        for (const length of [50, 33, 32, 31, 17, 16, 15, 1, 0]) {
          await session.truncate(length);
          await session.prefill(tokens.slice(60, 100)); // other tokens in those slots
          await session.truncate(length);
          if (length < 50) await session.prefill(tokens.slice(length, 50));
          const logits = await session.decode(tokens[50] as number);
          expect(logitError(logits, expected[50] as Float64Array)).toBeLessThanOrEqual(modelTolerances.f32);
          if (length === 50) expect(firstBitDifference(logits, before)).toBe(-1);
        }
      });
    });

    it('uses the last slot of the cache and writes nothing after it', async () => {
      for (const maxKvLen of [1, 15, 16, 17, 33]) {
        await withSession({ maxKvLen }, async (session) => {
          if (maxKvLen > 1) await session.prefill(tokens.slice(0, maxKvLen - 1));
          const logits = await session.decode(tokens[maxKvLen - 1] as number);
          expect(logitError(logits, expected[maxKvLen - 1] as Float64Array)).toBeLessThanOrEqual(modelTolerances.f32);
          expect(session.kvLen).toBe(maxKvLen);
        });
      }
    });
  });
});
