// npm run test:sanitized [-- JEST_ARGUMENTS]: builds the tests' module and the emulation's checks
// with AddressSanitizer and UBSan in build-sanitized/. Runs the checks, and the suites on the
// device `emulated` with fewer sizes. Leaks are not reported, because Node itself leaks.
//
// npm run test:sanitized -- --thread [JEST_ARGUMENTS]: the same with ThreadSanitizer in
// build-sanitized-thread/, with multithreaded suites, on the CPU device too, and a soak test of a
// minute. Node is not instrumented: TSan ignores its memory accesses but intercepts its pthread
// calls, so its locks count. TSan does not understand libgomp, so OpenMP regions run on
// test/sanitizers/openmp.cc. oneDNN uses libgomp, so this build uses the project's own loops
// instead.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';

import { buildForTests, root, runJest, runNode } from './run.mjs';
import { operators, pattern } from './suites.mjs';

const given = process.argv.slice(2).filter((argument) => argument !== '--thread');
const thread = process.argv.includes('--thread');
const work = join(root, thread ? 'build-sanitized-thread' : 'build-sanitized');

function library(name) {
  const { stdout } = spawnSync(process.env.CXX || 'g++', [`-print-file-name=${name}`], { encoding: 'utf8' });
  const file = (stdout ?? '').trim();
  return file.startsWith('/') && existsSync(file) ? file : undefined;
}

const libraries = thread ? ['libtsan.so', 'libstdc++.so'] : ['libasan.so', 'libubsan.so', 'libstdc++.so'];
const preload = libraries.map(library);
if (preload.includes(undefined)) {
  console.log(`SKIPPED: the C++ compiler lacks one of ${libraries.join(', ')}`);
  process.exit(0);
}
const sanitizers = thread
  ? ['-DDIFFQKV_SANITIZE=thread', '-DDIFFQKV_ONEDNN=OFF']
  : ['-DDIFFQKV_SANITIZE=address,undefined'];
const built = buildForTests([...sanitizers, '-DDIFFQKV_CUDA=OFF'], { DIFFQKV_BUILD_DIR: work }) === 0;
if (!built) process.exit(1);

// Reports go to files, because a Jest worker does not show its standard error.
const reports = join(work, 'reports');
rmSync(reports, { recursive: true, force: true });
mkdirSync(reports);
const suites = thread
  ? [
      ...[
        'abort',
        'attention_decode',
        'attention_prefill',
        'augmented_q',
        'batching',
        'device_lost',
        'fixtures',
        'generate',
      ],
      ...['kv_cache', 'kv_types', 'matmul', 'quantize', 'rms_norm', 'sample', 'tensor'],
    ]
  : [...operators, ...['emulation', 'errors_devices', 'fixtures', 'kv_cache', 'key_and_value_sizes']];
const args = given.length > 0 ? given : [`--testPathPatterns=${pattern(suites)}`, '--testTimeout=900000'];
// This test compares the bits of two prefill paths, which are equal with users' flags but not with
// this build's -O1. It does not depend on threads.
if (thread && given.length === 0) args.push('--testNamePattern=^(?!.*NaN past kvLens)');
const environment = {
  DIFFQKV_MODULE: join(work, 'diffqkv-test.node'),
  DIFFQKV_TEST_REDUCED: '1',
  OMP_WAIT_POLICY: 'passive',
  LD_PRELOAD: preload.join(':'),
  ...(thread
    ? {
        DIFFQKV_TEST_DEVICES: 'cpu',
        OMP_NUM_THREADS: '3',
        TSAN_OPTIONS: [
          ...['ignore_noninstrumented_modules=1', 'die_after_fork=0', 'history_size=4', 'exitcode=0'],
          `suppressions=${join(root, 'test', 'sanitizers', 'thread.supp')}`,
          `log_path=${join(reports, 'tsan')}`,
        ].join(':'),
      }
    : {
        DIFFQKV_EMULATION_CHECK: join(work, 'emulation_check'),
        DIFFQKV_TEST_DEVICES: 'emulated',
        // The emulation catches stray accesses itself, before ASan. ASan does not know a fiber's
        // stack unless it is told.
        ASAN_OPTIONS: `detect_leaks=0:detect_stack_use_after_return=0:halt_on_error=0:log_path=${join(reports, 'asan')}`,
        // UBSan's reports do not reach the files. Its findings end the process, so the suite fails.
        UBSAN_OPTIONS: 'print_stacktrace=1:halt_on_error=1',
      }),
};
if (thread) {
  runNode([join(root, 'test', 'sanitizers', 'several_splits.cjs')], { ...environment, OPENMP_WITHOUT_BARRIERS: '1' });
  if (readdirSync(reports).length === 0) {
    console.error('ThreadSanitizer did not report a known race');
    process.exit(1);
  }
  for (const name of readdirSync(reports)) rmSync(join(reports, name));
}
let passed = runJest(args, environment) === 0;
if (thread && given.length === 0) {
  // TSan's own memory makes memory growth impossible to measure.
  const soak = [join(root, 'test', 'tools', 'soak.mjs'), '--minutes', '1', '--workers', '4', '--memory', 'any'];
  passed = runNode(soak, environment) === 0 && passed;
}
const found = readdirSync(reports);
for (const name of found) console.error(`\n== ${name}\n${readFileSync(join(reports, name), 'utf8').slice(0, 4000)}`);
console.log(`sanitizers: ${found.length === 0 ? 'nothing found' : `${found.length} processes with reports`}`);
process.exitCode = passed && found.length === 0 ? 0 : 1;
