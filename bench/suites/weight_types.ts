// Suite weight-types: decode and prefill of a Llama with weights in bf16, i8 and i4, in turn.
import { Model, type ModelOptions } from '../../lib/index';
import { BandwidthMeter, type Ceilings } from '../ceilings';
import { type Figure, figure } from '../figure';
import { mapStats, type Stats, summarize } from '../measure';
import { LLAMA_SHAPE } from '../shapes';
import { promptTokens, timeDecode, timePrefill } from '../steps';
import type { Bench, CellResult, Suite } from '../suite';

const LLAMA = { ...LLAMA_SHAPE, model_type: 'llama', tie_word_embeddings: true };
const QUICK_LAYERS = 2;
const PROMPT_TOKENS = 512;
const KV_LEN = 128; // of decode
const GROUP_SIZE = 32;
const TYPES = ['bf16', 'i8', 'i4'] as const;
type Type = (typeof TYPES)[number];

const targets: Record<Type, number | null> = { bf16: null, i8: 0.85, i4: 0.75 }; // shares of the read bandwidth

async function measure({ device, quick, progress, check }: Bench, ceilings: Ceilings): Promise<CellResult> {
  const config = { ...LLAMA, ...(quick && { num_hidden_layers: QUICK_LAYERS }) };
  const rounds = quick ? 2 : 12;
  const steps = quick ? 4 : 16;
  const bandwidth = new BandwidthMeter(ceilings);
  const models: Model[] = [];
  try {
    const sides = [];
    for (const type of TYPES) {
      progress(`making a random Llama of ${config.num_hidden_layers} layers with ${type} weights`);
      const options: ModelOptions = { device, dtype: 'bf16' };
      if (type !== 'bf16') Object.assign(options, { weightType: type, weightGroupSize: GROUP_SIZE });
      const model = await Model.random(config, options);
      models.push(model);
      const session = await model.createSession({ maxKvLen: PROMPT_TOKENS });
      sides.push({
        type,
        session,
        weightBytes: model.weightBytes,
        decodeMs: [] as number[],
        prefillMs: [] as number[],
      });
    }
    for (let round = 0; round <= rounds; ++round) {
      check();
      progress(round === 0 ? 'warming up' : `decode and prefill: round ${round} of ${rounds}`);
      await bandwidth.sample();
      for (const { session, decodeMs, prefillMs } of sides) {
        const prefill = await timePrefill(session, promptTokens(PROMPT_TOKENS, config.vocab_size));
        const decode = await timeDecode(session, KV_LEN, steps, config.vocab_size);
        if (round === 0) continue;
        prefillMs.push(prefill);
        decodeMs.push(...decode);
      }
    }
    const limit = bandwidth.best().gbPerS;
    const cacheBytes = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim;
    const figures: Figure[] = [];
    // Beside a quantized output layer, the embedding stays in bf16, and a step reads one row of it.
    const embeddingBytes = config.vocab_size * config.hidden_size * 2;
    const [plain, ...quantized] = sides.map(({ type, weightBytes, decodeMs, prefillMs }) => {
      const read = type === 'bf16' ? weightBytes : weightBytes - embeddingBytes;
      const bytes = read + (KV_LEN + (steps + 1) / 2) * cacheBytes;
      const [decode, prefill] = [summarize(decodeMs), summarize(prefillMs)];
      const target = targets[type];
      figures.push(
        figure({
          name: `decode, ${type}: weights and cache read`,
          value: bytes / decode.median / 1e6,
          unit: 'GB/s',
          better: 'more',
          limit: limit.median,
          limitName: 'read bandwidth',
          target: target === null ? null : { on: 'share', atLeast: target },
          samples: { gbPerS: mapStats(decode, (ms) => bytes / ms / 1e6), limit },
          group: 'weight-types',
          at: { type, what: 'read' },
        }),
        perSecond(`decode, ${type}: tokens per second`, decode, 1, { type, what: 'decode' }),
        perSecond(`prefill of ${PROMPT_TOKENS} tokens, ${type}`, prefill, PROMPT_TOKENS, { type, what: 'prefill' }),
      );
      return { type, bytes, decode, prefill };
    });
    for (const { type, bytes, decode, prefill } of quantized) {
      if (!plain) break;
      figures.push(
        ratio(`decode, ${type} over bf16`, plain.decode, decode, plain.bytes / bytes, type === 'i4' ? 2.5 : null),
        ratio(`prefill, ${type} over bf16`, plain.prefill, prefill, null, 0.9),
      );
    }
    const weightBytes = Object.fromEntries(sides.map((side) => [side.type, side.weightBytes]));
    return { figures, setup: { ...config, groupSize: GROUP_SIZE, weightBytes }, ceilings: { readBandwidth: limit } };
  } finally {
    for (const model of models) model.dispose();
  }
}

function perSecond(name: string, ms: Stats, tokens: number, at: Record<string, string>): Figure {
  return figure({
    name,
    value: (tokens * 1000) / ms.median,
    unit: 'tokens/s',
    better: 'more',
    limit: null,
    limitName: 'not measured',
    target: null,
    samples: { tokensPerSecond: mapStats(ms, (value) => (tokens * 1000) / value) },
    group: 'weight-types',
    at,
  });
}

/** How many times as fast as bf16. */
function ratio(name: string, plain: Stats, ms: Stats, limit: number | null, atLeast: number | null): Figure {
  return figure({
    name,
    value: plain.median / ms.median,
    unit: 'x',
    better: 'more',
    limit,
    limitName: limit === null ? 'not measured' : 'bytes over bytes',
    target: atLeast === null ? null : { on: 'value', atLeast },
    samples: { bf16Ms: plain, ms },
    group: 'weight-types',
    at: { name },
  });
}

export const weightTypesSuite: Suite = {
  description: 'decode and prefill of a Llama with weights in bf16, i8 and i4, with targets',
  kinds: ['cpu'],
  plan(bench) {
    const { ceilings } = bench;
    const name = 'Llama of 24 layers';
    const run = async (): Promise<CellResult> =>
      ceilings ? measure(bench, ceilings) : { figures: [], skipped: 'it needs the limits of the CPU' };
    return {
      setup: { promptTokens: PROMPT_TOKENS, kvLen: KV_LEN, dtype: 'bf16' },
      cells: [{ name, seconds: bench.quick ? 6 : 90, bytes: 0, run }],
    };
  },
};
