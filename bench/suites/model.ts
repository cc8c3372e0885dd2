// Suite model: a whole model by the wall clock of its caller: tokens per second of prefill and decode, the time to the first
// token, and 16 simultaneous generations.
import * as fs from 'node:fs';
import * as path from 'node:path';

import type { Model } from '../../lib/index';
import { modelPrefillFlops, stepBytes } from '../arithmetic';
import { type Figure, figure } from '../figure';
import { interleaveFor, mapStats, type Stats } from '../measure';
import { promptTokens } from '../steps';
import { type Bench, byKind, type Cell, type CellResult, type Suite } from '../suite';
import { Holder, isPreset, PRESETS } from './model_holder';

const BATCH_SIZE = 16;
const BATCH_PROMPT = 32;

/** Tokens per second. `limitMs` is the least time of the same tokens. */
function rateFigure(
  input: Pick<Figure, 'name' | 'at'> & Partial<Figure>,
  ms: Stats,
  tokens: number,
  limitMs: number | null,
): Figure {
  const rate = mapStats(ms, (value) => (tokens * 1000) / value);
  return figure({
    value: rate.median,
    unit: 'tokens/s',
    better: 'more',
    limit: limitMs === null ? null : (tokens * 1000) / limitMs,
    limitName: 'not measured',
    target: null,
    samples: { tokensPerS: rate, ms },
    group: 'model',
    ...input,
  });
}

/** Measures with the model, or skips if it does not support sequences of `tokens` tokens. */
async function cellBody(
  holder: Holder,
  tokens: number,
  measure: (model: Model) => Promise<Figure[]>,
): Promise<CellResult> {
  const model = await holder.get();
  const most = model.config.maxPositionEmbeddings;
  if (tokens > most) return { figures: [], skipped: `the model supports ${most} tokens` };
  const { config, weightBytes, numParameters, dtype } = model;
  const figures = await measure(model);
  return {
    figures,
    setup: { title: holder.title(), numLayers: config.numLayers, dtype, weightBytes, numParameters },
  };
}

function prefillCell(bench: Bench, holder: Holder, length: number): Cell {
  const name = `${holder.title()}: prefill of ${length} tokens`;
  return {
    name,
    seconds: bench.quick ? 2 : 12,
    bytes: 0,
    run: () =>
      cellBody(holder, length + 1, async (model) => {
        const { vocabSize } = model.config;
        const session = await model.createSession({ maxKvLen: length + 1 });
        try {
          const prompt = promptTokens(length, vocabSize);
          const prefill = async (): Promise<number> => {
            await session.truncate(0);
            const start = performance.now();
            await session.prefill(prompt);
            return performance.now() - start;
          };
          const firstToken = async (): Promise<number> => {
            const start = performance.now();
            for await (const _ of model.generate(prompt, { maxTokens: 1 })) break;
            return performance.now() - start;
          };
          const ms = await sample(bench, { prefill, firstToken }, bench.quick ? 0.6 : 10);
          const rate = bench.limits.matrixGflopPerS;
          const flops = modelPrefillFlops(model.config, length);
          const limitMs = rate && flops / rate.median / 1e6;
          const at = { model: holder.name, tokens: length, batch: 1 };
          const limitName = limitMs === null ? 'not measured' : 'FLOPs at the matrix rate';
          return [
            rateFigure({ name, at: { ...at, what: 'prefill' }, flops, limitName }, ms.prefill, length, limitMs),
            figure({
              name: `${holder.title()}: time to the first token after ${length}`,
              value: ms.firstToken.median,
              unit: 'ms',
              better: 'less',
              limit: limitMs,
              limitName,
              target: null,
              samples: { ms: ms.firstToken },
              group: 'model',
              at: { ...at, what: 'first token' },
              flops,
            }),
          ];
        } finally {
          session.dispose();
        }
      }),
  };
}

function decodeCell(bench: Bench, holder: Holder, prefix: number): Cell {
  const name = `${holder.title()}: decode after ${prefix} tokens`;
  return {
    name,
    seconds: bench.quick ? 1 : 8,
    bytes: 0,
    run: () =>
      cellBody(holder, prefix + 8, async (model) => {
        const { config, weightBytes } = model;
        const steps = bench.quick ? 4 : 8;
        const session = await model.createSession({ maxKvLen: prefix + steps });
        try {
          await session.prefill(promptTokens(prefix, config.vocabSize));
          const decode = async (): Promise<number[]> => {
            await session.truncate(prefix);
            const samples: number[] = [];
            for (const token of promptTokens(steps, config.vocabSize, 1)) {
              const start = performance.now();
              await session.decode(token);
              samples.push(performance.now() - start);
            }
            return samples;
          };
          const { ms } = await sample(bench, { ms: decode }, bench.quick ? 0.5 : 6);
          const bytes = stepBytes(config, weightBytes, [prefix + (steps + 1) / 2]);
          const read = bench.limits.readGbPerS;
          const at = { model: holder.name, tokens: prefix, batch: 1, what: 'decode' };
          const limitName = read === null ? 'not measured' : 'bytes at the read bandwidth';
          return [rateFigure({ name, at, bytes, limitName }, ms, 1, read && bytes / read.median / 1e6)];
        } finally {
          session.dispose();
        }
      }),
  };
}

