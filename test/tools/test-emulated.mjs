// npm run test:emulated [-- [--gpu NAME] JEST_ARGUMENTS]: builds the tests' module, whose device
// `emulated` runs the CUDA kernels as C++. Runs the tests for every device on it, then the tests of
// the emulation itself. --gpu selects the GPU that the device reports (default: small, see
// test/emulation/engine/gpu_shape.cc).

import { buildForTests, runJest, testModule } from './run.mjs';
import { emulation, everyDevice, pattern } from './suites.mjs';

const given = process.argv.slice(2);
const gpu = given[0] === '--gpu' ? given.splice(0, 2)[1] : '';
if (gpu === undefined) {
  console.error('--gpu needs a name');
  process.exit(1);
}
if (buildForTests() !== 0) process.exit(1);
const args = given.length > 0 ? given : [`--testPathPatterns=${pattern([...everyDevice, ...emulation])}`];
process.exitCode = runJest(args, {
  DIFFQKV_MODULE: testModule,
  DIFFQKV_TEST_DEVICES: 'emulated',
  ...(gpu ? { DIFFQKV_EMULATED_GPU: gpu } : {}),
  OMP_WAIT_POLICY: 'passive',
});
