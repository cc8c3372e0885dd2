// npm run test:emulated [-- [--gpu NAME] JEST_ARGUMENTS]: builds the tests' module, whose device
// `emulated` runs the CUDA kernels as C++. Runs the tests for every device on it, then the tests of
// the emulation itself. --gpu selects the GPU that the device reports (default: small, see
// test/emulation/engine/gpu_shape.cc).

import { spawnSync } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { emulation, everyDevice, pattern } from './suites.mjs';

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');

function run(args, env = {}) {
  const { status, error } = spawnSync(process.execPath, args, {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ...env },
  });
  if (error) throw error;
  if (status !== 0) process.exit(1);
}

run([join(root, 'scripts', 'build-native.js'), '--test']);
const given = process.argv.slice(2);
const gpu = given[0] === '--gpu' ? given.splice(0, 2)[1] : '';
if (gpu === undefined) {
  console.error('--gpu needs a name');
  process.exit(1);
}
const args = given.length > 0 ? given : [`--testPathPatterns=${pattern([...everyDevice, ...emulation])}`];
run([join(root, 'node_modules', 'jest', 'bin', 'jest.js'), ...args], {
  DIFFQKV_MODULE: join(root, 'build-cmake', 'diffqkv-test.node'),
  DIFFQKV_TEST_DEVICES: 'emulated',
  ...(gpu ? { DIFFQKV_EMULATED_GPU: gpu } : {}),
  OMP_WAIT_POLICY: 'passive',
});
