// Shared parts of the measurements of peers.
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';

import { type Device, openDevice } from '../../lib/index';
import { Ceilings } from '../ceilings';
import type { Figure } from '../figure';
import { CpuLimits, type Limits, NO_LIMITS } from '../limits';
import { interleave, type Stats, summarize } from '../measure';
import { limitOf, type Work } from '../work';
import { PeerMissing } from './worker';

export interface Peer {
  name: string;
  version: string | null;
  status: 'measured' | 'missing';
  reason?: string;
}

export interface PeersContext {
  quick: boolean;
  /** Sizes too small for figures, to show that everything runs. */
  tiny: boolean;
  /** Number of threads of diffqkv and of every peer. */
  threads: number;
  progress: (line: string) => void;
  figures: Figure[];
  peers: Peer[];
  setup: Record<string, unknown>;
  limits: RunLimits;
}

/** The limits of the CPU over the run, on a device of their own that is opened for the first sample. */
export class RunLimits {
  private device: Device | null = null;
  private limits: CpuLimits | null | undefined;

  constructor(private readonly progress: (line: string) => void) {}

  async sample(): Promise<void> {
    if (this.limits !== undefined) {
      await this.limits?.refresh(0);
      return;
    }
    this.limits = null;
    try {
      this.device = await openDevice('cpu');
      const limits = new CpuLimits(new Ceilings(this.device));
      await limits.start(2);
      this.limits = limits;
    } catch (error) {
      this.progress(`no limits: ${(error as Error).message}`);
    }
  }

  /** The least milliseconds of a call and the name of the limit; null if the limit was not measured. */
  of(work: Omit<Work, 'call'>) {
    return limitOf({ ...work, call: async () => {} }, this.limits?.now() ?? NO_LIMITS);
  }

  all(): Limits {
    return this.limits?.all() ?? NO_LIMITS;
  }

  close(): void {
    this.device?.dispose();
  }
}

/** Runs `measure`, which returns the version of the peer. A peer that fails is reported as missing, with the reason. */
export async function measurePeer(context: PeersContext, name: string, measure: () => Promise<string>): Promise<void> {
  try {
    context.peers.push({ name, version: await measure(), status: 'measured' });
  } catch (error) {
    const reason = (error as Error).message;
    context.peers.push({ name, version: null, status: 'missing', reason });
    context.progress(`${name} is missing: ${reason}`);
    if (!(error instanceof PeerMissing)) context.progress((error as Error).stack ?? '');
  }
}

/** CPU times of all cores since the start of the system. */
function cpuTimes(): { idle: number; all: number } {
  const times = os.cpus().map(({ times }) => times);
  const sum = (values: number[]) => values.reduce((total, value) => total + value, 0);
  return { idle: sum(times.map(({ idle }) => idle)), all: sum(times.flatMap((one) => Object.values(one))) };
}

const PAUSE_MS = 150;
let patienceMs = 60_000; // of the whole run, so that a run also ends on a machine that is always busy

/**
 * Waits before a sample. The threads of a library can spin for some milliseconds after its work, which must not slow down
 * the next library. If other programs use the cores, it waits until they are idle: they slow down a library whose threads
 * spin much more than others.
 */
export async function settle(): Promise<void> {
  for (;;) {
    const before = cpuTimes();
    await new Promise<void>((resolve) => setTimeout(resolve, PAUSE_MS));
    const after = cpuTimes();
    const idle = (after.idle - before.idle) / (after.all - before.all);
    if (idle > 0.85 || patienceMs <= 0) return;
    patienceMs -= PAUSE_MS;
  }
}

/** Sets the total time that a run can wait for idle cores. */
export function setPatience(ms: number): void {
  patienceMs = ms;
}

/** The remaining time for waiting. If it is 0, samples were taken on a busy machine. */
export const patienceLeftMs = () => Math.max(0, patienceMs);

/** Like `interleave`, but also returns the samples of each counted round. */
export async function inTurn(
  variants: Record<string, () => Promise<number[]>>,
  options: Parameters<typeof interleave>[1],
): Promise<{ ms: Record<string, Stats>; rounds: Record<string, number[][]> }> {
  const taken: Record<string, number[][]> = {};
  const keeping = Object.entries(variants).map(([name, sample]) => {
    const list: number[][] = [];
    taken[name] = list;
    return [name, async () => list[list.push(await sample()) - 1] as number[]] as const;
  });
  const ms = await interleave<string>(Object.fromEntries(keeping), options);
  const counted = Object.entries(taken).map(([name, list]) => [name, list.slice(options.warmUp)]);
  return { ms, rounds: Object.fromEntries(counted) };
}

/** The speed of diffqkv relative to the peer in each round: a disturbance affects both sides of a round. */
export function timesAsFast(ours: readonly number[][], peer: readonly number[][]): Stats {
  const median = (samples: readonly number[] | undefined) => summarize(samples ?? []).median;
  return summarize(ours.map((samples, round) => median(peer[round]) / median(samples)));
}

/** The Pearson correlation, and the largest difference after subtraction of the means. */
export function agreement(a: ArrayLike<number>, b: ArrayLike<number>): { correlation: number; maxDifference: number } {
  const [x, y] = [a, b].map((values) => {
    const array = Float64Array.from(values);
    const mean = array.reduce((sum, value) => sum + value, 0) / array.length;
    return array.map((value) => value - mean);
  }) as [Float64Array, Float64Array];
  let [xy, xx, yy, maxDifference] = [0, 0, 0, 0];
  x.forEach((value, i) => {
    const other = y[i] as number;
    xy += value * other;
    xx += value * value;
    yy += other * other;
    maxDifference = Math.max(maxDifference, Math.abs(value - other));
  });
  return { correlation: xy / Math.sqrt(xx * yy), maxDifference };
}

/** A temporary folder for models. The caller removes it; the end of the process does too, because models are large. */
export function scratchFolder(): string {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'diffqkv-peers-'));
  process.once('exit', () => fs.rmSync(folder, { recursive: true, force: true }));
  return folder;
}
