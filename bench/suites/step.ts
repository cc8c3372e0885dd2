// Suite step: decode steps of whole models by the wall clock, and decode attention alone by the clock of the device, with
// the goals of bench/step_cases.ts. A floor is the bytes of a step at the peak rate of an H200's memory; on another GPU, at
// its measured read bandwidth.
import { Model, type Session } from '../../lib/index';
import { cacheBytes } from '../arithmetic';
import { type Figure, figure } from '../figure';
import { interleaveFor, type Stats } from '../measure';
import { headShape } from '../shapes';
import {
  ATTENTION_CASES,
  type AttentionCase,
  floorBytes,
  STEP_CASES,
  STEP_MODELS,
  type StepCase,
  sizesOf,
  sizesOfCase,
} from '../step_cases';
import { BUILT, stepKernels, total } from '../step_kernels';
import { H200 } from '../step_model';
import { promptTokens } from '../steps';
import { type Bench, type Cell, isTrial, type Suite } from '../suite';
import { decodeMemory, decodeWork, timeWorks } from '../work';

const STEPS = 32; // of a generation, after the first
const KEPT_BYTES = 2e9; // for activations and the rest of the process

/** The sizes of a trial, which only shows that the suite runs. */
const TRIAL = { numLayers: 1, hiddenSize: 64, intermediateSize: 96, vocabSize: 256, ...headShape([8, 2, 4], 16) };

/** Milliseconds of `bytes` at the rate that the goals refer to, and its name; null if the rate is unknown, as in a trial. */
function floorOf({ device, limits }: Bench, bytes: number): { ms: number; name: string } | null {
  if (isTrial(device)) return null;
  if (device.info.name.includes(H200.name))
    return { ms: bytes / H200.peakGbPerS / 1e6, name: `bytes at the peak of an ${H200.name}'s memory` };
  if (limits.readGbPerS === null) return null;
  return { ms: bytes / limits.readGbPerS.median / 1e6, name: 'bytes at the read bandwidth' };
}

function stepFigure(
  bench: Bench,
  { name, goal }: { name: string; goal: number | null },
  ms: Stats,
  bytes: number,
): Figure {
  const floor = floorOf(bench, bytes);
  return figure({
    name,
    value: ms.median,
    unit: 'ms',
    better: 'less',
    limit: floor?.ms ?? null,
    limitName: floor?.name ?? 'not measured',
    target: goal === null ? null : { on: 'share', atLeast: goal },
    samples: { ms },
    group: 'step',
    at: { name },
    bytes,
  });
}

/** Has the model of the latest cell. */
class CurrentModel {
  private name = '';
  private model: Model | null = null;

  constructor(private readonly bench: Bench) {}

  async get(name: string): Promise<Model> {
    if (this.model !== null && this.name === name) return this.model;
    this.dispose();
    this.bench.pool.trim(0);
    this.bench.progress(`making a random ${name}`);
    const { device } = this.bench;
    this.model = await Model.random(configOf(this.bench, name), { device, dtype: 'bf16' });
    this.name = name;
    return this.model;
  }

  dispose(): void {
    this.model?.dispose();
    this.model = null;
  }
}

/** The config.json of a model, without an end of text that would stop a generation. In a trial a small one. */
function configOf(bench: Bench, name: string): Record<string, unknown> {
  const { config } = STEP_MODELS[name] as (typeof STEP_MODELS)[string];
  const whole: Record<string, unknown> = { ...config };
  delete whole.bos_token_id;
  delete whole.eos_token_id;
  if (!isTrial(bench.device)) return whole;
  return {
    ...whole,
    num_hidden_layers: TRIAL.numLayers,
    hidden_size: TRIAL.hiddenSize,
    intermediate_size: TRIAL.intermediateSize,
    vocab_size: TRIAL.vocabSize,
    num_attention_heads: TRIAL.numQHeads,
    head_dim: TRIAL.headDimQk,
    ...('aug_q_dim' in whole
      ? { aug_q_dim: 96, num_key_heads: TRIAL.numKHeads, num_value_heads: TRIAL.numVHeads }
      : { num_key_value_heads: TRIAL.numVHeads }),
  };
}

