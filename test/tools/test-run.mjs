// Shared by scripts/test.mjs and scripts/ci.mjs: runs a step, runs Jest and counts its tests.

import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
/** The folder of Jest's reports. .ci/run sums them. */
export const results = join(root, 'build', 'test-results');
export const testModule = join(root, 'build-cmake', 'diffqkv-test.node');
/** The emulation switches stacks in x86-64 assembly. */
export const hasEmulation = process.arch === 'x64';

const jest = join(root, 'node_modules', 'jest', 'bin', 'jest.js');
const started = Date.now();
const failures = [];
const reports = [];

/** Runs a program. Returns 0, 1, or 130 after Ctrl-C. */
export function run(command, args, env = {}) {
  const { status, signal, error } = spawnSync(command, args, {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ...env },
  });
  if (error) throw error;
  return status === 0 ? 0 : signal === 'SIGINT' ? 130 : 1;
}

export const runNode = (args, env) => run(process.execPath, args, env);
export const runJest = (args, env) => runNode([jest, ...args], env);

/** Runs a step and prints its time. Prints `what` if the step fails. */
export function step(name, what, work) {
  const from = Date.now();
  const ok = work() === 0;
  if (!ok) {
    console.error(what);
    failures.push(name);
  }
  const seconds = (ms) => `${Math.round(ms / 1000)} s`;
  console.log(
    `== ${name}: ${ok ? 'passed' : 'FAILED'} in ${seconds(Date.now() - from)}, at ${seconds(Date.now() - started)}`,
  );
  return ok;
}

/** A step that runs the script `file`, a path below the root. */
export const script = (name, what, file, ...args) => step(name, what, () => runNode([join(root, file), ...args]));

/** A step that runs Jest. `finish` includes its tests. */
export function tests(name, args, env) {
  mkdirSync(results, { recursive: true });
  const report = join(results, `${name}.json`);
  rmSync(report, { force: true });
  reports.push(report);
  step(`tests: ${name}`, `tests failed: ${name}`, () => runJest([...args, '--json', `--outputFile=${report}`], env));
}

/** Includes the tests of a report that another program wrote. */
export const countReport = (name) => reports.push(join(results, `${name}.json`));

/** Prints the number of tests and the steps that failed, and sets the exit status. */
export function finish(name) {
  const sums = { numPassedTests: 0, numPendingTests: 0, numFailedTests: 0, numRuntimeErrorTestSuites: 0 };
  for (const report of reports) {
    try {
      const counts = JSON.parse(readFileSync(report, 'utf8'));
      for (const field of Object.keys(sums)) sums[field] += counts[field] ?? 0;
    } catch (error) {
      console.error(`${report} is not a report: ${error.message}`);
      failures.push(report);
    }
  }
  const { numPassedTests, numPendingTests, numFailedTests, numRuntimeErrorTestSuites } = sums;
  if (numFailedTests + numRuntimeErrorTestSuites > 0 && failures.length === 0) failures.push('tests');
  const broken = numRuntimeErrorTestSuites ? `; ${numRuntimeErrorTestSuites} files did not run` : '';
  console.log(`${name}: ${numPassedTests} passed, ${numPendingTests} skipped, ${numFailedTests} failed${broken}`);
  if (failures.length > 0) console.log(`${name}: FAILED: ${failures.join(', ')}`);
  process.exit(failures.length > 0 ? 1 : 0);
}
