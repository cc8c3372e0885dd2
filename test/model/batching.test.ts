// Many generations at once: each returns the same as when it runs by itself, and none disturbs
// another.

import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { DiffqkvError, Model, type Session } from '../../lib/index';
import { native } from '../../lib/internal';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { logitError, modelTolerances } from '../support/compare';
import { errorOf, onEveryDevice, reduced } from '../support/devices';
import { tldrDirectory } from '../support/fixtures';
import { Random } from '../support/numbers';
import type { CheckpointTensor } from '../support/reference_model';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const commands = 'tar ls git docker curl find grep sed awk ssh rsync make gcc npm node zip'.split(' ');

onEveryDevice((device) => {
  it('fails only the generation whose log probabilities cannot be decoded, and restores its session', async () => {
    const directory = directories.make();
    cpSync(tldrDirectory, directory, { recursive: true });
    const file = join(directory, 'tokenizer.json');
    const json = JSON.parse(readFileSync(file, 'utf8'));
    const longer = (from: string, to: string) => ({
      type: 'Replace',
      pattern: { String: from },
      content: to.repeat(60_000),
    });
    // The text of a `q` is longer than the limit.
    json.decoder = { type: 'Sequence', decoders: [longer('q', 'z'), longer('z', 'y'), json.decoder] };
    writeFileSync(file, JSON.stringify(json));
    const hostile = await Model.load(directory, { device: device() });
    const q = json.model.vocab.q as number;
    const session = await hostile.createSession();
    await session.prefill([5, 6, 7]);
    const other = hostile.generate([10, 11, 12], { maxTokens: 8, logitBias: { 300: 1000 } });
    const failing = hostile.generate([8], { maxTokens: 8, logprobs: 0, logitBias: { [q]: 1000 }, session });
    const error = await errorOf(() => failing.result);
    expect([error.code, error.message]).toEqual(['ERR_INVALID_CHECKPOINT', expect.stringContaining('decoder')]);
    expect(session.kvLen).toBe(3);
    expect((await other.result).tokens).toEqual(Array(8).fill(300));
    hostile.dispose();
  });

  it('returns for each of 16 concurrent generations what it returns by itself, greedy and sampled', async () => {
    const model = await Model.load(tldrDirectory, { device: device() });
    const count = device().info.kind === 'cpu' ? 16 : reduced ? 3 : 5;
    const maxTokens = device().info.kind === 'cpu' ? 40 : 6;
    const requests = commands.slice(0, count).map((command, i) => ({
      prompt: `# ${command}\n`.repeat(1 + (i % 4)),
      options: {
        maxTokens: maxTokens + i,
        temperature: i % 3 === 0 ? 0 : 0.7,
        seed: i,
        repetitionPenalty: i % 5 === 0 ? 1.3 : 1,
        stop: i % 4 === 0 ? ['`'] : [],
      },
    }));
    const alone: number[][] = [];
    for (const { prompt, options } of requests) alone.push((await model.generate(prompt, options).result).tokens);
    const together = await Promise.all(
      requests.map(({ prompt, options }) => model.generate(prompt, options).result.then(({ tokens }) => tokens)),
    );
    expect(together).toEqual(alone);
    model.dispose();
  });

  describe('on a small model', () => {
    let model: Model;
    beforeAll(async () => {
      const directory = directories.make();
      writeCheckpoint(directory, randomCheckpoint({ heads: [4, 1, 2], headDim: 32, numLayers: 1 }));
      model = await Model.load(directory, { device: device() });
    });
    afterAll(() => model?.dispose());
    const settled = async () => {
      await device().synchronize();
      expect(model.kvCache.pages).toBe(0);
    };

    it('interleaves long prompts with decodes, and reads prompts in order of arrival', async () => {
      const order: string[] = [];
      const random = new Random(1);
      const start = (name: string, promptTokens: number, maxTokens: number) =>
        model.generate(random.tokens(promptTokens, 128), {
          maxTokens,
          onPrefillProgress: ({ doneTokens }) => void order.push(`${name}:${doneTokens}`),
        });
      const short = start('short', 1, 8);
      const ended: string[] = [];
      const note = (name: string, { result }: { result: Promise<unknown> }) => result.then(() => void ended.push(name));
      const all = [
        note('short', short),
        note('first', start('first', 1100, 1)),
        note('second', start('second', 600, 1)),
      ];
      await Promise.all(all);
      expect(order).toEqual(['short:1', 'first:512', 'first:1024', 'first:1100', 'second:512', 'second:600']);
      expect(ended).toEqual(['first', 'second', 'short']);
      await settled();
    });

    it('decodes sessions of other types and options in one step with unchanged results', async () => {
      const options = [
        {},
        { kType: 'i8' as const },
        { vType: 'f8e4m3' as const },
        { selectiveV: { topK: 2 } },
        { kType: 'bf16' as const, vType: 'i8' as const },
        {},
      ];
      const run = async (one: (typeof options)[number]) => {
        using session = await model.createSession(one);
        return (await model.generate([1, 2, 3, 4], { maxTokens: 12, session }).result).tokens;
      };
      const alone: number[][] = [];
      for (const one of options) alone.push(await run(one));
      expect(await Promise.all(options.map(run))).toEqual(alone);
      await settled();
    });

    it('decodes sessions with and without renormalize in one step, each in its own way', async () => {
      const prompt = new Random(6).tokens(40, 128);
      const sessions: Session[] = [];
      const alone: Float32Array[] = [];
      for (const renormalize of [false, true]) {
        const session = await model.createSession({ selectiveV: { topK: 2, renormalize } });
        sessions.push(session);
        await session.prefill(prompt);
        alone.push(await session.decode(7));
        await session.truncate(prompt.length);
      }
      const logits = alone.map(({ length }) => new Float32Array(length));
      await model[native].step({
        items: sessions.map((session, i) => ({
          session: session[native],
          tokens: Int32Array.of(7),
          chunks: 'next' as const,
          logits: logits[i],
        })),
      });
      const [plain, renormalized] = alone as [Float32Array, Float32Array];
      expect(logitError(plain, Float64Array.from(renormalized))).toBeGreaterThan(100 * modelTolerances.f32);
      alone.forEach((expected, i) => {
        const error = logitError(logits[i] as Float32Array, Float64Array.from(expected));
        expect(error).toBeLessThanOrEqual(modelTolerances.f32);
      });
      for (const session of sessions) session.dispose();
      await settled();
    });

    it('aborts while waiting, within a prompt and between tokens, and keeps the previous state', async () => {
      const random = new Random(2);
      const prompt = random.tokens(1500, 128);
      const before = await model.createSession();
      await before.prefill(prompt.slice(0, 70));
      const controllers = Array.from({ length: 4 }, () => new AbortController());
      const abort = (i: number) => (controllers[i] as AbortController).abort();
      const options = (i: number) => ({ maxTokens: 20, signal: (controllers[i] as AbortController).signal });
      const heard: number[] = [];
      const within = model.generate(prompt, {
        ...options(0),
        session: before,
        onPrefillProgress: ({ doneTokens }) => {
          heard.push(doneTokens);
          if (doneTokens !== 1024) return;
          abort(0);
          abort(1);
        },
      });
      const waiting = model.generate(prompt, options(1));
      const other = model.generate([9, 8, 7], { maxTokens: 20 });
      const results = await Promise.all([within.result, waiting.result, other.result]);
      expect(results.map(({ finishReason }) => finishReason)).toEqual(['abort', 'abort', 'length']);
      expect(results.map(({ tokens }) => tokens.length)).toEqual([0, 0, 20]);
      expect(heard).toEqual([512, 1024]);
      expect(before.kvLen).toBe(70);
      const drawn = model.generate([9, 8, 7], options(2));
      for await (const _ of drawn) if ((await Promise.resolve(1)) === 1) abort(2);
      expect((await drawn.result).finishReason).toBe('abort');
      abort(3);
      expect((await model.generate([1], options(3)).result).tokens).toEqual([]);
      before.dispose();
      await settled();
    });

    it('fails only the generation whose session is disposed', async () => {
      const doomed = await model.createSession();
      const generations = [
        model.generate([1, 2, 3], { maxTokens: 50, session: doomed }),
        model.generate([1, 2, 3], { maxTokens: 50 }),
      ] as const;
      for await (const _ of generations[0]) {
        doomed.dispose();
        break;
      }
      const failing = await model.createSession();
      const third = model.generate([4, 5], { maxTokens: 50, session: failing });
      let count = 0;
      const error = await errorOf(async () => {
        for await (const _ of third) if (++count === 3) failing.dispose();
      });
      expect(error.code).toBe('ERR_DISPOSED');
      expect((await generations[1].result).tokens.length).toBe(50);
      await settled();
    });

    /** A model whose token 72 makes the logits of its sequence NaN, and three sessions of it. */
    const brokenModel = async () => {
      const directory = directories.make();
      const checkpoint = randomCheckpoint({ numLayers: 1, tied: false });
      const embed = checkpoint.tensors.get('model.embed_tokens.weight') as CheckpointTensor;
      embed.data.fill(Number.NaN, 72 * 64, 73 * 64);
      writeCheckpoint(directory, checkpoint);
      const broken = await Model.load(directory, { device: device() });
      const sessions = [await broken.createSession(), await broken.createSession(), await broken.createSession()];
      return { directory, broken, sessions };
    };

    it('fails only the generation whose logits cannot be sampled', async () => {
      const { directory, broken, sessions } = await brokenModel();
      const ask = async (session: Session, first: number) =>
        (await broken.generate([first], { session, maxTokens: 4, temperature: 0.5, seed: first }).result).tokens;
      const outcomes = await Promise.all(
        [3, 72, 5].map((token, i) => ask(sessions[i] as Session, token).catch((error) => error)),
      );
      expect(outcomes[1]).toBeInstanceOf(DiffqkvError);
      expect(outcomes[1].code).toBe('ERR_UNSUPPORTED_MODEL');
      expect(outcomes[1].message).toContain(
        `${directory} gives invalid logits with dtype ${broken.dtype}: the logit of token 0 is NaN`,
      );
      expect(sessions.map(({ kvLen }) => kvLen)).toEqual([5, 0, 5]);
      const alone = [];
      for (const token of [3, 5]) {
        using session = await broken.createSession();
        alone.push(await ask(session, token));
      }
      expect([outcomes[0], outcomes[2]]).toEqual(alone);
      broken.dispose();
    });

    it('restores the session of an item whose token cannot be drawn', async () => {
      const { broken, sessions } = await brokenModel();
      const sampling = { temperature: 0.5, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 1n };
      const step = (tokens: readonly number[]) =>
        broken[native].step({
          items: sessions.slice(0, tokens.length).map((session, i) => ({
            session: session[native],
            tokens: Int32Array.of(tokens[i] as number),
            chunks: 'next' as const,
            sampling,
            draw: 0,
            continues: false,
          })),
        });
      for (const tokens of [[3, 72, 5], [72], [72, 72, 5]]) {
        const before = sessions.map(({ kvLen }) => kvLen);
        const results = await step(tokens);
        tokens.forEach((token, i) => {
          const works = token !== 72;
          expect(results[i]).toMatchObject({ consumed: works ? 1 : 0 });
          expect(results[i]?.error === undefined).toBe(works);
          expect(results[i]?.token !== undefined).toBe(works);
          expect(sessions[i]?.kvLen).toBe((before[i] as number) + (works ? 1 : 0));
        });
      }
      broken.dispose();
    });

    it('fails only the generation whose progress callback throws, and restores its session', async () => {
      const session = await model.createSession();
      await session.prefill([3, 2, 1]);
      const failing = model.generate(new Random(4).tokens(700, 128), {
        session,
        onPrefillProgress: () => {
          throw new Error('enough');
        },
      });
      const other = model.generate([1, 1, 2], { maxTokens: 5 });
      expect((await errorOf(() => failing.result)).message).toBe('enough');
      expect(session.kvLen).toBe(3);
      expect((await other.result).tokens.length).toBe(5);
      session.dispose();
      await settled();
    });

    it('leaks no page under a random schedule of starts, aborts, forks, truncates and disposes', async () => {
      const steps = device().info.kind === 'cpu' ? (reduced ? 1000 : 10_000) : 150;
      await randomSchedule(model, steps);
      await settled();
    });
  });
});

