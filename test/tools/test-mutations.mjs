// npm run test:mutations [-- NAME ...]: introduces one error at a time into the C++ and CUDA sources and
// verifies that a named check finds it without a GPU. Works on a copy of the tracked files in
// build-mutations/. Fails if the check passes on a broken source, if a different check fails, or if
// a check fails on the unmodified copy. Needs nvcc and takes about an hour on two cores. NAME is a
// part of a mutation's name.

import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';

import { build, copy, refresh, runInCopy as run } from './broken-copy.mjs';
import { mutations } from './mutations.mjs';
import { capture, jest } from './run.mjs';
import { pattern } from './suites.mjs';

/** Runs each kind of check and returns the names of the failed checks. */
const checks = {
  emulation_check({ part, only }) {
    build('emulation_check');
    const { stdout, status } = run(join(copy, 'build-cmake', 'emulation_check'), ['--only', only, part]);
    if (status !== 0 && status !== 1) throw new Error(`emulation_check ended with ${status}`);
    return JSON.parse(stdout)
      .filter(({ wrong }) => wrong !== null)
      .map(({ name, wrong }) => `${name}: ${wrong}`);
  },
  ptx({ source, only }) {
    build('ptx_check');
    const folder = join(copy, 'build', 'mutation-ptx');
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder, { recursive: true });
    const options = ['-std=c++20', '-O3', '-arch=sm_90a', '-Icuda', '-Icsrc', '-Itest/native'];
    const ptx = join(folder, `${basename(source)}.sm_90a.ptx`);
    const compiled = run(process.env.CUDACXX || 'nvcc', [...options, '-ptx', source, '-o', ptx]);
    if (compiled.status !== 0) throw new Error(`${source} does not compile:\n${compiled.output}`);
    const { stdout, status } = run(join(copy, 'build-cmake', 'ptx_check'), [
      ...['--ptx', folder, '--architectures', 'sm_90a', '--seeds', '2', '--only', only],
    ]);
    if (status !== 0 && status !== 1) throw new Error(`ptx_check ended with ${status}`);
    const { cases, failures } = JSON.parse(stdout);
    if (cases === 0) throw new Error(`no call's name contains ${only}`);
    return failures;
  },
  tests({ suite, device, only }) {
    build('addon_test');
    const report = join(copy, 'build', 'tests.json');
    rmSync(report, { force: true });
    const args = [`--testPathPatterns=${pattern([suite])}`, '-t', only, '--json', `--outputFile=${report}`];
    const { output } = capture(process.execPath, [jest, '--runInBand', '--silent', ...args], {
      env: {
        ...process.env,
        DIFFQKV_MODULE: join(copy, 'build-cmake', 'diffqkv-test.node'),
        DIFFQKV_TEST_DEVICES: device,
        DIFFQKV_TEST_REDUCED: '1',
        OMP_NUM_THREADS: '1',
      },
    });
    if (!existsSync(report)) throw new Error(`the tests end without a report:\n${output.slice(-2000)}`);
    const { testResults } = JSON.parse(readFileSync(report, 'utf8'));
    const results = testResults.flatMap(({ assertionResults }) => assertionResults);
    if (!results.some(({ status }) => status === 'passed' || status === 'failed')) {
      throw new Error(`no test of ${suite} has a name that contains ${only}`);
    }
    return results.filter(({ status }) => status === 'failed').map(({ fullName }) => fullName);
  },
  lint() {
    const { output, status } = run(process.execPath, ['test/tools/check-boundaries.mjs']);
    return status === 0 ? [] : output.split('\n');
  },
};

function apply({ file, from, to }) {
  const path = join(copy, file);
  const text = readFileSync(path, 'utf8');
  if (text.split(from).length !== 2) throw new Error(`${file} does not contain this text exactly once: ${from}`);
  writeFileSync(
    path,
    text.replace(from, () => to),
  );
}

const wanted = process.argv.slice(2);
const chosen = mutations.filter(({ name }) => wanted.length === 0 || wanted.some((part) => name.includes(part)));
if (chosen.length === 0) throw new Error(`no mutation's name contains: ${wanted.join(', ')}`);
mkdirSync(join(copy, 'build'), { recursive: true });
refresh();
let wrong = 0;
const report = (name, problem, found) => {
  if (problem) wrong++;
  console.log(`${problem ? 'WRONG ' : 'caught'} ${name}: ${problem ?? found}`);
};
const kinds = new Map(chosen.map(({ check }) => [JSON.stringify(check), check]));
for (const [key, check] of kinds) {
  const failed = checks[check.kind](check);
  if (failed.length > 0) report(`without a mutation, ${key}`, `fails: ${failed[0]}`);
}
for (const { name, edits, check, finds } of chosen) {
  refresh();
  for (const edit of edits) apply(edit);
  try {
    const failed = checks[check.kind](check);
    const found = failed.find((text) => finds.test(text));
    const other = failed.length > 0 ? `other checks fail: ${failed[0]}` : 'no check fails';
    report(name, found === undefined ? other : undefined, found?.slice(0, 300));
  } catch (error) {
    report(name, error.message);
  }
}
refresh();
console.log(`test-mutations: ${chosen.length} mutations, ${wrong} not caught as expected`);
process.exitCode = wrong > 0 ? 1 : 0;
