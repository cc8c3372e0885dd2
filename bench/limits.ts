// The ceilings of a device, measured at the start of a run: what memory gives and takes, and how fast matrices go.
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';

import type { Ceilings } from './ceilings';
import { projectRoot } from './machine';
import { type Stats, summarize } from './measure';

export interface Limits {
  readGbPerS: Stats | null;
  /** Bytes read and written. */
  copyGbPerS: Stats | null;
  matrixGflopPerS: Stats | null;
  /** How each was measured, in words. */
  how: string;
}

export const NO_LIMITS: Limits = { readGbPerS: null, copyGbPerS: null, matrixGflopPerS: null, how: 'not measured' };

/** Of the GPU with this id: 'cuda:1'. */
export function gpuLimits(id: string): Limits {
  const program = path.join(projectRoot, 'build-cmake', 'gpu_ceilings');
  if (!fs.existsSync(program)) spawnSync('cmake', ['--build', path.dirname(program), '--target', 'gpu_ceilings']);
  const { status, stdout } = spawnSync(program, ['10', id.replace('cuda:', '')], { encoding: 'utf8' });
  if (status !== 0) return NO_LIMITS;
  const { readGbPerS, copyGbPerS, mmaTflops } = JSON.parse(stdout) as Record<string, number[]>;
  return {
    readGbPerS: summarize(readGbPerS ?? []),
    copyGbPerS: summarize(copyGbPerS ?? []),
    matrixGflopPerS: summarize((mmaTflops ?? []).map((tflops) => tflops * 1000)),
    how: 'a reduction over 4 GiB; a copy of 1 GiB; mma.sync from registers, bf16, which from sm_90 on is less than wgmma can do',
  };
}

const MATRIX = { m: 512, k: 2048, n: 6144, out: 'bf16' } as const;
const WINDOW = 3;

type Rate = 'readGbPerS' | 'copyGbPerS' | 'matrixGflopPerS';
const RATES: readonly Rate[] = ['readGbPerS', 'copyGbPerS', 'matrixGflopPerS'];

/**
 * The ceilings of the CPU over a run. A machine that is shared is faster at one time than at another, so they are measured again
 * between cells; a cell stands under the best of the last few measurements.
 */
export class CpuLimits {
  private readonly samples: Record<Rate, number[]> = { readGbPerS: [], copyGbPerS: [], matrixGflopPerS: [] };
  private pattern = 0;
  private last = -Infinity;

  constructor(private readonly ceilings: Ceilings) {}

  /** All ways to read are tried, and the best is kept to. */
  async start(rounds: number): Promise<void> {
    const medians = (await this.ceilings.bandwidth(rounds)).map(({ gbPerS }) => summarize(gbPerS).median);
    this.pattern = medians.indexOf(Math.max(...medians));
    for (let round = 0; round < rounds; ++round) await this.sample();
  }

  async refresh(afterSeconds: number): Promise<void> {
    if (performance.now() - this.last >= afterSeconds * 1000) await this.sample();
  }

  /** What the next cell stands under. */
  now(): Limits {
    const best = (rate: Rate): Stats | null => {
      const recent = this.samples[rate].slice(-WINDOW);
      return recent.length === 0 ? null : { ...summarize(recent), median: Math.max(...recent) };
    };
    return this.describe(best);
  }

  /** Over the whole run. */
  all(): Limits {
    return this.describe((rate) => (this.samples[rate].length === 0 ? null : summarize(this.samples[rate])));
  }

  private describe(of: (rate: Rate) => Stats | null): Limits {
    const [readGbPerS, copyGbPerS, matrixGflopPerS] = RATES.map(of) as [Stats | null, Stats | null, Stats | null];
    const { m, k, n } = MATRIX;
    const how =
      'the best of several ways to read a buffer; memcpy of half of it to the other half; ' +
      `oneDNN, ${m} x ${k} x ${n}, bf16; each again between cells, which stand under the best of the last ${WINDOW}`;
    return { readGbPerS, copyGbPerS, matrixGflopPerS, how };
  }

  private async sample(): Promise<void> {
    const reads = await this.ceilings.bandwidth(1, this.pattern);
    this.samples.readGbPerS.push(...(reads[this.pattern]?.gbPerS ?? []));
    this.samples.copyGbPerS.push(...(await this.ceilings.copy(1)));
    const [linear] = await this.ceilings.linear([MATRIX], 2, 2);
    const flops = 2 * MATRIX.m * MATRIX.k * MATRIX.n;
    // Empty without oneDNN.
    if (linear !== undefined)
      this.samples.matrixGflopPerS.push(flops / Math.min(...linear.packedMs, ...linear.plainMs) / 1e6);
    this.last = performance.now();
  }
}
