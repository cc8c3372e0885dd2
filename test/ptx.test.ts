// What nvcc makes of the kernels is executed by an interpreter of PTX (test/ptx), on the calls of all operators, and
// compared with the emulation. The interpreter has checks of its own.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const root = join(__dirname, '..');
const program = join(root, 'build-cmake', 'ptx_check');

/** Every kernel of cuda/*.cu, and one for each function of the device layer. A kernel more or less changes this number. */
const numKernels = 189;
const numChecks = 106;
const seeds = 2;
/** Of all instructions of the kernels; what is missing is mostly unrolled loops that are too long for small shapes. */
const leastExecuted = 0.85;

interface Result {
  cases: number;
  architectures: Record<string, { kernels: number; compared: number; code: number; codeExecuted: number }>;
  failures: string[];
}

if (!existsSync(program)) {
  it.skip(`SKIPPED: ${program} is not built (npm run build:test)`, () => {});
} else {
  it('the interpreter executes instructions as the ISA defines them, and finds faults', () => {
    const { stdout, stderr, signal } = spawnSync(program, ['--checks'], { encoding: 'utf8' });
    if (signal) throw new Error(`ptx_check ended by ${signal}: ${stderr}`);
    const checks = JSON.parse(stdout) as { name: string; wrong: string | null }[];
    expect(checks.filter(({ wrong }) => wrong !== null)).toEqual([]);
    expect(checks.length).toBe(numChecks);
  });

  const nvcc = spawnSync(process.env.CUDACXX || 'nvcc', ['--version']).status === 0;
  if (!nvcc) it.skip('SKIPPED: no nvcc on PATH or in CUDACXX', () => {});
  else
    it('every kernel computes from its PTX what it computes as C++', () => {
      const folder = mkdtempSync(join(tmpdir(), 'diffqkv-ptx-'));
      const json = join(folder, 'result.json');
      const script = join(root, 'scripts', 'test-ptx.mjs');
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
