// The ceilings of a device: the bandwidth of its memory and the rate of its matrix products.
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';

import { type Ceilings, READ_PATTERNS, type ReadPattern } from './ceilings';
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

/**
 * The ceilings of the GPU with this id ('cuda:1'), by the program gpu_ceilings. The build makes that program in a
 * checkout, if it has nvcc; an installation does not have it, so a GPU has no limits there.
 */
export function gpuLimits(id: string): Limits {
  const program = path.join(projectRoot, 'build-cmake', 'gpu_ceilings');
  if (!fs.existsSync(program)) return NO_LIMITS;
  const { status, stdout } = spawnSync(program, ['10', id.replace('cuda:', '')], { encoding: 'utf8' });
  if (status !== 0) return NO_LIMITS;
  const { readGbPerS, copyGbPerS, mmaTflops } = JSON.parse(stdout) as Record<string, number[]>;
  return {
    readGbPerS: summarize(readGbPerS ?? []),
    copyGbPerS: summarize(copyGbPerS ?? []),
    matrixGflopPerS: summarize((mmaTflops ?? []).map((tflops) => tflops * 1000)),
    how: 'a reduction over 4 GiB; a copy of 1 GiB; mma.sync on registers, bf16, which is slower than wgmma from sm_90 on',
  };
}

const MATRIX = { m: 512, k: 2048, n: 6144, out: 'bf16' } as const;
const MATRIX_WEIGHTS = 2;
const MATRIX_ROUNDS = 2;
const WINDOW = 3;

type Rate = 'readGbPerS' | 'copyGbPerS' | 'matrixGflopPerS';
const RATES: readonly Rate[] = ['readGbPerS', 'copyGbPerS', 'matrixGflopPerS'];

/**
 * The ceilings of the CPU over a run. The speed of a shared machine changes, so the ceilings are measured again between
 * cells. The limits of a cell are the best of the last few measurements.
 */
export class CpuLimits {
  private readonly samples: Record<Rate, number[]> = { readGbPerS: [], copyGbPerS: [], matrixGflopPerS: [] };
  private pattern: ReadPattern = READ_PATTERNS[0] as ReadPattern;
  private last = -Infinity;

  constructor(private readonly ceilings: Ceilings) {}

  /** Tries all access patterns and chooses the fastest for the run. */
  async start(rounds: number): Promise<void> {
    let fastest = 0;
    for (const pattern of READ_PATTERNS) {
      const rates: number[] = [];
      for (let round = 0; round < rounds; ++round) rates.push(await this.ceilings.read(pattern));
      const { median } = summarize(rates);
      if (median > fastest) [fastest, this.pattern] = [median, pattern];
    }
    for (let round = 0; round < rounds; ++round) await this.sample();
  }

  async refresh(afterSeconds: number): Promise<void> {
    if (performance.now() - this.last >= afterSeconds * 1000) await this.sample();
  }

  /** The limits of the next cell. */
  now(): Limits {
    const best = (rate: Rate): Stats | null => {
      const recent = this.samples[rate].slice(-WINDOW);
      return recent.length === 0 ? null : { ...summarize(recent), median: Math.max(...recent) };
    };
    return this.describe(best);
  }

  /** The limits over the whole run. */
  all(): Limits {
    return this.describe((rate) => (this.samples[rate].length === 0 ? null : summarize(this.samples[rate])));
  }

  private describe(of: (rate: Rate) => Stats | null): Limits {
    const [readGbPerS, copyGbPerS, matrixGflopPerS] = RATES.map(of) as [Stats | null, Stats | null, Stats | null];
    const { m, k, n } = MATRIX;
    const rate = this.ceilings.usesOnednn
      ? `oneDNN, ${m} x ${k} x ${n}, bf16`
      : "the CPU's fastest multiply instruction on registers";
    const how =
      `reads of a buffer larger than the caches (${this.pattern.name}); memcpy of half of it to the other half; ` +
      `${rate}; each again between cells, whose limits are the best of the last ${WINDOW}`;
    return { readGbPerS, copyGbPerS, matrixGflopPerS, how };
  }

  private async sample(): Promise<void> {
    this.samples.readGbPerS.push(await this.ceilings.read(this.pattern));
    this.samples.copyGbPerS.push(await this.ceilings.copy());
    this.samples.matrixGflopPerS.push(await this.matrixRate());
    this.last = performance.now();
  }

  private async matrixRate(): Promise<number> {
    if (!this.ceilings.usesOnednn) return this.ceilings.multiply();
    const times: number[] = [];
    for (let round = 0; round < MATRIX_ROUNDS; ++round) {
      for (const { packedMs, plainMs } of await this.ceilings.linear([MATRIX], MATRIX_WEIGHTS))
        times.push(...packedMs, ...plainMs);
    }
    return (2 * MATRIX.m * MATRIX.k * MATRIX.n) / Math.min(...times) / 1e6;
  }
}
