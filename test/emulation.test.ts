// The emulation of CUDA kernels is tested itself, by a program of its own (test/native): hazards that it must find, the
// device layer's fragments, the counters; and, of every operator's kernels, the traffic and that the order of threads
// changes nothing.

import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';

const program = process.env.DIFFQKV_EMULATION_CHECK ?? join(__dirname, '..', 'build-cmake', 'emulation_check');

interface Result {
  name: string;
  wrong: string | null;
}

/** For each part: the number of checks, so that a missing check fails the test, and the emulated GPU. */
const parts: [part: string, count: number, gpu: string][] = [
  ['hazards', 99, 'small'],
  ['device_layer', 18, 'small'],
  ['counters', 15, 'small'],
  ['launches', 5, 'small'],
  ['launches', 5, 'h200'],
  ['operators', 93, 'small'],
  ['traffic', 9, 'small'],
  ['traffic', 9, 'h200'],
  ['traffic', 9, 'rtx5090'],
];

describe.each(parts)('%s: %i checks on %s', (part, count, gpu) => {
  if (!existsSync(program)) {
    it.skip(`SKIPPED: ${program} is not built (npm run build:test)`, () => {});
    return;
  }
  let results: Result[] = [];

  beforeAll(() => {
    const { stdout, stderr, signal, error } = spawnSync(program, [part], {
      env: { ...process.env, DIFFQKV_EMULATED_GPU: gpu },
      encoding: 'utf8',
      maxBuffer: 1 << 26,
    });
    if (error || signal)
      throw error ?? new Error(`emulation_check ended by ${signal}: ${stdout.slice(-500)} ${stderr}`);
    results = JSON.parse(stdout) as Result[];
  });

  it('every check passes', () => {
    expect(results.filter(({ wrong }) => wrong !== null)).toEqual([]);
    expect(results.length).toBe(count);
  });
});
