// Tests the emulation of CUDA kernels itself with a separate program (test/native): hazards that it
// must detect, the device layer's fragments, and the counters. For every operator's kernels it
// checks the memory traffic, and that the order of threads does not change the results.

import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { projectRoot } from '../support/fixtures';

const program = process.env.DIFFQKV_EMULATION_CHECK ?? join(projectRoot, 'build-cmake', 'emulation_check');

interface Result {
  name: string;
  wrong: string | null;
}

/**
 * For each part the number of checks, so that a missing check fails the test, the emulated GPU, and a
 * part of the checks' names. Only h200 and rtx5090 have bulk copies.
 */
const parts: [part: string, count: number, gpu: string, only: string][] = [
  ['hazards', 126, 'small', ''],
  ['device_layer', 23, 'small', ''],
  ['device_layer', 23, 'h200', ''],
  ['counters', 16, 'small', ''],
  ['launches', 15, 'small', ''],
  ['launches', 15, 'h200', ''],
  ['graphs', 7, 'small', ''],
  ['operators', 161, 'small', ''],
  ['operators', 32, 'h200', 'decode attention, paged'],
  ['traffic', 23, 'small', ''],
  ['traffic', 23, 'h200', ''],
  ['traffic', 23, 'rtx5090', ''],
];

describe.each(parts)('%s: %i checks on %s%s', (part, count, gpu, only) => {
  if (!existsSync(program)) {
    it.skip(`SKIPPED: ${program} is not built (npm run build:test)`, () => {});
    return;
  }
  let results: Result[] = [];

  beforeAll(() => {
    const { stdout, stderr, signal, error } = spawnSync(program, [...(only ? ['--only', only] : []), part], {
      env: { ...process.env, DIFFQKV_EMULATED_GPU: gpu },
      encoding: 'utf8',
      maxBuffer: 1 << 26,
    });
    if (error || signal)
      throw error ?? new Error(`emulation_check ended with ${signal}: ${stdout.slice(-500)} ${stderr}`);
    results = JSON.parse(stdout) as Result[];
  });

  it('passes every check', () => {
    expect(results.filter(({ wrong }) => wrong !== null)).toEqual([]);
    expect(results.length).toBe(count);
  });
});
