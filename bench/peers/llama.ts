// A Llama-shaped model against llama.cpp: the same weights and prompt, greedy tokens, times from tokens to the next token.
// In 16 bits, 8 and 4, each in diffqkv's type and in llama.cpp's of the same size.
import * as fs from 'node:fs';

import { Model, openDevice, type Session } from '../../lib/index';
import { modelPrefillFlops } from '../arithmetic';
import { type Figure, figure } from '../figure';
import { mapStats, type Stats } from '../measure';
import { LLAMA_SHAPE } from '../shapes';
import { writeModels } from './checkpoint';
import { bytesPerElement, type GgufFileType } from './gguf';
import { compare, type Generate, generate, promptOf } from './llama_sides';
import { agreement, inTurn, type PeersContext, type RunLimits, scratchFolder, settle, timesAsFast } from './run';
import { Worker } from './worker';

const NAME = 'llama.cpp';
const GROUP = 'peers: model';
const COMPARED_STEPS = 8;
/** Of the logits of both sides. They have the same weights and only round differently. README.md has measurements. */
const LEAST_CORRELATION = 0.999;
const STEPS = ['decode', 'prefill'] as const;
/** A decode step at this share of the read bandwidth is as fast as the memory allows. */
const BANDWIDTH_SHARE = 0.85;

/** A type of weights in diffqkv, and those of llama.cpp that are compared with it. */
export interface Pair {
  weights: 'bf16' | 'i8' | 'i4';
  /** The faster one counts. A weight has the same number of bytes as in diffqkv. */
  ggufs: readonly [GgufFileType, ...GgufFileType[]];
  /** Tokens per second of diffqkv over those of llama.cpp. */
  atLeast: Record<(typeof STEPS)[number], number>;
}

export const PAIRS: readonly Pair[] = [
  { weights: 'bf16', ggufs: ['BF16', 'F16'], atLeast: { decode: 1.05, prefill: 1.3 } },
  { weights: 'i8', ggufs: ['Q8_0'], atLeast: { decode: 1.3, prefill: 1.3 } },
  { weights: 'i4', ggufs: ['Q4_0'], atLeast: { decode: 1.3, prefill: 1.3 } },
];

/** diffqkv or llama.cpp with one type of weights. */
interface Side {
  who: string;
  pair: Pair;
  isPeer: boolean;
  generate: Generate;
}

