// npm test: runs lint, the type check of the tests, and the tests on `cpu` and on `emulated` (the
// CUDA kernels as C++, in the tests' module, which it builds). Longer checks are in scripts/ci.mjs.
//   npm test                  everything
//   npm test -- ARGUMENTS     Jest with these arguments, e.g. `npm test -- test/operators/rope.test.ts`

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { buildForTests, hasEmulation, root, run, runJest, runNode, testModule } from '../test/tools/run.mjs';
import { finish, step, tests } from '../test/tools/steps.mjs';
import { alone, emulation, everyDevice, pattern, slow } from '../test/tools/suites.mjs';

const given = process.argv.slice(2);
if (given.length > 0) process.exit(runJest(given));

if (!existsSync(join(root, 'dist', 'lib', 'index.js'))) {
  console.error('dist/ is missing: run `npm run build` first');
  process.exit(1);
}
const npm = process.env.npm_execpath ? [process.execPath, process.env.npm_execpath] : ['npm'];
step('lint', 'lint failed', () => run(npm[0], [...npm.slice(1), 'run', '--silent', 'lint']));
step('types', 'the type check of the tests failed', () =>
  runNode([join(root, 'node_modules', 'typescript', 'bin', 'tsc'), '-p', 'test']),
);
if (hasEmulation && !step('build', "building the tests' module failed", () => buildForTests())) finish('npm test');

// Two processes with one thread each: more threads than cores wait long for each other. isa.test.ts
// runs other numbers of threads.
const env = { ...(hasEmulation ? { DIFFQKV_MODULE: testModule } : {}), OMP_NUM_THREADS: '1' };
tests('cpu', [`--testPathIgnorePatterns=${pattern([...alone, ...slow, ...emulation])}`, '/node_modules/'], {
  ...env,
  DIFFQKV_TEST_DEVICES: 'cpu',
});
// Runs fewer sizes than on `cpu`. `npm run test:emulated` runs all of them.
if (hasEmulation) {
  tests('emulated', [`--testPathPatterns=${pattern(everyDevice)}`], {
    ...env,
    DIFFQKV_TEST_DEVICES: 'emulated',
    DIFFQKV_TEST_REDUCED: '1',
  });
}
finish('npm test');
