// The configuration of Stryker for one part of lib/, or for the HTTP example: test-stryker.mjs starts
// Stryker with it, and names the part in STRYKER_PART.

import { join } from 'node:path';

import { root, testModule } from './run.mjs';
import { parts } from './stryker_parts.mjs';
import { seed, share } from './stryker-sample.mjs';
import { testFiles } from './suites.mjs';

const name = process.env.STRYKER_PART;
const { mutate, tests, inProcess = true } = parts[name];
const isSampled = share < 1;

// The processes of Stryker inherit these.
process.env.DIFFQKV_MODULE = testModule;
process.env.DIFFQKV_TEST_DEVICES = 'cpu';
process.env.DIFFQKV_TEST_REDUCED = '1';
process.env.OMP_NUM_THREADS = '1';

const output = `build/stryker/${name}`;
export default {
  testRunner: 'jest',
  plugins: ['@stryker-mutator/jest-runner', './test/tools/stryker-sample.mjs'],
  mutate,
  // Stryker cannot see the coverage of another process, so all tests of the part run for each mutant.
  coverageAnalysis: inProcess ? 'perTest' : 'off',
  // Other processes and threads run dist/.
  ...(inProcess ? {} : { buildCommand: 'npx tsc -p . --noCheck --incremental false' }),
  jest: {
    configFile: 'jest.config.js',
    enableFindRelatedTests: false,
    config: {
      testMatch: tests.map((test) => `<rootDir>/test/${testFiles.get(test)}`),
      testEnvironment: join(root, 'test', 'tools', 'stryker_environment.cjs'),
    },
  },
  ignorePatterns: ['/build*', '/coverage', '/.ci', '/test/fuzz/corpus*', '/docs', '/bench/results'],
  concurrency: 1,
  timeoutMS: 15_000,
  dryRunTimeoutMinutes: 30,
  tempDirName: 'build/stryker/sandbox',
  incremental: !isSampled,
  incrementalFile: `${output}.incremental.json`,
  reporters: ['progress-append-only', 'html', 'json'],
  htmlReporter: { fileName: `${output}.html` },
  jsonReporter: { fileName: `${output}${isSampled ? `.${seed}` : ''}.json` },
  thresholds: { high: 85, low: 70, break: null },
  checkers: isSampled ? ['sample'] : [],
  disableTypeChecks: !inProcess,
};
