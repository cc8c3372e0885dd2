// A Llama-shaped model against llama.cpp: the same weights and prompt, greedy tokens, times from tokens to the next token.
import * as fs from 'node:fs';

import { Model } from '../../lib/index';
import { modelPrefillFlops } from '../arithmetic';
import { figure } from '../figure';
import { mapStats } from '../measure';
import { LLAMA_SHAPE } from '../shapes';
import { writeModels } from './checkpoint';
import { compare, type Generate, generate, promptOf } from './llama_sides';
import { inTurn, type PeersContext, scratchFolder, settle, timesAsFast } from './run';
import { Worker } from './worker';

const NAME = 'llama.cpp';
const TYPES = ['BF16', 'F16'] as const; // the faster one of llama.cpp counts
const GROUP = 'peers: model';
const COMPARED_STEPS = 8;

export async function measureLlama(context: PeersContext): Promise<string> {
  const { quick, tiny, threads, progress, setup, limits } = context;
  const layers = tiny ? 2 : quick ? 8 : LLAMA_SHAPE.num_hidden_layers;
  const shape = {
    ...LLAMA_SHAPE,
    num_hidden_layers: layers,
    ...(tiny && { hidden_size: 256, num_attention_heads: 4 }),
  };
  const [prefillLength, decodeLength, newTokens] = tiny ? [64, 16, 8] : [512, 128, 64];
  const open = () => Worker.open('llama_cpp.mjs', 'node-llama-cpp');
  const workers: Worker[] = [];
  const folder = scratchFolder();
  let model: Model | null = null;
  try {
    workers.push(...TYPES.map(open));
    progress(`${NAME}: writing a model of ${layers} layers`);
    const files = writeModels(folder, shape, TYPES);
    model = await Model.load(folder, { device: 'cpu' });
    const session = await model.createSession({ maxKvLen: 1024 });
    let about = { version: '', llamaCpp: '', system: '' };
    const agreements: Record<string, Awaited<ReturnType<typeof compare>>> = {};
    const generators: [string, Generate][] = [['diffqkv', (tokens, count) => generate(session, tokens, count)]];
    for (const [i, { type, file }] of files.ggufs.entries()) {
      progress(`${NAME}: loading ${type}, comparing logits`);
      const worker = workers[i] as Worker;
      about = await worker.call('open', { threads });
      const got = await worker.call<{ threads: number }>('load', { modelPath: file, contextSize: 1024, threads });
      if (got.threads !== threads) throw new Error(`llama.cpp runs on ${got.threads} threads, not on ${threads}`);
      const byPeer: Generate = (tokens, count) => worker.call('generate', { tokens, count });
      const tokens = promptOf(decodeLength + COMPARED_STEPS, shape.vocab_size);
      const [prompt, steps] = [tokens.slice(0, decodeLength), tokens.slice(decodeLength)];
      const same = await compare(session, worker, byPeer, prompt, steps);
      // Only rounding differs. A lower correlation means another computation.
      if (!(same.prompt.correlation > 0.999 && same.decode.correlation > 0.999))
        throw new Error(`its logits differ from those of diffqkv: ${JSON.stringify(same)}`);
      agreements[type] = same;
      generators.push([`${NAME} ${type}`, byPeer]);
    }
    const variants = Object.fromEntries(
      generators.flatMap(([who, byWho]) => [
        [
          `decode ${who}`,
          async () => {
            await settle();
            return (await byWho(promptOf(decodeLength, shape.vocab_size), newTokens + 1)).ms.slice(1);
          },
        ],
        [
          `prefill ${who}`,
          async () => {
            await settle();
            return (await byWho(promptOf(prefillLength, shape.vocab_size), 1)).ms;
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
    session.dispose();
    const kvBytes = 2 * 2 * layers * shape.num_key_value_heads * shape.head_dim;
    const bytes = 2 * files.matrixParameters + kvBytes * (decodeLength + (newTokens + 1) / 2);
    const flops = modelPrefillFlops(model.config, prefillLength);
    setup.llama = {
      shape,
      weightBytes: files.weightBytes,
      prefillLength,
      decodeLength,
      newTokens,
      rounds,
      agreements,
      ...about,
    };
    report(context, samples, {
      decode: { tokens: 1, after: decodeLength, work: { bytes } },
      prefill: { tokens: prefillLength, after: 0, work: { bytes: 2 * files.matrixParameters, flops } },
    });
    return `${about.llamaCpp}, node-llama-cpp ${about.version}`;
  } finally {
    for (const worker of workers) worker.close();
    model?.dispose();
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

interface Amounts {
  tokens: number;
  /** Length of the cache before the tokens. */
  after: number;
  work: { bytes: number; flops?: number };
}

function report(
  { figures, limits }: PeersContext,
  { ms, rounds }: Awaited<ReturnType<typeof inTurn>>,
  amounts: Record<'decode' | 'prefill', Amounts>,
): void {
  for (const what of ['decode', 'prefill'] as const) {
    const { tokens, after, work } = amounts[what];
    const perSecond = (milliseconds: number) => (tokens * 1000) / milliseconds;
    const limit = limits.of(work);
    const all = Object.entries(ms).filter(([name]) => name.startsWith(what));
    for (const [name, stats] of all) {
      const who = name.slice(what.length + 1);
      figures.push(
        figure({
          name: `${what} after ${after} tokens: ${who}`,
          value: perSecond(stats.median),
          unit: 'tokens/s',
          better: 'more',
          limit: limit && perSecond(limit.ms),
          limitName: limit?.name ?? 'not measured',
          target: null,
          samples: { ms: stats, tokensPerSecond: mapStats(stats, perSecond) },
          group: GROUP,
          at: { who, what },
          ...work,
        }),
      );
    }
    const ours = `${what} diffqkv`;
    const [peer] = all
      .filter(([name]) => name !== ours)
      .reduce((least, one) => (one[1].median < least[1].median ? one : least));
    const times = timesAsFast(rounds[ours] as number[][], rounds[peer] as number[][]);
    figures.push(
      figure({
        name: `${what}: tokens per second over those of ${peer.slice(what.length + 1)}`,
        value: times.median,
        unit: 'x',
        better: 'more',
        limit: null,
        limitName: '',
        target: { on: 'value', atLeast: what === 'decode' ? 1.05 : 1.3 },
        samples: { times },
        group: GROUP,
        at: { who: 'diffqkv / llama.cpp', what },
      }),
    );
  }
}
