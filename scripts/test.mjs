// npm test: the checks of the sources and of the compiled kernels, then the test suite in two passes: most files two at a
// time, then those in which time or memory counts, alone. It builds and loads the tests' module, which has a device more:
// `emulated`, the CUDA kernels as C++. Jest's results go to build/test-results/*.json; the last line counts all tests.
//   npm test                  everything
//   npm test -- ARGUMENTS     jest with these arguments alone, e.g. `npm test -- test/rope.test.ts`

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { everyDevice, pattern } from './suites.mjs';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const results = join(root, 'build', 'test-results');
const jest = join(root, 'node_modules', 'jest', 'bin', 'jest.js');
const coverage = join(root, 'scripts', 'coverage.mjs');
// isa.test.ts starts the operator suites itself, one level after another.
const alone = 'test/(behaviour|cli|isa)\\.test\\.ts$';

function run(command, args, env = {}) {
  const { status, signal, error } = spawnSync(command, args, {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ...env },
  });
  if (error) throw error;
  return status === 0 ? 0 : signal === 'SIGINT' ? 130 : 1;
}

function pass(name, args, env) {
  const report = join(results, `${name}.json`);
  rmSync(report, { force: true });
  const status = run(process.execPath, [jest, ...args, '--json', `--outputFile=${report}`], env);
  return { name, status, ...readCounts(report) };
}

function readCounts(report) {
  try {
    return JSON.parse(readFileSync(report, 'utf8'));
  } catch (error) {
    console.error(`${report} is no report: ${error.message}`); // it ended before it had written it, or in the midst
    return { success: false, numPassedTests: 0, numFailedTests: 0, numPendingTests: 0, numRuntimeErrorTestSuites: 1 };
  }
}

/** None where coverage cannot be had: then the passes below run all. */
function coverageSuites() {
  try {
    return JSON.parse(spawnSync(process.execPath, [coverage, '--list'], { encoding: 'utf8' }).stdout);
  } catch {
    return { emulated: [], whole: [] };
  }
}

const given = process.argv.slice(2);
if (given.length > 0) process.exit(run(process.execPath, [jest, ...given]));

if (!existsSync(join(root, 'dist', 'lib', 'index.js'))) {
  console.error('dist/ is missing: run `npm run build` first');
  process.exit(1);
}
const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
const npm = process.env.npm_execpath ? [process.execPath, [process.env.npm_execpath]] : ['npm', []];
let failed = false;
if (scripts.lint) {
  if (run(npm[0], [...npm[1], 'run', '--silent', 'lint']) !== 0) {
    console.error('lint failed');
    failed = true;
  }
}
if (run(process.execPath, [join(root, 'node_modules', 'typescript', 'bin', 'tsc'), '-p', 'test']) !== 0) {
  console.error('the tests do not pass the type check');
  failed = true;
}
if (run('bash', [join(root, 'scripts', 'check-isa.sh'), join(root, 'build-cmake')]) !== 0) {
  console.error('the rule of csrc/backend/cpu/kernels.h on weak symbols does not hold');
  failed = true;
}
if (run(process.execPath, [join(root, 'scripts', 'check-kernels.mjs')]) !== 0) {
  console.error('the kernels are not what they must be');
  failed = true;
}
if (run(process.execPath, [join(root, 'scripts', 'docs.mjs')]) !== 0) {
  console.error('the reference of the public names cannot be made');
  failed = true;
}
// The emulation switches stacks by hand, on x86-64 alone.
const emulated = process.arch === 'x64';
if (emulated && run(process.execPath, [join(root, 'scripts', 'build-native.js'), '--test']) !== 0) {
  console.error("the tests' module does not build");
  process.exit(1);
}
const module = emulated ? { DIFFQKV_MODULE: join(root, 'build-cmake', 'diffqkv-test.node') } : {};
mkdirSync(results, { recursive: true });
// An installation of the package in a bare system; it writes its own counts.
if (
  run(process.execPath, [join(root, 'scripts', 'cleanroom.mjs'), '--quick', '--json', join(results, 'cleanroom.json')])
) {
  console.error('the package does not install and run in a bare system');
  failed = true;
}
if (run(process.execPath, [join(root, 'scripts', 'soak.mjs'), '--minutes', '0.5']) !== 0) {
  console.error('the soak has failed');
  failed = true;
}
// What the run for coverage does on `emulated` is not done twice.
const { emulated: counted, whole } = coverageSuites();
// Two processes with a thread per core each: threads that wait must not spin, or they take the time of those that work.
const quiet = { ...module, OMP_WAIT_POLICY: 'passive' };
const passes = [
  pass('parallel', [`--testPathIgnorePatterns=${alone}`, pattern([...counted, ...whole]), '/node_modules/'], quiet),
  ...(counted.length > 0
    ? [pass('cpu', [`--testPathPatterns=${pattern(counted)}`], { ...quiet, DIFFQKV_TEST_DEVICES: 'cpu' })]
    : []),
  pass('alone', ['--runInBand', `--testPathPatterns=${alone}`]),
];
if (run(process.execPath, [coverage]) !== 0) {
  console.error('the tests fail, or run too few of the lines');
  failed = true;
}
if (counted.length > 0) passes.push({ name: 'emulated', status: 0, ...readCounts(join(results, 'emulated.json')) });
// The tests' module has the emulated device; the one that is shipped shows what a GPU makes of the kernels, if there is one.
const listed = `require(${JSON.stringify(join(root, 'dist', 'lib', 'index.js'))}).listDevices()`;
const usable = `${listed}.some(({ kind, usable }) => kind === 'cuda' && usable)`;
if (spawnSync(process.execPath, ['-e', `process.exit(${usable} ? 0 : 1)`]).status === 0) {
  passes.push(pass('gpu', [`--testPathPatterns=${pattern(everyDevice)}`], { DIFFQKV_TEST_DEVICES: 'cuda' }));
}
const sum = (field) => passes.reduce((total, counts) => total + (counts[field] ?? 0), 0);
failed ||= passes.some(({ status, success }) => status !== 0 || !success);
const suites = sum('numRuntimeErrorTestSuites');
console.log(
  `tests: ${sum('numPassedTests')} passed, ${sum('numPendingTests')} skipped, ${sum('numFailedTests')} failed${suites ? `; ${suites} files did not run` : ''}`,
);
process.exit(failed ? 1 : 0);
