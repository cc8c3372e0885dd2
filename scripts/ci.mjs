// npm run ci: runs the checks that take longer than npm test or that must not share the machine. It
// expects that npm test has passed. It checks the machine code of the kernels, an installation in a
// bare system, the soak test, time and memory, every instruction set, PTX, and the tests on a GPU if
// there is one. .ci/run calls it after the README's test line.

import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { hasEmulation, root, run, testModule } from '../test/tools/run.mjs';
import { countReport, finish, results, script, step, tests } from '../test/tools/steps.mjs';
import { alone, emulation, everyDevice, pattern, slow } from '../test/tools/suites.mjs';

const module = hasEmulation ? { DIFFQKV_MODULE: testModule } : {};

step('weak symbols', 'an object for an instruction set defines a weak symbol (see csrc/backend/cpu/kernels.h)', () =>
  run('bash', [join(root, 'test', 'tools', 'check-isa.sh'), join(root, 'build-cmake')]),
);
script('kernels', 'the compiled kernels spill', 'test/tools/check-kernels.mjs');
script('reference', 'the API reference cannot be built', 'scripts/docs.mjs');
const cleanroomReport = join(results, 'cleanroom.json'); // it writes its own counts
rmSync(cleanroomReport, { force: true });
script(
  'clean room',
  'the package does not install and run in a bare system',
  'test/tools/cleanroom.mjs',
  '--quick',
  '--json',
  cleanroomReport,
);
countReport('cleanroom');
script('soak', 'the soak test failed', 'test/tools/soak.mjs', '--minutes', '0.5');
tests('alone', ['--runInBand', `--testPathPatterns=${pattern(alone)}`]);
tests('slow', [`--testPathPatterns=${pattern([...slow, ...emulation])}`], {
  ...module,
  OMP_NUM_THREADS: '1',
});
// If there is a GPU, test the shipped module on it.
const listed = `require(${JSON.stringify(join(root, 'dist', 'lib', 'index.js'))}).listDevices()`;
const usable = `${listed}.some(({ kind, usable }) => kind === 'cuda' && usable)`;
if (run(process.execPath, ['-e', `process.exit(${usable} ? 0 : 1)`]) === 0) {
  tests('gpu', [`--testPathPatterns=${pattern(everyDevice)}`], { DIFFQKV_TEST_DEVICES: 'cuda' });
}
finish('npm run ci');
