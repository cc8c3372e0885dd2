// What the measurements of peers have in common.
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';

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
  /** So small that the figures mean nothing: shows that everything runs. */
  tiny: boolean;
  /** As many for the peers as diffqkv has. */
  threads: number;
  progress: (line: string) => void;
  figures: Figure[];
  peers: Peer[];
  setup: Record<string, unknown>;
  limits: RunLimits;
}

/** The CPU's ceilings over the run. The program that measures them starts with the first sample. */
export class RunLimits {
  private ceilings: Ceilings | null = null;
  private limits: CpuLimits | null | undefined;

  constructor(private readonly progress: (line: string) => void) {}

  async sample(): Promise<void> {
    if (this.limits !== undefined) {
      await this.limits?.refresh(0);
      return;
    }
    this.limits = null;
    try {
      this.ceilings = Ceilings.open();
      const limits = new CpuLimits(this.ceilings);
      await limits.start(2);
      this.limits = limits;
    } catch (error) {
      this.progress(`no limits: ${(error as Error).message}`);
    }
  }

  /** What a call can do at best: its milliseconds, and which ceiling says so; null where that was not measured. */
  of(work: Omit<Work, 'call'>) {
    return limitOf({ ...work, call: async () => {} }, this.limits?.now() ?? NO_LIMITS);
  }

  all(): Limits {
    return this.limits?.all() ?? NO_LIMITS;
  }

  close(): void {
    this.ceilings?.close();
  }
}

/** Runs `measure`, which returns the peer's version. A peer that fails is missing, with its reason, and the others go on. */
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

/** Since the start of the system, over all cores. */
function cpuTimes(): { idle: number; all: number } {
  const times = os.cpus().map(({ times }) => times);
  const sum = (values: number[]) => values.reduce((total, value) => total + value, 0);
  return { idle: sum(times.map(({ idle }) => idle)), all: sum(times.flatMap((one) => Object.values(one))) };
}

const PAUSE_MS = 150;
let patienceMs = 60_000; // of the whole run: a machine that is never quiet must not hold it up for ever

/**
 * What stands before every sample. Threads of one library may spin on for some milliseconds after its work: not on the time of
 * the next one. And where other programs keep the cores busy, it waits for a quiet moment: a library whose threads spin to wait
 * for each other suffers from them out of all proportion.
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

/** How long a run may wait for quiet moments, in all. */
export function setPatience(ms: number): void {
  patienceMs = ms;
}

/** What is left of the time for waiting: nothing, and samples were taken on a busy machine. */
export const patienceLeftMs = () => Math.max(0, patienceMs);

/** As `interleave`, and the samples of each counted round beside their summary. */
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

/** How many times as fast as the peer ours is, of each round by itself: what disturbs a round disturbs both sides. */
export function timesAsFast(ours: readonly number[][], peer: readonly number[][]): Stats {
  const median = (samples: readonly number[] | undefined) => summarize(samples ?? []).median;
  return summarize(ours.map((samples, round) => median(peer[round]) / median(samples)));
}

/** Pearson's correlation, and the largest difference after both have been centred. */
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

/** A folder for models; whoever makes it removes it, and so does the end of the process, since a model takes gigabytes. */
export function scratchFolder(): string {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'diffqkv-peers-'));
  process.once('exit', () => fs.rmSync(folder, { recursive: true, force: true }));
  return folder;
}
