// Decode attention over 8k tokens against GroupQueryAttention of onnxruntime, which has one head count for K and V. Its
// cache is an input and an output. If both are the same memory, it appends in place, else it copies the whole cache.
import * as fs from 'node:fs';

import { openDevice } from '../../lib/index';
import { figure } from '../figure';
import { mapStats } from '../measure';
import { randomBf16 } from '../random';
import { DIM, decodeHalves, NUM_Q_HEADS, Ours, openPeer, type Type } from './gqa_sides';
import { agreement, inTurn, type PeersContext, scratchFolder, settle, timesAsFast } from './run';
import type { Worker } from './worker';

const NAME = 'onnxruntime';
const GROUP = 'peers: attention decode';
const BYTES = { f32: 4, f16: 2, bf16: 2 };

export async function measureGroupQueryAttention(context: PeersContext): Promise<string> {
  const { quick, tiny, threads, progress, setup, limits } = context;
  const kvLen = tiny ? 256 : 8192;
  const rounds = tiny ? 1 : quick ? 3 : 7;
  const calls = tiny ? 2 : 10;
  const device = await openDevice('cpu');
  const folder = scratchFolder();
  const agreements: Record<string, { correlation: number; maxDifference: number }> = {};
  const refused: Record<string, string> = {};
  setup.groupQueryAttention = { kvLen, calls, rounds, agreements, refused };
  let version = '';
  try {
    for (const heads of [8, 16]) {
      const random = (count: number, seed: number) => randomBf16(count, seed);
      const cache = {
        q: random(NUM_Q_HEADS * DIM, 1),
        k: random(kvLen * heads * DIM, 2),
        v: random(kvLen * heads * DIM, 3),
      };
      for (const type of ['f32', 'f16', 'bf16'] as const) {
        const bytes = 2 * kvLen * heads * DIM * BYTES[type];
        const copies = tiny ? 2 : Math.ceil((quick ? 0.4e9 : 1e9) / bytes); // so that no input is in a cache of the CPU
        const label = `${NUM_Q_HEADS}/${heads}/${heads} ${type}`;
        progress(`${NAME}: ${label}`);
        const ours = new Ours(device, type, cache.q, cache.k, cache.v, heads, copies);
        const workers: Record<string, Worker> = {};
        try {
          const expected = await (await ours.call()).read();
          for (const [way, pastLen] of [
            ['in place', kvLen],
            ['copied', kvLen - 1],
          ] as const) {
            const shape = { numQHeads: NUM_Q_HEADS, numKAndVHeads: heads, dim: DIM, kvLen, pastLen, type };
            const peer = await openPeer(folder, shape, cache, threads, copies).catch((error: Error) => {
              if (type !== 'bf16') throw error;
              refused[`${label}, ${way}`] = error.message; // onnxruntime has no bf16 kernel for the CPU
            });
            if (!peer) continue;
            workers[way] = peer.worker;
            version = peer.version;
            const same = agreement(decodeHalves(peer.values, type), expected);
            if (!(same.correlation > 0.9999))
              throw new Error(`${label}, ${way}: its output differs from that of diffqkv: ${JSON.stringify(same)}`);
            agreements[`${label}, ${way}`] = same;
          }
          await ours.time(copies); // as for the peer, the first calls on each cache are not timed
          const time = (sample: () => Promise<number[]>) => async () => {
            await settle();
            return await sample();
          };
          const samples = await inTurn(
            {
              diffqkv: time(() => ours.time(calls)),
              ...Object.fromEntries(
                Object.entries(workers).map(([way, worker]) => [
                  way,
                  time(async () => (await worker.call<{ ms: number[] }>('time', { calls })).ms),
                ]),
              ),
            },
            {
              warmUp: 1,
              rounds,
              onRound: async () => {
                await settle();
                await limits.sample();
              },
            },
          );
          report(context, samples, { heads, type, kvLen, bytes });
        } finally {
          for (const worker of Object.values(workers)) worker.close();
          ours.dispose();
        }
      }
    }
  } finally {
    device.dispose();
    fs.rmSync(folder, { recursive: true, force: true });
  }
  return version;
}

interface Amounts {
  heads: number;
  type: Type;
  kvLen: number;
  bytes: number;
}

function report(
  { figures, limits }: PeersContext,
  { ms, rounds }: Awaited<ReturnType<typeof inTurn>>,
  { heads, type, kvLen, bytes }: Amounts,
): void {
  const label = `${NUM_Q_HEADS}/${heads}/${heads} x ${DIM} ${type}`;
  const limit = limits.of({ bytes });
  const at = { heads: `${NUM_Q_HEADS}/${heads}/${heads}`, prefix: kvLen, type };
  for (const [name, stats] of Object.entries(ms)) {
    const who = name === 'diffqkv' ? name : `${NAME}, cache ${name}`;
    figures.push(
      figure({
        name: `decode attention ${label}, ${kvLen} tokens: ${who}`,
        value: stats.median,
        unit: 'ms',
        better: 'less',
        limit: limit?.ms ?? null,
        limitName: limit?.name ?? 'not measured',
        target: null,
        samples: { ms: stats, gbPerS: mapStats(stats, (value) => bytes / value / 1e6) },
        group: GROUP,
        at: { who, ...at },
        bytes,
      }),
    );
  }
  const peers = Object.entries(ms).filter(([name]) => name !== 'diffqkv');
  if (peers.length === 0) return;
  const [way] = peers.reduce((least, one) => (one[1].median < least[1].median ? one : least));
  const times = timesAsFast(rounds.diffqkv as number[][], rounds[way] as number[][]);
  figures.push(
    figure({
      name: `decode attention ${label}: times as fast as ${NAME} (cache ${way})`,
      value: times.median,
      unit: 'x',
      better: 'more',
      limit: null,
      limitName: '',
      target: { on: 'value', atLeast: 1.5 },
      samples: { times },
      group: GROUP,
      at: { who: `diffqkv / ${NAME}`, ...at },
    }),
  );
}
