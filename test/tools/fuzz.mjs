// npm run fuzz [-- --seconds N] [--target NAME] [--seed N] [--minimize] [--coverage]: feeds mutated
// files to everything that opens a checkpoint, for N seconds (default 60) split among the targets.
// The targets in csrc/model are C++ with AddressSanitizer, UBSan and clang's libFuzzer
// (test/fuzz/*.cc). The tokenizer targets use a small JavaScript fuzzer that V8's block counts
// guide (test/fuzz/tokenizer_*.cjs). All start from test/fuzz/corpus.tar.gz and add to
// build-fuzz/corpus. An input that crashes, hangs or uses too much memory is saved in
// build-fuzz/found, and the exit status is 1.
//
// --minimize reduces both corpora of the C++ targets to inputs that reach the same code, and writes
// corpus.tar.gz. --coverage prints the lines of csrc/model that both corpora reach.

import { spawn, spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { parseArgs } from 'node:util';
import { packCorpus, unpackCorpus } from '../fuzz/corpus.cjs';
import { root } from './run.mjs';

const sources = join(root, 'test', 'fuzz');
const work = join(root, 'build-fuzz');
const found = join(work, 'found');
const native = ['safetensors', 'config', 'index', 'checkpoint'];
const scripted = ['tokenizer', 'chat_template'];
const HANG_SECONDS = 60; // a tokenizer may use its limit of 20 s, and more on a busy machine

const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '60' },
    target: { type: 'string' },
    seed: { type: 'string', default: String(Date.now() % 1e6) },
    minimize: { type: 'boolean', default: false },
    coverage: { type: 'boolean', default: false },
  },
});
const all = [...native, ...scripted];
const seconds = Number(values.seconds);
if (!(seconds > 0)) stop(`--seconds ${values.seconds}: must be a number above 0`);
if (values.target && !all.includes(values.target)) stop(`--target ${values.target}: must be one of ${all.join(', ')}`);
let targets = values.target ? [values.target] : all;

function stop(message) {
  console.error(message);
  process.exit(2);
}

/** The newest clang++ that has libFuzzer. */
function findClang() {
  const versions = Array.from({ length: 12 }, (_, i) => `clang++-${25 - i}`);
  const probe = ['-fsanitize=fuzzer,address', '-x', 'c++', '-', '-o', '/dev/null'];
  const input = 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }';
  return ['clang++', ...versions].find((name) => spawnSync(name, probe, { input }).status === 0);
}

function build(clang, folder, ...options) {
  const configured = ['-S', sources, '-B', folder, `-DCMAKE_CXX_COMPILER=${clang}`, ...options];
  const steps = existsSync(join(folder, 'CMakeCache.txt')) ? [] : [configured];
  for (const args of [...steps, ['--build', folder, '--parallel', '2']]) {
    const { status, stdout, stderr } = spawnSync('cmake', args, { encoding: 'utf8', maxBuffer: 1 << 28 });
    if (status !== 0) stop(`${stdout ?? ''}${stderr ?? ''}\nbuilding the fuzz targets failed`);
  }
}

// test/fuzz/regressions has earlier findings, which the tests replay. Some are slow, so fuzzing
// does not start from them.
const keptCorpus = join(work, 'kept'); // the contents of corpus.tar.gz
const kept = (target) => [join(keptCorpus, target)].filter(existsSync);
const fresh = (target) => join(work, 'corpus', target);
const environment = {
  ...process.env,
  // These defaults cost the most time: a stack trace per block, a quarantine larger than the
  // caches, and use-after-return detection.
  ASAN_OPTIONS:
    'malloc_context_size=2:quarantine_size_mb=4:thread_local_quarantine_size_kb=64:detect_stack_use_after_return=0',
};

function runNative(target, share) {
  mkdirSync(fresh(target), { recursive: true });
  const args = [
    ...[fresh(target), ...kept(target), `-dict=${join(sources, 'json.dict')}`, `-max_total_time=${share}`],
    ...[`-max_len=${target === 'checkpoint' ? 4096 : 1024}`, `-timeout=${HANG_SECONDS}`, '-rss_limit_mb=1024'],
    ...['-malloc_limit_mb=128', `-artifact_prefix=${found}/${target}-`, '-print_final_stats=1', `-seed=${values.seed}`],
  ];
  const { status, stderr } = spawnSync(join(work, 'targets', `fuzz_${target}`), args, {
    encoding: 'utf8',
    env: environment,
    maxBuffer: 1 << 28,
  });
  const number = (pattern) => Number(pattern.exec(stderr)?.[1] ?? 0);
  const executions = number(/number_of_executed_units: (\d+)/);
  if (status !== 0 || executions === 0) console.error(stderr.slice(-6000));
  return { good: status === 0 && executions > 0, executions, reached: `${number(/.*cov: (\d+)/s)} edges` };
}

/**
 * Runs one process after another until the time is up. Each ends when its time is up or at the
 * first finding.
 */
