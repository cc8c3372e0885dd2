// A Llama-shaped model against llama.cpp: the same weights, the same prompt, greedy tokens, from tokens to the next token.
import * as fs from 'node:fs';

import { Model } from '../../lib/index';
import { BandwidthMeter, Ceilings } from '../ceilings';
import { figure } from '../figure';
import { interleave, mapStats, type Stats } from '../measure';
import { type LlamaShape, writeModels } from './checkpoint';
import { compare, type Generate, generate, promptOf } from './llama_sides';
import { type PeersContext, scratchFolder, settle } from './run';
import { Worker } from './worker';

const NAME = 'llama.cpp';
const TYPES = ['BF16', 'F16'] as const; // llama.cpp is given the one that it is faster with
const GROUP = 'peers: model';

const SHAPE: LlamaShape = {
  hidden_size: 1024,
  intermediate_size: 4096,
  num_hidden_layers: 24,
  num_attention_heads: 16,
  num_key_value_heads: 4,
  head_dim: 64,
  vocab_size: 32000,
  max_position_embeddings: 2048,
  rope_theta: 10000,
  rms_norm_eps: 1e-5,
};

export async function measureLlama(context: PeersContext): Promise<string> {
  const { quick, tiny, threads, progress, setup } = context;
  const layers = tiny ? 2 : quick ? 8 : SHAPE.num_hidden_layers;
  const shape = { ...SHAPE, num_hidden_layers: layers, ...(tiny && { hidden_size: 256, num_attention_heads: 4 }) };
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
      const same = await compare(session, worker, byPeer, promptOf(decodeLength, shape.vocab_size));
      // Rounding differs, weights do not: what falls short of this is another computation.
      if (!(same.correlation > 0.999)) throw new Error(`its logits are not ours: ${JSON.stringify(same)}`);
      agreements[type] = same;
      generators.push([`${NAME} ${type}`, byPeer]);
    }
    const ceilings = openCeilings(progress);
    const bandwidth = ceilings && new BandwidthMeter(ceilings);
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
    const ms = await interleave(variants, {
      warmUp: 1,
      rounds,
      onRound: async (round) => {
        await settle();
        await bandwidth?.sample(1);
        if (round > 0) progress(`${NAME}: round ${round} of ${rounds}`);
      },
    });
    ceilings?.close();
    session.dispose();
    const kvBytes = 2 * 2 * layers * shape.num_key_value_heads * shape.head_dim;
    const bytes = 2 * files.matrixParameters + kvBytes * (decodeLength + (newTokens + 1) / 2);
    const flops = 2 * files.matrixParameters * prefillLength;
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
    if (bandwidth) context.ceilings.readBandwidth = bandwidth.best();
    const readGbPerS = bandwidth?.best().gbPerS.median ?? null;
    report(context, ms, { bytes, flops, readGbPerS, prefillLength, decodeLength });
    return `${about.llamaCpp}, node-llama-cpp ${about.version}`;
  } finally {
    for (const worker of workers) worker.close();
    model?.dispose();
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

function openCeilings(progress: (line: string) => void): Ceilings | null {
  try {
    return Ceilings.open();
  } catch (error) {
    progress(`no read bandwidth: ${(error as Error).message}`);
    return null;
  }
}

interface Amounts {
  bytes: number;
  flops: number;
  readGbPerS: number | null;
  prefillLength: number;
  decodeLength: number;
}

function report({ figures }: PeersContext, ms: Record<string, Stats>, amounts: Amounts): void {
  const { bytes, flops, readGbPerS, prefillLength, decodeLength } = amounts;
  for (const what of ['decode', 'prefill']) {
    const tokens = what === 'decode' ? 1 : prefillLength;
    const all = Object.entries(ms).filter(([name]) => name.startsWith(what));
    for (const [name, stats] of all) {
      figures.push(
        figure({
          name: `${what} after ${what === 'decode' ? decodeLength : 0} tokens: ${name.slice(what.length + 1)}`,
          value: (tokens * 1000) / stats.median,
          unit: 'tokens/s',
          better: 'more',
          limit: what === 'decode' && readGbPerS !== null ? (readGbPerS * 1e9) / bytes : null,
          limitName: 'bytes at the read bandwidth',
          target: null,
          samples: { ms: stats, tokensPerSecond: mapStats(stats, (value) => (tokens * 1000) / value) },
          group: GROUP,
          at: { who: name.slice(what.length + 1), what },
          ...(what === 'decode' ? { bytes } : { flops }),
        }),
      );
    }
    const ours = ms[`${what} diffqkv`] as Stats;
    const [peer, best] = all
      .filter(([name]) => name !== `${what} diffqkv`)
      .reduce((least, one) => (one[1].median < least[1].median ? one : least));
    figures.push(
      figure({
        name: `${what}: tokens per second over those of ${peer.slice(what.length + 1)}`,
        value: best.median / ours.median,
        unit: 'x',
        better: 'more',
        limit: null,
        limitName: '',
        target: { on: 'value', atLeast: what === 'decode' ? 1.05 : 1.3 },
        samples: { ours, peer: best },
        group: GROUP,
        at: { who: 'diffqkv / llama.cpp', what },
      }),
    );
  }
}
