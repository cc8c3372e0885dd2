// Runs test/tools/gpu-check.sh without a GPU, as a rehearsal with the replacements in gpu/stand_in and
// a driver that only prints lines. Also checks what is copied to a machine with a GPU.

import { execFileSync, spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { temporaryDirectories } from '../support/checkpoints';
import { projectRoot } from '../support/fixtures';

const MIB = 2 ** 20;
const LOG_LIMIT = (640 + 192) * 1024; // limit of a step's output in log.txt
const script = join(projectRoot, 'test', 'tools', 'gpu-check.sh');
const testModule = process.env.DIFFQKV_MODULE ?? join(projectRoot, 'build-cmake', 'diffqkv-test.node');

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

/** A folder for --rehearse with this shell script as its driver. */
function rehearsal(driver: string): string {
  const folder = directories.make();
  const program = join(folder, 'gpu_driver_emulated');
  writeFileSync(program, `#!/bin/bash\n${driver}\n`);
  chmodSync(program, 0o755);
  symlinkSync(testModule, join(folder, 'diffqkv-test.node'));
  return folder;
}

interface Step {
  outcome: string;
  line: string;
}

function readSummary(out: string): Map<string, Step> {
  const [, ...rows] = readFileSync(join(out, 'summary.txt'), 'utf8').trimEnd().split('\n');
  return new Map(
    rows.map((row) => {
      const [, name, outcome, line] = /^(\w+) +(\S.*?) +[\d.]+ s {2}(.*)$/.exec(row) as unknown as string[];
      return [name as string, { outcome: outcome as string, line: line as string }];
    }),
  );
}

/** Runs the script on this checkout's build, unless `args` name an archive. */
function check(args: string[]): { status: number | null; stdout: string; out: string; steps: Map<string, Step> } {
  const out = directories.make();
  const { status, stdout } = spawnSync('bash', [script, '--archive', 'none', ...args], {
    encoding: 'utf8',
    env: { ...process.env, OUT: out },
    maxBuffer: 64 * MIB,
  });
  return { status, stdout, out, steps: readSummary(out) };
}

it('limits a run to 525 s, including the time to kill each step', () => {
  const lines = execFileSync('bash', [script, '--list'], { encoding: 'utf8' }).trim().split('\n');
  const steps = lines.slice(0, -1).map((line) => Number(line.split(' ')[1]));
  const [grace, margin] = ['GRACE', 'MARGIN'].map((name) =>
    Number(new RegExp(`^${name}=(\\d+)`, 'm').exec(readFileSync(script, 'utf8'))?.[1]),
  ) as [number, number];
  expect(grace).toBe(5);
  const total = steps.reduce((sum, limit) => sum + limit + grace + margin, 0);
  expect(lines.at(-1)).toBe(`total ${total}`);
  expect(total).toBeLessThanOrEqual(525);
});

const describeHere =
  process.platform === 'linux' && process.arch === 'x64' && existsSync(testModule) ? describe : describe.skip;

describeHere('a rehearsal with steps that hang, crash and fail', () => {
  let run: ReturnType<typeof check>;

  beforeAll(() => {
    const driver = `
      case "$1 $2 $3" in
        list*) echo one ;;
        *) echo '{"part": "'$1'", "case": "a case", "outcome": "ok", "seconds": 0.1}' ;;
      esac
      # The script ends a step's leftover processes before the next step.
      if grep -qzs 'CHECK_STEP_ID=.*[.]break_hang' /proc/[0-9]*/environ; then
        echo '{"part": "correctness", "case": "left behind", "outcome": "FAILED", "seconds": 0}'
      fi
      case "$*" in
        'correctness --shapes small --seconds '*)
          echo '{"part": "correctness", "case": "another case", "outcome": "FAILED", "seconds": 0.1, "wrong": "x"}'
          exit 1 ;;
        timings*) head -c 3000000 /dev/zero | tr '\\0' '.'; echo; echo 'the last line'; exit 4 ;;
      esac`;
    run = check(['--rehearse', rehearsal(driver), '--break', 'hang,crash,fail']);
  });

  it('reports all three with their outcomes', () => {
    expect(run.steps.get('break_hang')?.outcome).toMatch(/^TIMEOUT/);
    expect(run.steps.get('break_crash')?.outcome).toBe('CRASHED SIGSEGV');
    expect(run.steps.get('break_fail')?.outcome).toBe('FAILED (1)');
    expect(run.status).toBe(1);
  });

  it('reports the result of every other step', () => {
    const outcomes = Object.fromEntries([...run.steps].map(([name, { outcome }]) => [name, outcome]));
    expect(outcomes).toMatchObject({
      ...{ machine: 'passed', unpack: expect.stringMatching(/SKIPPED|passed/), device_layer: 'passed' },
      ...{ correctness: 'FAILED (1)', timings: 'INCOMPLETE', limits: expect.stringMatching(/SKIPPED|passed/) },
      ...{ fixtures: 'passed', models: 'passed', jest: 'passed' },
      ...{ memcheck: 'passed', racecheck: 'passed', synccheck: 'passed', ncu: 'passed' },
    });
    expect(run.steps.size).toBe(16);
    expect(run.steps.get('correctness')?.line).toBe('1 ok, 1 FAILED: another case');
    expect(run.steps.get('jest')?.line).toMatch(/passed/);
    expect(run.steps.get('models')?.line).toMatch(/sigma-10b.*tokens\/s.*sigma-1.5b.*tokens\/s/);
    expect(run.stdout.trimEnd().split('\n').at(-1)).toMatch(/^ncu /); // the summary comes last
  });

  it('leaves few small files, with the head and the tail of the output', () => {
    const files = readdirSync(run.out).sort();
    const known = [
      'correctness.jsonl',
      'limits.jsonl',
      'log.txt',
      'models.jsonl',
      'ncu.csv',
      'summary.txt',
      'timings.jsonl',
    ];
    expect(known).toEqual(expect.arrayContaining(files));
    // limits.jsonl needs a Python with torch.
    expect(files.length).toBeGreaterThanOrEqual(known.length - 1);
    for (const file of files) expect(statSync(join(run.out, file)).size).toBeLessThan(16 * MIB);
    const log = readFileSync(join(run.out, 'log.txt'), 'utf8');
    expect(log).toMatch(/\[\.\.\. \d+ bytes left out \.\.\.\][^[]*\nthe last line\n==== timings: INCOMPLETE/);
    expect(log.length).toBeLessThan(3 * LOG_LIMIT);
    expect(16 * LOG_LIMIT).toBeLessThan(16 * MIB);
  });
});

describeHere('the end of a run', () => {
  it('writes a summary and skips the rest if it is stopped', async () => {
    const out = directories.make();
    const folder = rehearsal('[ "$1" = list ] || exec sleep 100');
    const child = spawn('bash', [script, '--archive', 'none', '--rehearse', folder, '--only', 'correctness,timings'], {
      env: { ...process.env, OUT: out },
      stdio: 'ignore',
    });
    const ended = new Promise((resolve) => child.on('close', resolve));
    while (!existsSync(join(out, 'summary.txt')) || readSummary(out).get('correctness') === undefined)
      await setTimeout(50);
    // A killed run still shows its progress.
    expect(readSummary(out).get('correctness')?.outcome).toBe('running');
    await setTimeout(200);
    child.kill('SIGTERM');
    expect(await ended).toBe(1);
    expect(readSummary(out).get('correctness')?.outcome).toMatch(/^(FAILED|CRASHED)/);
    expect(readSummary(out).get('timings')).toEqual({ outcome: 'SKIPPED', line: 'stopped by SIGTERM' });
  });

  it('skips steps if no time is left', () => {
    const { status, steps } = check([
      '--rehearse',
      rehearsal('exit 0'),
      '--seconds',
      '7',
      '--only',
      'machine,correctness',
    ]);
    expect(steps.get('correctness')).toEqual({ outcome: 'SKIPPED', line: 'no time left' });
    expect(status).toBe(1); // no step passed
  });

  it('fails a step whose output lacks the result', () => {
    const { status, steps } = check(['--rehearse', rehearsal('exit 0'), '--only', 'correctness']);
    expect(steps.get('correctness')).toEqual({ outcome: 'FAILED (no result)', line: 'no case ended' });
    expect(status).toBe(1);
  });
});

it('unpacks an archive, uses its contents, and names the sources that have changed since', () => {
  const archived = directories.make();
  const archive = join(directories.make(), 'archive.tar.xz');
  mkdirSync(join(archived, 'bin'));
  writeFileSync(join(archived, 'commit'), 'v1-2-gabc');
  writeFileSync(join(archived, 'sources.sha256'), `${'0'.repeat(64)}  package.json\n`);
  execFileSync('tar', ['-cJf', archive, '-C', archived, '.']);
  const { steps } = check(['--rehearse', rehearsal('exit 0'), '--archive', archive, '--only', 'models']);
  expect(steps.get('unpack')).toEqual({
    outcome: 'passed',
    line: 'archive of commit v1-2-gabc; 1 sources differ from it, first package.json',
  });
  expect(steps.get('models')).toEqual({ outcome: 'SKIPPED', line: 'dist/lib/index.js is not built' });
});

(existsSync('/dev/nvidia0') ? it.skip : it)('runs nothing without a GPU', () => {
  const { status, stdout } = spawnSync('bash', [script], { encoding: 'utf8' });
  expect({ status, stdout }).toEqual({
    status: 0,
    stdout: 'gpu-check: SKIPPED: no GPU here (nvidia-smi does not answer)\n',
  });
});

describe('the files to copy', () => {
  interface Plan {
    files: string[];
    sources: string[];
    tracked: number;
    archive: number | null;
    expectedArchive: number;
    limit: number;
  }
  let plan: Plan;
  beforeAll(() => {
    const pack = join(projectRoot, 'test', 'tools', 'gpu-pack.mjs');
    plan = JSON.parse(execFileSync(process.execPath, [pack, '--plan'], { encoding: 'utf8', cwd: projectRoot }));
  });

  it('are under 60 MiB: tracked files and the archive', () => {
    expect(plan.limit).toBe(60 * MIB);
    expect(plan.tracked + (plan.archive ?? plan.expectedArchive)).toBeLessThanOrEqual(plan.limit);
  });

  it('include the tests for every device, and nothing that the tests do not load', () => {
    const tests = plan.sources.filter((path) => path.endsWith('.test.ts'));
    expect(tests).toContain('test/operators/attention_decode.test.ts');
    for (const path of tests) expect(readFileSync(join(projectRoot, path), 'utf8')).toContain('onEveryDevice');
    expect(plan.sources.filter((path) => !/^(lib|test)\//.test(path))).toEqual([]);
    const packages = plan.files.filter((path) => path.startsWith('node_modules/'));
    expect(packages).toContain('node_modules/jest');
    const unused = /node_modules\/(openai|typedoc|typescript|@biomejs|@swc|cmake-js|commander)/;
    expect(packages.filter((path) => unused.test(path))).toEqual([]);
  });

  it('include a command for every step', () => {
    const names = execFileSync('bash', [script, '--list'], { encoding: 'utf8' }).match(/^\w+(?= \d+$)/gm) as string[];
    const text = readFileSync(join(projectRoot, 'test', 'gpu', 'steps.sh'), 'utf8');
    for (const name of names.filter((name) => name !== 'total'))
      expect(text).toMatch(new RegExp(`^step_${name}\\(\\)`, 'm'));
  });
});
