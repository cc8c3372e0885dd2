// npm run test:mutants [-- --count N --seed S --files PATTERN --rows --from LINE --survivors]: changes the code of csrc/
// and cuda/ in one small place at a time (mutants.mjs) and runs the tests of the changed file, on the
// CPU or on the emulated device. Prints one line for each mutant: its place, the change, and the test
// file that fails or "survived". Writes all results to build/mutants.json.
//
// --count: how many mutants (40). --seed: the sample (1). --files: a pattern of paths.
// --rows: instead, the parts of each row of csrc/model/architectures.cc, in an order of the seed;
// with --from, those from this line on.
// --survivors: the survivors of the last run again.
//
// A mutant whose module has the same bytes as the unchanged module counts as "same code", and neither
// that nor one that does not compile is part of the score. Works on a copy in build-mutations/. With
// CMAKE_CXX_COMPILER_LAUNCHER=ccache in the environment of the first run, restored files are not
// compiled again.

import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

import { build, copy, refresh, tryBuild } from './broken-copy.mjs';
import { applyMutant, mutantsOf, randomNumbers, rowMutantsOf } from './mutants.mjs';
import { excluded, harmlessIn, runsFor } from './mutants_suites.mjs';
import { capture, jest, root } from './run.mjs';
import { pattern } from './suites.mjs';

const { values: options } = parseArgs({
  options: {
    count: { type: 'string', default: '40' },
    seed: { type: 'string', default: '1' },
    files: { type: 'string', default: '' },
    rows: { type: 'boolean', default: false },
    from: { type: 'string', default: '1' },
    survivors: { type: 'boolean', default: false },
  },
});
const results = join(root, 'build', 'mutants.json');
const module = join(copy, 'build-cmake', 'diffqkv-test.node');
const unchangedModule = join(copy, 'build-cmake', 'unchanged.node');
// What the test file `emulation` runs.
const program = join(copy, 'build-cmake', 'emulation_check');
const unchangedProgram = join(copy, 'build-cmake', 'unchanged_check');
const LIMIT_MS = 400_000;

const hash = () => createHash('sha256').update(readFileSync(module)).digest('hex');
const sourceOf = (file) => readFileSync(join(root, file), 'utf8');

/** The places that may change, each with its mutants. */
function places() {
  if (options.rows) {
    const file = 'csrc/model/architectures.cc';
    const mutants = rowMutantsOf(sourceOf(file)).filter(({ line }) => line >= Number(options.from));
    return mutants.map((mutant) => [{ file, ...mutant }]);
  }
  const { stdout } = capture('git', ['ls-files', 'csrc', 'cuda']);
  const files = stdout.split('\n').filter((file) => /\.(cc|cu|h)$/.test(file) && new RegExp(options.files).test(file));
  const found = [];
  for (const file of files) {
    if (excluded.some(({ files: part }) => part.test(file))) continue;
    const text = sourceOf(file);
    const isHarmless = harmlessIn(file, text.split('\n'));
    const byPlace = new Map();
    for (const mutant of mutantsOf(text)) {
      if (isHarmless(mutant)) continue;
      if (!byPlace.has(mutant.at)) byPlace.set(mutant.at, []);
      byPlace.get(mutant.at).push({ file, ...mutant });
    }
    found.push(...byPlace.values());
  }
  return found;
}

/** One mutant of each of `count` places. */
function sample(count, seed) {
  const random = randomNumbers(seed);
  const from = places();
  const chosen = [];
  while (chosen.length < count && from.length > 0) {
    const [place] = from.splice(Math.floor(random() * from.length), 1);
    chosen.push(place[Math.floor(random() * place.length)]);
  }
  return chosen;
}

