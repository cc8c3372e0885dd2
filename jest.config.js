// The test suite. npm test (scripts/test.mjs) and npm run ci (scripts/ci.mjs) run it: see
// test/README.md.
module.exports = {
  testEnvironment: 'node',
  setupFiles: ['<rootDir>/test/support/hub_environment.cjs'],
  testMatch: ['<rootDir>/test/**/*.test.ts'],
  transform: {
    '^.+\\.ts$': [
      '@swc/jest',
      { jsc: { target: 'es2022', parser: { syntax: 'typescript', explicitResourceManagement: true } } },
    ],
  },
  moduleNameMapper: { '^diffqkv$': '<rootDir>/lib/index.ts' },
  modulePathIgnorePatterns: ['<rootDir>/build(-\\w+)?/', '<rootDir>/dist/'],
  testTimeout: 180_000,
  maxWorkers: 2,
};
