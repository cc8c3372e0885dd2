// The limits of this machine, measured by a program of its own (bench/ceilings/) that shares no code with diffqkv.
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { createInterface } from 'node:readline';

import { projectRoot } from './machine';
import { type Stats, summarize } from './measure';

/** out [m, n] = x [m, k] weight [n, k]^T in bf16; the type of the output. */
export interface MatrixShape {
  m: number;
  k: number;
  n: number;
  out: 'bf16' | 'f32';
}

/** How long oneDNN takes for one matrix, in milliseconds, with the weight in its own layout and in row-major order. */
export interface LinearTimes extends Pick<MatrixShape, 'm' | 'k' | 'n'> {
  packedMs: number[];
  plainMs: number[];
}

interface BandwidthAnswer {
  pattern: string;
  gbPerS: number[];
}

/** Collects bandwidth samples over a run: the limit is the median of the access pattern that does best. */
export class BandwidthMeter {
  private readonly samples = new Map<string, number[]>();

  constructor(private readonly ceilings: Ceilings) {}

  async sample(rounds: number): Promise<void> {
    for (const { pattern, gbPerS } of await this.ceilings.bandwidth(rounds)) {
      this.samples.set(pattern, [...(this.samples.get(pattern) ?? []), ...gbPerS]);
    }
  }

  best(): { pattern: string; gbPerS: Stats } {
    const all = [...this.samples].map(([pattern, values]) => ({ pattern, gbPerS: summarize(values) }));
    return all.reduce((best, one) => (one.gbPerS.median > best.gbPerS.median ? one : best));
  }
}

function build(): string {
  const folder = path.join(projectRoot, 'build-cmake');
  if (!fs.existsSync(path.join(folder, 'CMakeCache.txt'))) {
    throw new Error(
      `the bench measures its limits by a program built from source: \`diffqkv build\` makes what that needs`,
    );
  }
  const made = spawnSync('cmake', ['--build', folder, '--target', 'ceilings'], { encoding: 'utf8' });
  if (made.error) throw new Error(`cannot run cmake to build bench/ceilings: ${made.error.message}`);
  if (made.status !== 0) throw new Error(`bench/ceilings does not build:\n${made.stdout}${made.stderr}`);
  return path.join(folder, 'ceilings');
}

/** The running program; it keeps its buffers, so that limits can be measured between the figures. */
export class Ceilings {
  private readonly waiting: { resolve: (line: string) => void; reject: (error: Error) => void }[] = [];

  private ended: Error | null = null;

  private constructor(private readonly child: ChildProcess) {
    if (child.stdout)
      createInterface({ input: child.stdout }).on('line', (line) => this.waiting.shift()?.resolve(line));
    child.on('error', (error) => this.fail(error));
    child.on('close', (status) => this.fail(new Error(`bench/ceilings ended with status ${status}`)));
    child.stdin?.on('error', (error) => this.fail(error));
  }

  /** Builds the program where it is missing or old, and starts it. */
  static open(): Ceilings {
    // Passive: its idle threads would otherwise spin on for milliseconds, on the cores that the next figure is taken on.
    const env = { ...process.env, OMP_WAIT_POLICY: 'passive' };
    return new Ceilings(spawn(build(), { stdio: ['pipe', 'pipe', 'inherit'], env }));
  }

  async info(): Promise<{ threads: number; onednn: string; bandwidthBufferBytes: number }> {
    return JSON.parse(await this.ask('info'));
  }

  /** GB/s of `rounds` reads of a buffer larger than the caches, for each access pattern; `only`: for that one alone. */
  async bandwidth(rounds: number, only?: number): Promise<BandwidthAnswer[]> {
    return JSON.parse(await this.ask(only === undefined ? `bandwidth ${rounds}` : `bandwidth ${rounds} ${only}`));
  }

  /** GB/s, read and written, of `rounds` copies of one half of that buffer to the other. */
  async copy(rounds: number): Promise<number[]> {
    return JSON.parse(await this.ask(`copy ${rounds}`));
  }

  /** Each matrix in `sets` copies, `rounds` times. Empty where oneDNN is not installed. */
  async linear(matrices: readonly MatrixShape[], sets: number, rounds: number): Promise<LinearTimes[]> {
    const words = matrices.map(({ m, k, n, out }) => `${m},${k},${n},${out}`);
    return JSON.parse(await this.ask(`linear ${rounds} ${sets} ${words.join(' ')}`));
  }

  close(): void {
    this.child.stdin?.end();
  }

  private ask(request: string): Promise<string> {
    return new Promise((resolve, reject) => {
      if (this.ended !== null) return reject(this.ended);
      this.waiting.push({ resolve, reject });
      this.child.stdin?.write(`${request}\n`);
    });
  }

  private fail(error: Error): void {
    this.ended ??= error;
    for (const { reject } of this.waiting.splice(0)) reject(error);
  }
}
