// Runs the operator and model suites on every instruction set that this CPU has, not only its best.
// Each runs with fewer sizes in a separate process, because a process selects its instruction set
// once. Instruction sets that the CPU lacks are skipped.
//
// `emulated_amx` is a level of the tests' module: the AMX kernels, with the AMX instructions in
// software. It needs a CPU with AVX512-BF16, with or without AMX.

import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import { builtIndex } from '../support/children';
import { projectRoot } from '../support/fixtures';
import { passSuites } from '../support/suites';

const levels = ['baseline', 'avx2', 'avx512', 'avx512_bf16', 'amx'];
// Thread counts other than the number of cores divide the work differently.
const threads: Record<string, string> = { avx2: '3', avx512: '1', avx512_bf16: '7' };
const ownName = basename(__filename);
const suites = readdirSync(__dirname)
  .filter((name) => name.endsWith('.test.ts') && name !== ownName)
  .map((name) => name.replace('.test.ts', ''))
  .concat('fixtures');

const open = `require(${JSON.stringify(builtIndex)}).openDevice('cpu').then((device) => { console.log(JSON.stringify(device.info)); device.dispose(); }, (error) => console.log(JSON.stringify({ code: error.code, message: error.message })))`;

function openWith(
  level: string,
  env: Record<string, string> = {},
): { code?: string; message?: string; details?: Record<string, string> } {
  const { stdout, stderr } = spawnSync(process.execPath, ['-e', open], {
    env: { ...process.env, NODE_OPTIONS: '', DIFFQKV_CPU_ISA: level, ...env },
    encoding: 'utf8',
  });
  try {
    return JSON.parse(stdout);
  } catch {
    throw new Error(`no device at level ${level}: ${stdout} ${stderr}`);
  }
}

const testModule = join(projectRoot, 'build-cmake', 'diffqkv-test.node');
const emulationCheck = join(projectRoot, 'build-cmake', 'emulation_check');

const usable = new Set(existsSync(builtIndex) ? levels.filter((level) => openWith(level).code === undefined) : levels);

describe('DIFFQKV_CPU_ISA', () => {
  it('selects the instruction set, and rejects an unavailable one with the list of available ones', () => {
    const { code, message } = openWith('mmx');
    expect(code).toBe('ERR_DEVICE_UNAVAILABLE');
    expect(message).toContain('mmx');
    for (const level of usable) {
      expect(message).toContain(level);
      expect(openWith(level).details?.simd?.replace(/.*\+/, '')).toBe(level);
    }
    expect(usable.has('baseline')).toBe(true);
    expect(openWith('').code).toBeUndefined();
  });

  for (const level of levels) {
    (usable.has(level) ? it : it.skip)(
      `${level}${threads[level] ? ` on ${threads[level]} threads` : ''}: operators and models`,
      async () => {
        const numPassed = await passSuites(suites, {
          DIFFQKV_CPU_ISA: level,
          DIFFQKV_TEST_DEVICES: 'cpu',
          ...(threads[level] ? { OMP_NUM_THREADS: threads[level] } : {}),
        });
        expect(numPassed).toBeGreaterThan(200);
      },
      600_000,
    );
  }
});

describe('DIFFQKV_CPU_ISA=emulated_amx', () => {
  // Without these, the tests show as skipped.
  const test = usable.has('avx512_bf16') && existsSync(testModule) && existsSync(emulationCheck) ? it : it.skip;
  const env = { DIFFQKV_MODULE: testModule };

  test("exists in the tests' module, which never selects it by itself", () => {
    expect(openWith('emulated_amx', env).details?.simd).toBe('emulated_amx');
    expect(openWith('', env).details?.simd).not.toContain('emulated');
    expect(openWith('mmx', env).message).toContain('emulated_amx');
  });

  test('its instructions do what the manual says', () => {
    const { stdout, stderr } = spawnSync(emulationCheck, ['amx'], { encoding: 'utf8' });
    const results = JSON.parse(stdout || 'null') ?? stderr;
    expect(results.filter(({ wrong }: { wrong: string | null }) => wrong !== null)).toEqual([]);
    expect(results).toHaveLength(13);
  });

  test('operators and models', async () => {
    const numPassed = await passSuites(suites, {
      ...env,
      DIFFQKV_CPU_ISA: 'emulated_amx',
      DIFFQKV_TEST_DEVICES: 'cpu',
    });
    expect(numPassed).toBeGreaterThan(200);
  }, 600_000);
});
