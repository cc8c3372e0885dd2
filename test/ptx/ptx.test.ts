// Executes the PTX that nvcc makes of the kernels in an interpreter (test/ptx), with the calls of
// all operators, and compares the results with the emulation. The interpreter has its own checks.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { projectRoot } from '../support/fixtures';

const program = join(projectRoot, 'build-cmake', 'ptx_check');

const numChecks = 121;
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

/**
 * How many kernels ptxas has compiled, of cuda/*.cu, and nvcc for the functions of the device layer
 * (wrappers.cu).
 */
function numCompiled(architecture: string): number {
  const reports = join(projectRoot, 'build', 'kernel-reports');
  const count = (name: string, kernel: RegExp) =>
    name.includes(`.cu.${architecture}.`) ? (readFileSync(join(reports, name), 'utf8').match(kernel)?.length ?? 0) : 0;
  return readdirSync(reports).reduce((sum, name) => {
    if (name.endsWith('.txt')) return sum + count(name, /Compiling entry function/g);
    return name.startsWith('wrappers.') ? sum + count(name, /\.entry /g) : sum;
  }, 0);
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
      expect(counts).toEqual(['sm_80', 'sm_90a'].map((name) => [name, numCompiled(name), numCompiled(name)]));
      expect(numCompiled('sm_80')).toBeGreaterThanOrEqual(281);
    }, 1_200_000);
}
