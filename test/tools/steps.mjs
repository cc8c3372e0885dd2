// The steps of npm test and npm run ci: runs them, counts their tests and reports failures.

import { mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';

import { root, runJest, runNode } from './run.mjs';

/** The folder of Jest's reports. .ci/run sums them. */
export const results = join(root, 'build', 'test-results');

const started = Date.now();
const failures = [];
const reports = [];

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