/**
 * Runs `steps` random actions on sessions and overlapping generations. Compares the next logits of
 * each survivor with those of a new session that has the same tokens.
 */
async function randomSchedule(model: Model, steps: number): Promise<void> {
  const random = new Random(11);
  const below = (n: number) => random.tokens(1, n)[0] as number;
  interface Live {
    session: Session;
    tokens: number[];
    busy: Promise<void> | null;
  }
  const live: Live[] = [];
  const running = new Set<Promise<void>>();
  const idle = () => live.filter(({ busy }) => busy === null);
  let checked = 0;
  const start = (own: Live): void => {
    const prompt = random.tokens(1 + below(90), 128);
    const controller = new AbortController();
    const generation = model.generate(prompt, {
      session: own.session,
      maxTokens: 1 + below(6),
      temperature: below(2),
      seed: below(1000),
      signal: controller.signal,
    });
    if (below(4) === 0) setTimeout(() => controller.abort(), below(3));
    const done = generation.result.then(({ tokens, finishReason }) => {
      if (finishReason !== 'abort' || own.session.kvLen > own.tokens.length) own.tokens.push(...prompt, ...tokens);
      expect(own.session.kvLen).toBe(own.tokens.length);
    });
    own.busy = done.finally(() => {
      own.busy = null;
      running.delete(done);
    });
    running.add(done);
  };
  for (let step = 0; step < steps; step++) {
    const free = idle();
    const one = free[below(Math.max(free.length, 1))];
    const action = below(10);
    if (!one || (action === 0 && live.length < 12)) {
      if (live.length < 12) live.push({ session: await model.createSession(), tokens: [], busy: null });
      else await Promise.race(running);
    } else if (action <= 4) {
      if (one.tokens.length > 400) {
        await one.session.truncate(0);
        one.tokens.length = 0;
      }
      start(one);
    } else if (action === 5 && live.length < 12) {
      live.push({ session: await one.session.fork(), tokens: [...one.tokens], busy: null });
    } else if (action <= 7) {
      one.tokens.length = below(one.tokens.length + 1);
      await one.session.truncate(one.tokens.length);
    } else if (action === 8) {
      one.session.dispose();
      live.splice(live.indexOf(one), 1);
    } else if (one.tokens.length > 0 && checked++ % 8 === 0) {
      // The next logits must equal those of a new session with the same tokens.
      using fresh = await model.createSession();
      using fork = await one.session.fork();
      const expected = await fresh.prefill([...one.tokens, 7]);
      expect(logitError(await fork.decode(7), Float64Array.from(expected))).toBeLessThanOrEqual(modelTolerances.f32);
    }
  }
  await Promise.all(running);
  expect(checked).toBeGreaterThan(steps / 100);
  for (const { session } of live) session.dispose();
}
