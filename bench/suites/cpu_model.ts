// Decode and prefill of a whole model, by the wall clock of the caller of Session, including the logits.
import { Model } from '../../lib/index';
import { BandwidthMeter, type Ceilings } from '../ceilings';
import { type Figure, figure } from '../figure';
import { availableMemory } from '../machine';
import { interleave, mapStats, type Stats, summarize } from '../measure';
import { SIGMA_15B_LAYERS, sigma15bConfig } from '../shapes';
import { promptTokens, timeDecode, timePrefill } from '../steps';
import type { Bench } from '../suite';
import { flops, LinearMeter, layerWeights, prefillMatrices } from './cpu_linear';

const PREFILL_TOKENS = 512;
const BF16_BYTES = 2;
const BATCH_SIZE = 16;
const BATCH_PROMPT_TOKENS = 32;
const RESERVED_BYTES = 7e9; // for the buffers of the limits and the rest of the process

/** As many layers as fit into memory, at least 4. */
function chooseLayers(quick: boolean): number {
  if (quick) return 2;
  const fit = Math.floor((availableMemory() - RESERVED_BYTES) / (layerWeights(sigma15bConfig(1)) * BF16_BYTES));
  return Math.max(4, Math.min(SIGMA_15B_LAYERS, fit));
}

/** Seconds of `count` simultaneous generations with different tokens. */
async function timeGenerations(model: Model, count: number, newTokens: number): Promise<number> {
  const prompts = Array.from({ length: count }, (_, i) =>
    promptTokens(BATCH_PROMPT_TOKENS + i, model.config.vocabSize).slice(i),
  );
  const start = performance.now();
  await Promise.all(prompts.map((prompt) => model.generate(prompt, { maxTokens: newTokens }).result));
  return (performance.now() - start) / 1000;
}

export async function measureModel({ device, quick, progress, check }: Bench, ceilings: Ceilings) {
  const numLayers = chooseLayers(quick);
  const config = sigma15bConfig(numLayers);
  progress(`making a random Sigma-1.5B with ${numLayers} of its ${SIGMA_15B_LAYERS} layers`);
  const model = await Model.random(config, { device, dtype: 'bf16' });
  const { weightBytes } = model;
  const rounds = quick ? 2 : 7;
  const stepsPerRound = quick ? 4 : 8;
  const session = await model.createSession({ maxKvLen: PREFILL_TOKENS + stepsPerRound });
  const tokens = promptTokens(PREFILL_TOKENS, config.vocab_size);
  const bandwidth = new BandwidthMeter(ceilings);
  const matrices = prefillMatrices(config, PREFILL_TOKENS);
  const linear = new LinearMeter(ceilings, matrices);

  const decodeMs: number[] = [];
  const prefillMs: number[] = [];
  const newTokens = quick ? 4 : 32;
  let batches: Record<'one' | 'many', Stats>;
  try {
    await session.prefill(tokens); // warms up
    await timeDecode(session, PREFILL_TOKENS, 2, config.vocab_size);
    for (let round = 1; round <= rounds; ++round) {
      check();
      progress(`decode and prefill: round ${round} of ${rounds}`);
      await bandwidth.sample();
      decodeMs.push(...(await timeDecode(session, PREFILL_TOKENS, stepsPerRound, config.vocab_size)));
      await bandwidth.sample();
      await linear.sample();
      prefillMs.push(await timePrefill(session, tokens));
    }
    if (!quick) await linear.sample();
    progress(`${BATCH_SIZE} simultaneous generations, and a single one`);
    const perSecond = async (count: number) => (count * newTokens) / (await timeGenerations(model, count, newTokens));
    batches = await interleave(
      { one: () => perSecond(1), many: () => perSecond(BATCH_SIZE) },
      { warmUp: quick ? 0 : 1, rounds: quick ? 1 : 3 },
    );
  } finally {
    session.dispose();
    model.dispose();
  }

  // A step reads every weight once (the embedding is tied to the head) and the cache of its context.
  const kvBytesPerToken = numLayers * (config.num_key_heads + config.num_value_heads) * config.head_dim * BF16_BYTES;
  const kvLen = PREFILL_TOKENS + (stepsPerRound + 1) / 2;
  const decodeBytes = weightBytes + kvLen * kvBytesPerToken;
  const decode = summarize(decodeMs);
  const prefill = summarize(prefillMs);
  return {
    setup: {
      shape: 'Sigma-1.5B',
      numLayers,
      dtype: 'bf16',
      weightBytes,
      decodeBytes,
      prefillTokens: PREFILL_TOKENS,
      batch: { size: BATCH_SIZE, promptTokens: BATCH_PROMPT_TOKENS, newTokens },
    },
    ceilings: { readBandwidth: bandwidth.best(), matrices: linear.report() },
    figures: [
      decodeFigure(decode, decodeBytes, bandwidth.best().gbPerS),
      prefillFigure(prefill, flops(matrices), linear),
      figure({
        name: 'decode: time for a token',
        value: decode.median,
        unit: 'ms',
        better: 'less',
        limit: decodeBytes / bandwidth.best().gbPerS.median / 1e6,
        limitName: 'bytes at the read bandwidth',
        target: null,
        samples: { ms: decode },
      }),
      figure({
        name: `prefill of ${PREFILL_TOKENS} tokens: time`,
        value: prefill.median,
        unit: 'ms',
        better: 'less',
        limit: linear.totalMs(),
        limitName: linear.timeName,
        target: null,
        samples: { ms: prefill },
      }),
      figure({
        name: `${BATCH_SIZE} generations at once over one: tokens per second`,
        value: batches.many.median / batches.one.median,
        unit: 'x',
        better: 'more',
        limit: BATCH_SIZE,
        limitName: 'each as fast as alone',
        target: { on: 'value', atLeast: 4 },
        samples: { tokensPerSecondOfOne: batches.one, tokensPerSecondOfAll: batches.many },
      }),
    ],
  };
}

function decodeFigure(ms: Stats, bytes: number, limit: Stats): Figure {
  return figure({
    name: 'decode: weights and cache read',
    value: bytes / ms.median / 1e6,
    unit: 'GB/s',
    better: 'more',
    limit: limit.median,
    limitName: 'read bandwidth',
    target: { on: 'share', atLeast: 0.85 },
    samples: { gbPerS: mapStats(ms, (value) => bytes / value / 1e6), limit },
  });
}

function prefillFigure(ms: Stats, work: number, linear: LinearMeter): Figure {
  return figure({
    name: `prefill of ${PREFILL_TOKENS} tokens: matrices`,
    value: work / ms.median / 1e6,
    unit: 'GFLOP/s',
    better: 'more',
    limit: work / linear.totalMs() / 1e6,
    limitName: linear.rateName,
    target: { on: 'share', atLeast: 0.75 },
    samples: { gflopPerS: mapStats(ms, (value) => work / value / 1e6) },
  });
}
