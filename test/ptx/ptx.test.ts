// Executes the PTX that nvcc makes of the kernels in an interpreter (test/ptx), with the calls of
// all operators, and compares the results with the emulation. The interpreter has its own checks.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { projectRoot } from '../support/fixtures';

const program = join(projectRoot, 'build-cmake', 'ptx_check');

/**
 * All kernels of cuda/*.cu, and one for each function of the device layer. A new or removed kernel
 * changes this number.
 */
const numKernels = 281;
const numChecks = 106;
const seeds = 2;
/**
 * The share of all kernel instructions that must run. The others are mostly unrolled loops that are
 * too long for small shapes.
 */
const leastExecuted = 0.85;

interface Result {
  cases: number;
  architectures: Record<string, { kernels: number; compared: number; code: number; codeExecuted: number }>;
  failures: string[];
}

if (!existsSync(program)) {
  it.skip(`SKIPPED: ${program} is not built (npm run build:test)`, () => {});
} else {
  it('executes instructions as the ISA defines them, and detects faults', () => {
    const { stdout, stderr, signal } = spawnSync(program, ['--checks'], { encoding: 'utf8' });
    if (signal) throw new Error(`ptx_check ended with ${signal}: ${stderr}`);
    const checks = JSON.parse(stdout) as { name: string; wrong: string | null }[];
    expect(checks.filter(({ wrong }) => wrong !== null)).toEqual([]);
    expect(checks.length).toBe(numChecks);
  });

  const nvcc = spawnSync(process.env.CUDACXX || 'nvcc', ['--version']).status === 0;
  if (!nvcc) it.skip('SKIPPED: no nvcc on PATH or in CUDACXX', () => {});
  else
    it("computes the same from every kernel's PTX as from its C++", () => {
      const folder = mkdtempSync(join(tmpdir(), 'diffqkv-ptx-'));
      const json = join(folder, 'result.json');
      const script = join(projectRoot, 'test', 'tools', 'test-ptx.mjs');
      const { stdout, stderr } = spawnSync(
        process.execPath,
        [script, '--no-build', '--seeds', String(seeds), '--json', json],
        { encoding: 'utf8', maxBuffer: 1 << 26, timeout: 1_100_000 },
      );
      console.log(stdout);
      if (!existsSync(json)) throw new Error(`${stdout}${stderr}`);
      const { architectures, failures } = JSON.parse(readFileSync(json, 'utf8')) as Result;
      rmSync(folder, { recursive: true });
      expect(failures).toEqual([]);
      for (const { code, codeExecuted } of Object.values(architectures))
        expect(codeExecuted / code).toBeGreaterThan(leastExecuted);
      const counts = Object.entries(architectures).map(([name, { kernels, compared }]) => [name, kernels, compared]);
      expect(counts).toEqual([
        ['sm_80', numKernels, numKernels],
        ['sm_90a', numKernels, numKernels],
      ]);
    }, 1_200_000);
}
