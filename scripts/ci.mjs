// npm run ci: what takes longer than npm test and what may not share the machine, after npm test has passed: the machine code
// of the kernels, an installation in a bare system, the soak, time and memory, every instruction set, PTX, coverage, and the
// tests on a GPU if there is one. .ci/run calls it after the README's test line.

import { rmSync } from 'node:fs';
import { join } from 'node:path';

import { alone, emulation, everyDevice, pattern, slow } from './suites.mjs';
import { countReport, finish, hasEmulation, results, root, run, script, step, testModule, tests } from './test-run.mjs';

const module = hasEmulation ? { DIFFQKV_MODULE: testModule } : {};

step('weak symbols', 'the rule of csrc/backend/cpu/kernels.h on weak symbols does not hold', () =>
  run('bash', [join(root, 'scripts', 'check-isa.sh'), join(root, 'build-cmake')]),
);
script('kernels', 'the compiled kernels spill', 'check-kernels.mjs');
script('reference', 'the reference of the public names cannot be made', 'docs.mjs');
const cleanroomReport = join(results, 'cleanroom.json'); // it writes its own counts
rmSync(cleanroomReport, { force: true });
script(
  'clean room',
  'the package does not install and run in a bare system',
  'cleanroom.mjs',
  '--quick',
  '--json',
  cleanroomReport,
);
countReport('cleanroom');
script('soak', 'the soak has failed', 'soak.mjs', '--minutes', '0.5');
tests('alone', ['--runInBand', `--testPathPatterns=${pattern(alone)}`]);
tests('slow', [`--testPathPatterns=${pattern([...slow, ...emulation])}`], {
  ...module,
  OMP_NUM_THREADS: '1',
});
script('coverage', 'the tests fail, or run too few of the lines', 'coverage.mjs');
// The shipped module shows what a GPU makes of the kernels, if there is one.
const listed = `require(${JSON.stringify(join(root, 'dist', 'lib', 'index.js'))}).listDevices()`;
const usable = `${listed}.some(({ kind, usable }) => kind === 'cuda' && usable)`;
if (run(process.execPath, ['-e', `process.exit(${usable} ? 0 : 1)`]) === 0) {
  tests('gpu', [`--testPathPatterns=${pattern(everyDevice)}`], { DIFFQKV_TEST_DEVICES: 'cuda' });
}
finish('npm run ci');