/** Milliseconds of each step in which all sessions draw a token greedily, after their first tokens of a round. */
async function timeSteps(model: Model, sessions: readonly Session[], kvLen: number, steps: number): Promise<number> {
  const { vocabSize } = model.config;
  for (const session of sessions) await session.truncate(kvLen);
  const stamps = await Promise.all(
    sessions.map(async (session, i) => {
      const times: number[] = [];
      const options = { session, maxTokens: steps + 1, temperature: 0 };
      for await (const _ of model.generate(promptTokens(1, vocabSize, i), options)) times.push(performance.now());
      return times;
    }),
  );
  const from = Math.max(...stamps.map((times) => times[0] as number));
  const to = Math.min(...stamps.map((times) => times[times.length - 1] as number));
  const count = stamps.flat().filter((time) => time > from && time <= to).length;
  if (count === 0) throw new Error('there was no time when all generations decoded');
  return ((to - from) * sessions.length) / count;
}

function stepCell(bench: Bench, models: CurrentModel, whole: StepCase): Cell {
  const trial = isTrial(bench.device);
  const { name, model, batchSize, kvLen } = trial
    ? { ...whole, batchSize: Math.min(2, whole.batchSize), kvLen: 12 }
    : whole;
  const steps = trial ? 4 : STEPS;
  const before = kvLen - (steps >> 1); // so that the mean length is kvLen
  const sizes = sizesOfCase(whole);
  const cached = kvLen * batchSize * sizes.numLayers * cacheBytes(sizes);
  const weights = total(stepKernels(sizes, [1], BUILT), 'weights');
  return {
    name,
    seconds: 10 + (batchSize * kvLen) / 20_000,
    bytes: trial ? 0 : weights + cached + KEPT_BYTES,
    async run() {
      const current = await models.get(model);
      const { vocabSize } = current.config;
      const sessions: Session[] = [];
      try {
        bench.progress('filling the caches');
        for (let i = 0; i < batchSize; ++i) {
          bench.check();
          const session = await current.createSession({ maxKvLen: before + steps + 2 });
          sessions.push(session);
          await session.prefill(promptTokens(before, vocabSize, i));
        }
        const seconds = bench.quick ? 1 : 5;
        const { ms } = await interleaveFor(
          { ms: () => timeSteps(current, sessions, before, steps) },
          { seconds, minRounds: bench.quick ? 2 : 5, maxRounds: bench.quick ? 5 : 50, check: bench.check },
        );
        const bytes = floorBytes(whole, BUILT);
        return { figures: [stepFigure(bench, whole, ms, bytes)], setup: { model, batchSize, kvLen, steps } };
      } finally {
        for (const session of sessions) session.dispose();
      }
    },
  };
}

function attentionCell(bench: Bench, whole: AttentionCase): Cell {
  const { name, heads } = whole;
  const kvLen = isTrial(bench.device) ? 256 : whole.kvLen;
  return {
    name,
    seconds: 2,
    bytes: decodeMemory(bench, heads, kvLen),
    async run() {
      const work = decodeWork(bench, { heads, kvLen });
      const { ms } = await timeWorks(bench, { ms: work }, bench.quick ? 0.2 : 2);
      return { figures: [stepFigure(bench, whole, ms, work.bytes)] };
    },
  };
}

export const stepSuite: Suite = {
  description: 'decode steps of whole models and decode attention, with goals',
  kinds: ['cuda', 'trial'],
  plan(bench) {
    const models = new CurrentModel(bench);
    const cases = bench.quick
      ? STEP_CASES.filter(({ batchSize, kvLen }) => batchSize === 1 && kvLen <= 4096)
      : STEP_CASES;
    return {
      setup: {
        dtype: 'bf16',
        clock: 'steps: wall clock of greedy generations; attention: the clock of the device',
        models: Object.fromEntries(Object.entries(STEP_MODELS).map(([name, { config }]) => [name, sizesOf(config)])),
      },
      cells: [
        ...ATTENTION_CASES.map((one) => attentionCell(bench, one)),
        ...cases.map((one) => stepCell(bench, models, one)),
      ],
      dispose: async () => models.dispose(),
    };
  },
};