async function runScripted(target, share) {
  // Use memory if possible: each input is written to files.
  const place = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'diffqkv-fuzz-'));
  const current = join(place, 'current');
  const child = spawn(
    process.execPath,
    [
      '--max-old-space-size=384',
      ...[join(sources, 'tokenizer_child.cjs'), target, String(share), values.seed, place, fresh(target)],
      ...kept(target),
    ],
    { stdio: ['ignore', 'pipe', 'pipe'] },
  );
  let output = '';
  let errors = '';
  child.stdout.on('data', (data) => (output += data));
  child.stderr.on('data', (data) => (errors += data));
  let hangs = false;
  const watch = setInterval(() => {
    if (!existsSync(current) || Date.now() - statSync(current).mtimeMs < 1000 * HANG_SECONDS) return;
    hangs = true;
    child.kill('SIGKILL');
  }, 500);
  const status = await new Promise((resolve) => child.on('close', resolve));
  clearInterval(watch);
  let result = {};
  try {
    result = JSON.parse(output);
  } catch {
    if (!hangs) errors += output; // it died before it could print anything
  }
  const good = status === 0 && result.executions > 0;
  if (!good) {
    const file = join(found, `${target}-${Date.now()}`);
    if (existsSync(current)) copyFileSync(current, file);
    console.error(`${hangs ? `an input takes more than ${HANG_SECONDS} s` : errors.slice(-4000)}\nsaved: ${file}`);
  }
  rmSync(place, { recursive: true });
  return { good, executions: result.executions ?? 0, reached: `${result.blocks ?? 0} blocks` };
}

function minimize(target) {
  const corpus = join(keptCorpus, target);
  mkdirSync(corpus, { recursive: true });
  const less = join(work, `less-${target}`);
  rmSync(less, { recursive: true, force: true });
  mkdirSync(less);
  const { status, stderr } = spawnSync(
    join(work, 'targets', `fuzz_${target}`),
    ['-set_cover_merge=1', '-use_counters=0', '-max_len=4096', less, fresh(target), corpus],
    { encoding: 'utf8', env: environment, maxBuffer: 1 << 28 },
  );
  if (status !== 0) stop(stderr.slice(-4000));
  rmSync(corpus, { recursive: true });
  renameSync(less, corpus);
  packCorpus(keptCorpus);
  console.log(`${target}: ${readdirSync(corpus).length} inputs in ${relative(root, corpus)}`);
}

function must(command, args, options) {
  const { status, error } = spawnSync(command, args, options);
  if (status !== 0) stop(`${command}: ${error?.message ?? `status ${status}`}`);
}

function coverage(clang) {
  const folder = join(work, 'counted');
  build(clang, folder, '-DDIFFQKV_COVERAGE=ON');
  const profiles = native.map((target) => {
    const profile = join(folder, `${target}.profraw`);
    must(join(folder, `fuzz_${target}`), ['-runs=0', ...[fresh(target), ...kept(target)].filter(existsSync)], {
      env: { ...process.env, LLVM_PROFILE_FILE: profile },
    });
    return profile;
  });
  const suffix = clang.replace('clang++', '');
  const merged = join(folder, 'all.profdata');
  must(`llvm-profdata${suffix}`, ['merge', '-o', merged, ...profiles], { stdio: 'inherit' });
  const objects = native.flatMap((target) => ['-object', join(folder, `fuzz_${target}`)]);
  const names = ['checkpoint', 'config', 'json_text', 'loader', 'weights'].map((name) =>
    join(root, 'csrc', 'model', `${name}.cc`),
  );
  must(`llvm-cov${suffix}`, ['report', ...objects.slice(1), `-instr-profile=${merged}`, ...names], {
    stdio: 'inherit',
  });
}

mkdirSync(found, { recursive: true });
rmSync(keptCorpus, { recursive: true, force: true });
mkdirSync(keptCorpus);
unpackCorpus(keptCorpus);
const clang = targets.some((target) => native.includes(target)) ? findClang() : undefined;
if (clang) {
  build(clang, join(work, 'targets'));
} else {
  for (const target of targets.filter((target) => native.includes(target)))
    console.log(`SKIPPED: ${target}: no clang++ with libFuzzer (on Debian and Ubuntu: apt-get install clang)`);
  targets = targets.filter((target) => scripted.includes(target));
  if (targets.length === 0) stop('there is no target to fuzz');
}
if (values.minimize || values.coverage) {
  if (!clang) process.exit(1);
  if (values.minimize) for (const target of targets.filter((target) => native.includes(target))) minimize(target);
  if (values.coverage) coverage(clang);
  process.exit(0);
}
if (targets.some((target) => scripted.includes(target)) && !existsSync(join(root, 'dist', 'lib', 'index.js')))
  stop('dist/ is missing: run `npm run build` first');
let failed = false;
let total = 0;
for (const target of targets) {
  const share = Math.max(1, Math.round(seconds / targets.length));
  const start = Date.now();
  const { good, executions, reached } = await (native.includes(target) ? runNative : runScripted)(target, share);
  const rate = Math.round((1000 * executions) / (Date.now() - start));
  console.log(`${good ? 'ok  ' : 'FAIL'} ${target}: ${executions} inputs, ${rate} a second, ${reached} reached`);
  failed ||= !good;
  total += executions;
}
console.log(
  `fuzz: ${total} inputs, seed ${values.seed}, ${failed ? `findings are in ${relative(root, found)}` : 'no finding'}`,
);
process.exitCode = failed ? 1 : 0;
