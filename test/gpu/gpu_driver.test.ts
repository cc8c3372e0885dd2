// gpu_driver (test/gpu) on the emulated device: its checks pass, its timings complete, and it names
// a case that hangs, crashes or fails while the other cases continue.

import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { tolerances } from '../support/compare';
import { projectRoot } from '../support/fixtures';

const program = join(projectRoot, 'build-cmake', 'gpu_driver_emulated');

interface Line {
  part: string;
  case: string;
  outcome: string;
  wrong?: string;
  [detail: string]: unknown;
}

/** `case-seconds` is far above the time of a case, unless a test has a case that hangs. */
function driver(...given: string[]): { status: number | null; device: Line; cases: Line[]; summary: Line } {
  const args = given.includes('--case-seconds') ? given : [...given, '--case-seconds', '150'];
  const env = { ...process.env, OMP_WAIT_POLICY: 'passive' };
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: 'utf8', maxBuffer: 1 << 26, env });
  if (error) throw error;
  const lines = stdout
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Line);
  const [device, summary] = [lines[0], lines.at(-1)];
  if (device?.part !== 'device' || summary?.part !== 'summary')
    throw new Error(`gpu_driver ${args.join(' ')} ended with status ${status}: ${stderr.slice(-1000)}`);
  return { status, device, cases: lines.slice(1, -1), summary };
}

const notOk = (cases: Line[]): Line[] => cases.filter(({ outcome }) => outcome !== 'ok');

/** The operators of csrc/backend/operators.h. */
const list = readFileSync(join(projectRoot, 'csrc', 'backend', 'operators.h'), 'utf8');
const operators = [...list.matchAll(/ X\((\w+), \w+Params\)/g)].map(([, name]) => name as string);

if (!existsSync(program)) {
  it.skip(`SKIPPED: ${program} is not built (npm run build:test)`, () => {});
} else {
  it('computes every small call of every operator like its plain kernel', () => {
    const { status, cases, summary } = driver('correctness', '--shapes', 'small');
    expect(notOk(cases)).toEqual([]);
    expect(status).toBe(0);
    expect(summary).toMatchObject({ ok: cases.length, FAILED: 0, TIMEOUT: 0, CRASHED: 0, SKIPPED: 0 });
    expect(cases.length).toBeGreaterThanOrEqual(158);
    expect(operators.length).toBeGreaterThanOrEqual(15);
    expect(new Set(cases.slice(1).map(({ operator }) => operator))).toEqual(new Set(operators));
  });

  it('compares small calls with the emulation, as on a GPU', () => {
    const { status, cases } = driver('correctness', '--shapes', 'small', '--emulation', '--only', 'gated_activation');
    expect(notOk(cases)).toEqual([]);
    expect(status).toBe(0);
    expect(cases.length).toBeGreaterThan(2);
    for (const { case: name, emulation } of cases) expect([name, emulation]).toEqual([name, true]);
  });

  it('uses the limits of compare.ts', () => {
    const { bf16, f16, f32, f32Elementwise, lse } = tolerances;
    const { device } = driver('correctness', '--shapes', 'small', '--only', 'embed, f32 to f32');
    expect(device.tolerances).toEqual({ bf16, f16, f32, f32Elementwise, lse });
  });

  it('completes the small timings', () => {
    const { status, device, cases } = driver('timings', '--shapes', 'small');
    expect(notOk(cases)).toEqual([]);
    expect(status).toBe(0);
    expect(device).toMatchObject({ kind: 'emulated' });
    for (const { case: name, us } of cases) expect([name, us]).toEqual([name, expect.any(Number)]);
    expect(cases.map((c) => c.case)).toEqual(
      expect.arrayContaining([
        'small: limit: device read',
        expect.stringContaining('decode step of'),
        expect.stringContaining('as a graph'),
        expect.stringContaining('decode attention'),
        expect.stringContaining('prefill attention'),
        expect.stringContaining('FFN'),
        expect.stringContaining('sampled token'),
      ]),
    );
  });

  it('names a case that hangs, crashes, aborts or fails, and runs the others', () => {
    const breaks = ['hang', 'crash', 'abort', 'fail'].flatMap((kind) => ['--break', kind]);
    const args = ['correctness', '--shapes', 'small', '--only', 'RMSNorm', '--case-seconds', '8', ...breaks];
    const { status, cases, summary } = driver(...args);
    expect(status).toBe(1);
    expect(notOk(cases).map((c) => [c.case, c.outcome])).toEqual([
      ['deliberate: hang', 'TIMEOUT'],
      ['deliberate: crash', 'CRASHED'],
      ['deliberate: abort', 'CRASHED'],
      ['deliberate: fail', 'FAILED'],
    ]);
    const [, crash, abort, fail] = notOk(cases);
    expect(crash?.wrong).toMatch(/device is lost/);
    expect(abort?.wrong).toMatch(/ended by Aborted/);
    expect(fail?.wrong).toMatch(/out: \d+ of 192 elements differ/);
    expect(cases.filter(({ outcome }) => outcome === 'ok').length).toBeGreaterThan(4);
    expect(summary).toMatchObject({ ok: cases.length - 4, FAILED: 1, TIMEOUT: 1, CRASHED: 2, SKIPPED: 0 });
  });

  it('lists the cases past the time limit as skipped', () => {
    const { status, cases, summary } = driver('correctness', '--shapes', 'small', '--seconds', '0.5');
    expect(status).toBe(4);
    const skipped = cases.filter(({ outcome }) => outcome === 'SKIPPED');
    expect(skipped.length).toBeGreaterThan(0);
    expect(summary).toMatchObject({ SKIPPED: skipped.length, FAILED: 0, CRASHED: 0, TIMEOUT: 0 });
  });

  it('lists the cases under unique names', () => {
    const { status, stdout } = spawnSync(program, ['list', '--shapes', 'all'], { encoding: 'utf8' });
    const names = stdout.trim().split('\n');
    expect(status).toBe(0);
    expect(names.length).toBeGreaterThan(400);
    expect(names.filter((name, i) => names.indexOf(name) !== i)).toEqual([]);
  });

  it('runs the same cases in one process, and skips the rest after a device error', () => {
    const args = ['correctness', '--shapes', 'small', '--only', 'rope', '--in-process'];
    expect(driver(...args).status).toBe(0);
    const { status, cases } = driver(...args, '--break', 'crash');
    expect(status).toBe(1);
    expect(cases.map(({ outcome }) => outcome).slice(0, 3)).toEqual(['ok', 'CRASHED', 'SKIPPED']);
  });

  it('reports invalid arguments', () => {
    for (const args of [[], ['speed'], ['correctness', '--shapes', 'huge'], ['list', '--seconds', '-1']]) {
      const { status, stderr } = spawnSync(program, args, { encoding: 'utf8' });
      expect([args, status]).toEqual([args, 2]);
      expect(stderr).toMatch(/gpu_driver: /);
    }
  });
}
