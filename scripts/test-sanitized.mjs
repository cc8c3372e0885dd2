// npm run test:sanitized [-- JEST_ARGUMENTS]: builds the tests' module and the checks of the emulation under
// AddressSanitizer and UBSan, in build-sanitized/, and runs the checks and the suites of the device `emulated` with fewer
// sizes. Leaks are not looked for: Node itself leaves some.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const work = join(root, 'build-sanitized');

function run(args, env = {}) {
  const { status, error } = spawnSync(process.execPath, args, {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ...env },
  });
  if (error) throw error;
  return status === 0;
}

function library(name) {
  const { stdout } = spawnSync(process.env.CXX || 'g++', [`-print-file-name=${name}`], { encoding: 'utf8' });
  const file = (stdout ?? '').trim();
  return file.startsWith('/') && existsSync(file) ? file : undefined;
}

const preload = ['libasan.so', 'libubsan.so', 'libstdc++.so'].map(library);
if (preload.includes(undefined)) {
  console.log('SKIPPED: the C++ compiler has no AddressSanitizer (libasan, libubsan)');
  process.exit(0);
}
const built = run(
  [join(root, 'scripts', 'build-native.js'), '--test', '-DDIFFQKV_SANITIZE=address,undefined', '-DDIFFQKV_CUDA=OFF'],
  { DIFFQKV_BUILD_DIR: work },
);
if (!built) process.exit(1);

// Reports go to files: a worker of Jest keeps its standard error to itself.
const reports = join(work, 'reports');
rmSync(reports, { recursive: true, force: true });
mkdirSync(reports);
const given = process.argv.slice(2);
const suites = [
  ...['emulation', 'attention_decode', 'attention_prefill', 'augmented_q', 'embed', 'errors_devices', 'fixtures'],
  ...['kv_append', 'kv_cache', 'kv_types', 'key_and_value_sizes', 'matmul', 'mixed_and_empty', 'quantize'],
  ...['rms_norm', 'rope', 'sample', 'silu_mul', 'tensor'],
];
const args =
  given.length > 0 ? given : [`--testPathPatterns=test/(${suites.join('|')})\\.test\\.ts$`, '--testTimeout=900000'];
const passed = run([join(root, 'node_modules', 'jest', 'bin', 'jest.js'), ...args], {
  DIFFQKV_MODULE: join(work, 'diffqkv-test.node'),
  DIFFQKV_EMULATION_CHECK: join(work, 'emulation_check'),
  DIFFQKV_TEST_DEVICES: 'emulated',
  DIFFQKV_TEST_REDUCED: '1',
  OMP_WAIT_POLICY: 'passive',
  LD_PRELOAD: preload.join(':'),
  // A stray access that the emulation itself refuses is no concern of ASan's; a fiber's stack is, if it is not told.
  ASAN_OPTIONS: `detect_leaks=0:detect_stack_use_after_return=0:halt_on_error=0:log_path=${join(reports, 'asan')}`,
  // UBSan's reports do not reach the files: what it finds ends the process, and so fails the suite.
  UBSAN_OPTIONS: 'print_stacktrace=1:halt_on_error=1',
});
const found = readdirSync(reports);
for (const name of found) console.error(`\n== ${name}\n${readFileSync(join(reports, name), 'utf8').slice(0, 4000)}`);
console.log(`sanitizers: ${found.length === 0 ? 'nothing found' : `${found.length} processes with reports`}`);
process.exitCode = passed && found.length === 0 ? 0 : 1;