export async function measureLlama(context: PeersContext): Promise<string> {
  const { quick, tiny, threads, progress, setup, limits } = context;
  const layers = tiny ? 2 : quick ? 8 : LLAMA_SHAPE.num_hidden_layers;
  const shape = {
    ...LLAMA_SHAPE,
    num_hidden_layers: layers,
    ...(tiny && { hidden_size: 256, num_attention_heads: 4 }),
  };
  const [prefillLength, decodeLength, newTokens] = tiny ? [64, 16, 8] : [512, 128, 64];
  const types = PAIRS.flatMap(({ ggufs }) => ggufs);
  const workers = new Map<GgufFileType, Worker>();
  const folder = scratchFolder();
  const device = await openDevice('cpu');
  const models: Model[] = [];
  try {
    for (const type of types) workers.set(type, Worker.open('llama_cpp.mjs', 'node-llama-cpp'));
    progress(`${NAME}: writing a model of ${layers} layers`);
    const files = await writeModels(folder, shape, types, device);
    const tokens = promptOf(decodeLength + COMPARED_STEPS, shape.vocab_size);
    const [prompt, steps] = [tokens.slice(0, decodeLength), tokens.slice(decodeLength)];
    let about = { version: '', llamaCpp: '', system: '' };
    const agreements: Record<string, Awaited<ReturnType<typeof compare>>> = {};
    const correlationsWithBf16: Record<string, number> = {};
    const sides: Side[] = [];
    const sessions: Session[] = [];
    let bf16Logits: Float32Array | null = null;
    let flops = 0;
    for (const pair of PAIRS) {
      const { weights } = pair;
      const quantized = weights === 'bf16' ? {} : { weightType: weights, weightGroupSize: 32 };
      const model = await Model.load(folder, { device, ...quantized });
      models.push(model);
      flops = modelPrefillFlops(model.config, prefillLength);
      const session = await model.createSession({ maxKvLen: 1024 });
      sessions.push(session);
      const logits = await session.prefill(prompt);
      bf16Logits ??= logits;
      correlationsWithBf16[weights] = agreement(logits, bf16Logits).correlation;
      const byUs: Generate = (tokens, count) => generate(session, tokens, count);
      sides.push({ who: `diffqkv ${weights}`, pair, isPeer: false, generate: byUs });
      for (const type of pair.ggufs) {
        progress(`${NAME}: loading ${type}, comparing logits with ${weights}`);
        const worker = workers.get(type) as Worker;
        about = await worker.call('open', { threads });
        const modelPath = files.ggufs[type];
        const got = await worker.call<{ threads: number }>('load', { modelPath, contextSize: 1024, threads });
        if (got.threads !== threads) throw new Error(`llama.cpp runs on ${got.threads} threads, not on ${threads}`);
        const byPeer: Generate = (tokens, count) => worker.call('generate', { tokens, count });
        const same = await compare(session, worker, byPeer, prompt, steps);
        if (!(same.prompt.correlation > LEAST_CORRELATION && same.decode.correlation > LEAST_CORRELATION))
          throw new Error(`its ${type} logits differ from those of diffqkv ${weights}: ${JSON.stringify(same)}`);
        agreements[type] = same;
        sides.push({ who: `${NAME} ${type}`, pair, isPeer: true, generate: byPeer });
      }
    }
    const variants = Object.fromEntries(
      sides.flatMap(({ who, generate }) => [
        [
          `decode ${who}`,
          async () => {
            await settle();
            return (await generate(promptOf(decodeLength, shape.vocab_size), newTokens + 1)).ms.slice(1);
          },
        ],
        [
          `prefill ${who}`,
          async () => {
            await settle();
            return (await generate(promptOf(prefillLength, shape.vocab_size), 1)).ms;
          },
        ],
      ]),
    ) as Record<string, () => Promise<number[]>>;
    const rounds = tiny ? 1 : quick ? 3 : 7;
    await limits.sample();
    const samples = await inTurn(variants, {
      warmUp: 1,
      rounds,
      onRound: async (round) => {
        await settle();
        await limits.sample();
        if (round > 0) progress(`${NAME}: round ${round} of ${rounds}`);
      },
    });
    for (const session of sessions) session.dispose();
    const kvBytes = 2 * 2 * layers * shape.num_key_value_heads * shape.head_dim;
    const matrixBytes = ({ ggufs: [type] }: Pair) => files.matrixParameters * bytesPerElement(type);
    setup.llama = {
      shape,
      weightBytes: files.weightBytes,
      matrixBytesPerToken: Object.fromEntries(PAIRS.map((pair) => [pair.weights, matrixBytes(pair)])),
      prefillLength,
      decodeLength,
      newTokens,
      rounds,
      agreements,
      correlationsWithBf16,
      ...about,
    };
    for (const pair of PAIRS) {
      const bytes = matrixBytes(pair);
      const decodeBytes = bytes + kvBytes * (decodeLength + (newTokens + 1) / 2);
      const own = sides.filter((side) => side.pair === pair);
      report(context, pair, own, samples, {
        decode: { tokens: 1, after: decodeLength, work: { bytes: decodeBytes } },
        prefill: { tokens: prefillLength, after: 0, work: { bytes, flops } },
      });
    }
    return `${about.llamaCpp}, node-llama-cpp ${about.version}`;
  } finally {
    for (const worker of workers.values()) worker.close();
    for (const model of models) model.dispose();
    device.dispose();
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

interface Amounts {
  tokens: number;
  /** Length of the cache before the tokens. */
  after: number;
  work: { bytes: number; flops?: number };
}

/** Adds the figures of a pair. */
export function report(
  { figures, limits }: { figures: Figure[]; limits: Pick<RunLimits, 'of'> },
  { weights, atLeast }: Pair,
  sides: readonly Side[],
  { ms, rounds }: Awaited<ReturnType<typeof inTurn>>,
  amounts: Record<(typeof STEPS)[number], Amounts>,
): void {
  for (const what of STEPS) {
    const { tokens, after, work } = amounts[what];
    const perSecond = (milliseconds: number) => (tokens * 1000) / milliseconds;
    const limit = limits.of(work);
    const all = sides.map(({ who, isPeer }) => ({ who, isPeer, stats: ms[`${what} ${who}`] as Stats }));
    const [ours] = all.filter(({ isPeer }) => !isPeer) as [(typeof all)[number]];
    const peer = all
      .filter(({ isPeer }) => isPeer)
      .reduce((least, one) => (one.stats.median < least.stats.median ? one : least));
    // No program is 1.3 times as fast as one that reads weights at the bandwidth. Then diffqkv must reach that share too.
    const bound =
      weights !== 'bf16' && what === 'decode' && limit !== null && limit.ms / peer.stats.median > BANDWIDTH_SHARE;
    for (const { who, isPeer, stats } of all) {
      // llama.cpp multiplies quantized weights by 8-bit integers, which the rate of bf16 products does not limit.
      const ownLimit = isPeer && what === 'prefill' && weights !== 'bf16' ? null : limit;
      const target: Figure['target'] = bound && !isPeer ? { on: 'share', atLeast: BANDWIDTH_SHARE } : null;
      figures.push(
        figure({
          name: `${what} after ${after} tokens: ${who}`,
          value: perSecond(stats.median),
          unit: 'tokens/s',
          better: 'more',
          limit: ownLimit && perSecond(ownLimit.ms),
          limitName: ownLimit?.name ?? 'not measured',
          target,
          samples: { ms: stats, tokensPerSecond: mapStats(stats, perSecond) },
          group: GROUP,
          at: { who: isPeer ? who : 'diffqkv', what, weights },
          ...work,
        }),
      );
    }
    const roundsOf = ({ who }: { who: string }) => rounds[`${what} ${who}`] as number[][];
    const times = timesAsFast(roundsOf(ours), roundsOf(peer));
    figures.push(
      figure({
        name: `${what}: tokens per second of ${ours.who} over those of ${peer.who}`,
        value: times.median,
        unit: 'x',
        better: 'more',
        limit: null,
        limitName: '',
        target: bound ? null : { on: 'value', atLeast: atLeast[what] },
        samples: { times },
        group: GROUP,
        at: { who: 'diffqkv / llama.cpp', what, weights },
      }),
    );
  }
}