/** Milliseconds per token while all generations decode: from the last first token to the first last token. */
async function timeBatch(model: Model, newTokens: number): Promise<number> {
  const { vocabSize } = model.config;
  const stamps = await Promise.all(
    Array.from({ length: BATCH_SIZE }, async (_, i) => {
      const times: number[] = [];
      const generation = model.generate(promptTokens(BATCH_PROMPT + i, vocabSize, i), { maxTokens: newTokens });
      for await (const _ of generation) times.push(performance.now());
      return times;
    }),
  );
  const from = Math.max(...stamps.map((times) => times[0] as number));
  const to = Math.min(...stamps.map((times) => times[times.length - 1] as number));
  const count = stamps.flat().filter((time) => time > from && time <= to).length;
  if (count === 0) throw new Error('there was no time when all generations decoded');
  return (to - from) / count;
}

function batchCell(bench: Bench, holder: Holder): Cell {
  const name = `${holder.title()}: decode of ${BATCH_SIZE} generations at once`;
  const newTokens = bench.quick ? 22 : 64;
  return {
    name,
    seconds: bench.quick ? 3 : 20,
    bytes: 0,
    run: () =>
      cellBody(holder, BATCH_PROMPT + BATCH_SIZE + newTokens, async (model) => {
        const { ms } = await sample(bench, { ms: () => timeBatch(model, newTokens) }, bench.quick ? 0.5 : 15, 1);
        const meanLength = BATCH_PROMPT + BATCH_SIZE / 2 + newTokens / 2;
        const bytes = stepBytes(model.config, model.weightBytes, new Array<number>(BATCH_SIZE).fill(meanLength));
        const read = bench.limits.readGbPerS;
        const at = { model: holder.name, tokens: BATCH_PROMPT, batch: BATCH_SIZE, what: 'decode' };
        const limitName = read === null ? 'not measured' : 'bytes of a step at the read bandwidth';
        const limitMs = read && bytes / read.median / 1e6 / BATCH_SIZE;
        return [rateFigure({ name, at, bytes, limitName }, ms, 1, limitMs)];
      }),
  };
}

function sample<Name extends string>(
  bench: Bench,
  variants: Record<Name, () => Promise<number | number[]>>,
  seconds: number,
  minRounds = 3,
): Promise<Record<Name, Stats>> {
  const rounds = bench.quick ? { minRounds: Math.min(2, minRounds), maxRounds: 5 } : { minRounds, maxRounds: 20 };
  return interleaveFor(variants, { seconds, ...rounds, check: bench.check });
}

export const modelSuite: Suite = {
  description:
    'a whole model: tokens per second of prefill and decode, time to the first token, 16 simultaneous generations',
  kinds: ['cuda', 'cpu', 'trial'],
  plan(bench) {
    const holder = new Holder(bench);
    if (!isPreset(holder.name) && !fs.existsSync(path.join(holder.name, 'config.json')))
      throw new Error(
        `--model must be ${Object.keys(PRESETS).join(', ')} or a checkpoint directory, not '${holder.name}'`,
      );
    const lengths = byKind(bench, { cuda: [512, 4096], cpu: bench.quick ? [128] : [128, 512, 2048], trial: [8] });
    const prefixes = byKind(bench, { cuda: [512, 8192], cpu: bench.quick ? [128] : [512, 2048], trial: [8] });
    return {
      setup: {
        model: holder.name,
        title: holder.title(),
        prefillTokens: lengths,
        decodeAfter: prefixes,
        batch: { size: BATCH_SIZE, promptTokens: BATCH_PROMPT },
        clock: 'wall clock, including the logits',
      },
      cells: [
        ...lengths.map((length) => prefillCell(bench, holder, length)),
        ...prefixes.map((prefix) => decodeCell(bench, holder, prefix)),
        batchCell(bench, holder),
      ],
      dispose: async () => holder.dispose(),
    };
  },
};
