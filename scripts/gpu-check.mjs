// npm run gpu:check [-- --out FOLDER] [--only STEP,...]: what only a machine with a GPU can tell, in a checkout or in what
// `npm run gpu:pack` made: the device layer against its emulation, the test suite on `cuda`, compute-sanitizer's tools, and the
// bench. Reports go to bench/results/ or FOLDER: gpu.json, and what each step printed beside it. A step that cannot run here
// shows as SKIPPED.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const given = process.argv.slice(2);
const option = (name) => (given.includes(name) ? given[given.indexOf(name) + 1] : undefined);
const out = option('--out') ?? join(root, 'bench', 'results');
const only = option('--only')?.split(',');
const jest = join(root, 'node_modules', 'jest', 'bin', 'jest.js');
mkdirSync(out, { recursive: true });

const query = (...fields) =>
  spawnSync('nvidia-smi', [`--query-gpu=${fields.join(',')}`, '--format=csv,noheader'], { encoding: 'utf8' });
const smi = query('name', 'compute_cap', 'driver_version', 'memory.total', 'clocks.max.sm');
if (smi.error || smi.status !== 0) {
  console.log('gpu-check: SKIPPED: no GPU here (nvidia-smi does not answer)');
  process.exit(0);
}
const commit = existsSync(join(root, 'commit'))
  ? readFileSync(join(root, 'commit'), 'utf8')
  : spawnSync('git', ['describe', '--always', '--dirty'], { cwd: root, encoding: 'utf8' }).stdout?.trim();
const report = { date: new Date().toISOString(), commit, gpu: smi.stdout.trim(), node: process.version, steps: [] };
console.log(`${report.gpu}; commit ${commit}`);

/** Runs one step; what it prints goes to a file. `summary` reads its end. */
function step(name, command, args, { env = {}, summary = () => undefined, skip } = {}) {
  if (only && !only.some((wanted) => name.startsWith(wanted))) return;
  const entry = { name, command: [command, ...args].join(' ') };
  report.steps.push(entry);
  if (skip) {
    entry.outcome = `SKIPPED: ${skip}`;
  } else {
    const start = performance.now();
    const { status, signal, stdout, stderr, error } = spawnSync(command, args, {
      cwd: root,
      encoding: 'utf8',
      maxBuffer: 1 << 29,
      env: { ...process.env, ...env },
    });
    const text = `${stdout ?? ''}${stderr ?? ''}${error ?? ''}`;
    entry.seconds = Math.round((performance.now() - start) / 100) / 10;
    writeFileSync(join(out, `gpu-${name}.txt`), text);
    entry.outcome = status === 0 ? 'passed' : `FAILED (${status ?? signal ?? error})`;
    entry.summary = summary(text, stdout ?? '');
  }
  console.log(`${name}: ${entry.outcome}${entry.summary ? `; ${JSON.stringify(entry.summary)}` : ''}`);
  writeFileSync(join(out, 'gpu.json'), `${JSON.stringify(report, null, 1)}\n`);
}

const counts = (text) => /Tests: +(.*)/.exec(text)?.[1];
const onGpu = { DIFFQKV_TEST_DEVICES: 'cuda', OMP_WAIT_POLICY: 'passive' };

const deviceCheck = join(root, 'build-cmake', 'device_check');
step('device_layer', deviceCheck, [], {
  skip: existsSync(deviceCheck) ? undefined : 'build-cmake/device_check is not built',
  summary: (_, stdout) => {
    try {
      const wrappers = JSON.parse(stdout);
      return { wrappers: wrappers.length, different: wrappers.filter(({ different }) => different > 0) };
    } catch {
      return undefined;
    }
  },
});

const suite = [
  '--testPathIgnorePatterns=test/(behaviour|bench\\w*|cli|compare|convert\\w*|counters|docs|emulation|emulated_device|isa|kv_quality|tokenizer)\\.test\\.[jt]s$',
];
step('suite', process.execPath, [jest, ...suite], { env: onGpu, summary: counts });

const operators =
  'attention_decode attention_prefill augmented_q embed fixtures key_and_value_sizes kv_append kv_cache kv_types matmul quantize rms_norm rope sample silu_mul'.split(
    ' ',
  );
const noSanitizer = spawnSync('compute-sanitizer', ['--version']).error ? 'no compute-sanitizer on PATH' : undefined;
for (const tool of ['memcheck', 'racecheck', 'initcheck', 'synccheck']) {
  step(
    tool,
    'compute-sanitizer',
    [
      ...['--tool', tool, '--error-exitcode', '9', '--target-processes', 'all', process.execPath, jest, '--runInBand'],
      ...['--testTimeout=1200000', `--testPathPatterns=test/(${operators.join('|')})\\.test\\.[jt]s$`],
    ],
    {
      skip: noSanitizer,
      env: { ...onGpu, DIFFQKV_TEST_REDUCED: '1' },
      summary: (text) => ({
        tests: counts(text),
        sanitizer: /ERROR SUMMARY: .*|RACECHECK SUMMARY: .*/.exec(text)?.[0],
      }),
    },
  );
}

const bench = join(root, 'dist', 'bench', 'main.js');
const suites = spawnSync(process.execPath, [bench, '--help'], { encoding: 'utf8' }).stdout ?? '';
step('bench', process.execPath, [bench, 'cuda', '--json', join(out, 'cuda.json')], {
  skip: /^ {2}cuda\b/m.test(suites) ? undefined : 'the bench has no suite "cuda"',
});

const ran = report.steps.filter(({ outcome }) => !outcome.startsWith('SKIPPED'));
if (ran.length === 0) console.error('gpu-check: no step ran');
process.exitCode = ran.length === 0 || ran.some(({ outcome }) => outcome !== 'passed') ? 1 : 0;
