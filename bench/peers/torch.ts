// Attention by PyTorch on the GPU, which bench/peers/torch_attention.py measures and prints, and ours at the same shapes.
import { spawnSync } from 'node:child_process';
import * as path from 'node:path';

import { listDevices, openDevice } from '../../lib/index';
import { type Figure, figure } from '../figure';
import { NO_LIMITS } from '../limits';
import { mapStats } from '../measure';
import type { Bench } from '../suite';
import { TensorPool } from '../tensors';
import { decodeWork, prefillWork, timeWorks } from '../work';
import type { Peer, PeersContext } from './run';
import { PeerMissing, peersFolder } from './worker';

interface Answer {
  version: string;
  device: string;
  /** Its backends; one that refused some shapes is measured, and says which was the first. */
  peers: Peer[];
  figures: Figure[];
}

export async function measureTorch(context: PeersContext, python?: string): Promise<string> {
  if (python === undefined) throw new PeerMissing('no --python that has PyTorch was given');
  context.progress('PyTorch: attention');
  const size = context.tiny ? ['--tiny'] : context.quick ? ['--quick'] : [];
  const { status, stdout, error } = spawnSync(python, [path.join(peersFolder, 'torch_attention.py'), ...size], {
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  if (error) throw new PeerMissing(`cannot run ${python}: ${error.message}`);
  if (status !== 0) throw new PeerMissing(`torch_attention.py ended with status ${status}`);
  const answer = JSON.parse(stdout) as Answer;
  context.setup.torch = { device: answer.device };
  context.peers.push(...answer.peers);
  context.figures.push(...answer.figures, ...(await oursBeside(answer.figures, context)));
  return answer.version;
}

/** Our figures at the shapes of theirs, on the GPU where there is one; after theirs, not in turn: they are another program's. */
async function oursBeside(theirs: readonly Figure[], { quick, tiny, progress }: PeersContext): Promise<Figure[]> {
  const gpu = listDevices().find(({ kind, usable }) => kind === 'cuda' && usable);
  const device = await openDevice(gpu === undefined ? 'cpu' : 'cuda');
  const pool = new TensorPool(device);
  const bench: Bench = {
    device,
    quick: quick || tiny,
    limits: NO_LIMITS,
    ceilings: null,
    pool,
    progress,
    check: () => {},
  };
  const shapes = new Map(
    theirs.map((figure) => [JSON.stringify({ ...figure.at, who: '', group: figure.group }), figure]),
  );
  try {
    const figures: Figure[] = [];
    for (const { at, group, bytes, flops, name } of shapes.values()) {
      const {
        heads: headsText,
        dim,
        prefix,
        batch,
      } = at as { heads: string; dim: number; prefix: number; batch: number };
      const [numQHeads, numKHeads, numVHeads] = headsText.split('/').map(Number) as [number, number, number];
      const heads = { numQHeads, numKHeads, numVHeads, headDimQk: dim, headDimVo: dim };
      const work =
        bytes !== undefined
          ? decodeWork(bench, { heads, kvLen: prefix, batchSize: batch })
          : prefillWork(bench, heads, prefix, true, batch);
      const { ms } = await timeWorks(bench, { ms: work }, quick ? 0.5 : 1);
      pool.trim(0);
      const rate = mapStats(ms, (value) =>
        bytes !== undefined ? bytes / value / 1e6 : (flops as number) / value / 1e9,
      );
      figures.push(
        figure({
          name: name.replace(/: [^:]*$/, ': diffqkv'),
          value: rate.median,
          unit: bytes !== undefined ? 'GB/s' : 'TFLOP/s',
          better: 'more',
          limit: null,
          limitName: '',
          target: null,
          samples: { ms, rate },
          group,
          at: { ...at, who: 'diffqkv' },
          ...(bytes !== undefined ? { bytes } : { flops }),
        }),
      );
    }
    return figures;
  } finally {
    pool.trim(0);
    device.dispose();
  }
}