/** Runs one test file on a module. Returns how it failed, or undefined. */
function failure(suite, env, module, program) {
  if (suite === 'emulation' && !existsSync(program)) throw new Error(`${program} is not built`);
  const { status, signal, error } = spawnSync(
    process.execPath,
    [jest, '--runInBand', '--silent', '--forceExit', `--testPathPatterns=${pattern([suite])}`],
    {
      cwd: root,
      stdio: 'ignore',
      timeout: LIMIT_MS,
      killSignal: 'SIGKILL',
      env: {
        ...process.env,
        DIFFQKV_MODULE: module,
        DIFFQKV_EMULATION_CHECK: program,
        DIFFQKV_TEST_REDUCED: '1',
        OMP_NUM_THREADS: '1',
        ...env,
      },
    },
  );
  if (error?.code === 'ETIMEDOUT') return `${suite} (time)`;
  if (error) throw error;
  if (signal) return `${suite} (${signal})`;
  return status === 0 ? undefined : suite;
}

const passed = new Set();
/** Throws if the test file fails without a mutant, too. */
function mustPassUnchanged(suite, env) {
  const key = JSON.stringify([suite, env]);
  if (passed.has(key)) return;
  const failed = failure(suite, env, unchangedModule, unchangedProgram);
  if (failed !== undefined) throw new Error(`without a mutant, ${failed} fails with ${JSON.stringify(env)}`);
  passed.add(key);
}

function tested({ file }) {
  for (const { suites, env } of runsFor(file)) {
    for (const suite of suites) {
      if (suite === 'emulation' && tryBuild('emulation_check') !== undefined) return `killed by building ${suite}`;
      const failed = failure(suite, env, module, program);
      if (failed === undefined) continue;
      mustPassUnchanged(suite, env);
      return `killed by ${failed}${env.DIFFQKV_CPU_ISA ? ` at ${env.DIFFQKV_CPU_ISA}` : ''}`;
    }
  }
  return 'survived';
}

function outcome(mutant, unchanged) {
  writeFileSync(join(copy, mutant.file), applyMutant(sourceOf(mutant.file), mutant));
  if (tryBuild('addon_test') !== undefined) return 'did not build';
  if (hash() === unchanged) return 'same code';
  return tested(mutant);
}

const oneLine = (text) => text.replace(/\s+/g, ' ').slice(0, 60);

const chosen = options.survivors
  ? JSON.parse(readFileSync(results, 'utf8')).filter((result) => result.outcome === 'survived')
  : sample(Number(options.count), Number(options.seed));
// The mutants of a file one after the other, so that fewer files are compiled again.
chosen.sort((a, b) => (a.file < b.file ? -1 : a.file > b.file ? 1 : a.at - b.at));
mkdirSync(join(root, 'build'), { recursive: true });
refresh();
build('addon_test', 'emulation_check');
copyFileSync(module, unchangedModule);
copyFileSync(program, unchangedProgram);
const unchanged = hash();

const done = [];
for (const mutant of chosen) {
  const started = Date.now();
  if (!sourceOf(mutant.file).startsWith(mutant.from, mutant.at)) {
    console.log(`${mutant.file}:${mutant.line} has changed since`);
    continue;
  }
  const result = { ...mutant, outcome: outcome(mutant, unchanged) };
  result.seconds = Math.round((Date.now() - started) / 1000);
  done.push(result);
  refresh();
  writeFileSync(results, `${JSON.stringify(done, null, 1)}\n`);
  const change = mutant.to === '' ? `deleted: ${oneLine(mutant.from)}` : `${mutant.from} -> ${mutant.to}`;
  console.log(`${mutant.file}:${mutant.line}  ${change}  ${result.outcome}  (${result.seconds} s)`);
}
if (existsSync(module)) build('addon_test');
const count = (part) => done.filter(({ outcome }) => outcome.startsWith(part)).length;
const [killed, survived] = [count('killed'), count('survived')];
console.log(
  `test-mutants: ${killed} of ${killed + survived} killed (${((100 * killed) / (killed + survived)).toFixed(1)} %), ` +
    `${survived} survived, ${count('same')} with the same code, ${count('did not')} did not build`,
);
