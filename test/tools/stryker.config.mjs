// npm run test:stryker [-- --mutate lib/stop.ts]: Stryker changes the code of lib/ in one small place at
// a time and runs the tests that reach the place, on the CPU. Needs the tests' module (npm run
// build:test) and dist/. The report is build/stryker/report.html.
//
// STRYKER_OF=server mutates the HTTP example instead. Its tests start it as a process, whose coverage
// is unknown, so all of them run for each mutant.

import { testModule } from './run.mjs';
import { alone, slow, testFiles } from './suites.mjs';

const ofServer = process.env.STRYKER_OF === 'server';

// The tests that call lib/ in their own process. Of the operators, one file for each call of
// lib/kernels.ts is enough: other sizes are the same to lib/.
const operators = [
  'augmented_q',
  'embed',
  'matmul',
  'mixed_and_empty',
  'rms_norm',
  'rope',
  'sample',
  'gated_activation',
];
const elsewhere = [...alone, ...slow, 'docs', 'package', 'checkpoint_shapes'];
const suites = [...testFiles].filter(([name, path]) =>
  ofServer
    ? name === 'http_example'
    : operators.includes(name) || (/^(api|model)\//.test(path) && !elsewhere.includes(name)),
);
// The processes of Stryker inherit these.
process.env.DIFFQKV_MODULE = testModule;
process.env.DIFFQKV_TEST_DEVICES = 'cpu';
process.env.DIFFQKV_TEST_REDUCED = '1';
process.env.OMP_NUM_THREADS = '1';

export default {
  testRunner: 'jest',
  plugins: ['@stryker-mutator/jest-runner'],
  mutate: ofServer ? ['examples/http-server/{server,openai}.mjs'] : ['lib/**/*.ts', '!lib/index.*'],
  coverageAnalysis: ofServer ? 'off' : 'perTest',
  jest: {
    configFile: 'jest.config.js',
    enableFindRelatedTests: false,
    config: { testMatch: suites.map(([, path]) => `<rootDir>/test/${path}`) },
  },
  ignorePatterns: ['/build*', '/coverage', '/.ci', '/test/fuzz/corpus*', '/docs', '/bench/results'],
  ignoreStatic: true,
  concurrency: 2,
  timeoutMS: 30_000,
  dryRunTimeoutMinutes: 30,
  tempDirName: 'build/stryker/sandbox',
  incremental: true,
  incrementalFile: 'build/stryker/incremental.json',
  reporters: ['clear-text', 'progress-append-only', 'html', 'json'],
  clearTextReporter: { allowColor: false, logTests: false },
  htmlReporter: { fileName: 'build/stryker/report.html' },
  jsonReporter: { fileName: 'build/stryker/report.json' },
  thresholds: { high: 85, low: 70, break: null },
  checkers: [],
  disableTypeChecks: false,
};
