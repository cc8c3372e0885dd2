// Runs programs for npm test, npm run ci and the tools.

import { spawnSync } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
export const testModule = join(root, 'build-cmake', 'diffqkv-test.node');
/** The emulation switches stacks in x86-64 assembly. */
export const hasEmulation = process.arch === 'x64';

/** Runs a program in the checkout and shows its output. Returns 0, 1, or 130 after Ctrl-C. */
export function run(command, args, env = {}) {
  const { status, signal, error } = spawnSync(command, args, {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ...env },
  });
  if (error) throw error;
  return status === 0 ? 0 : signal === 'SIGINT' ? 130 : 1;
}

export const runNode = (args, env) => run(process.execPath, args, env);
export const jest = join(root, 'node_modules', 'jest', 'bin', 'jest.js');
export const runJest = (args, env) => runNode([jest, ...args], env);

/** Builds what the tests need: see scripts/build-native.js. */
export const buildForTests = (options = [], env = {}) =>
  runNode([join(root, 'scripts', 'build-native.js'), '--test', ...options], env);

/** Runs a program, in the checkout by default. Returns its status or signal, and its output. */
export function capture(command, args, options = {}) {
  const { status, signal, stdout, stderr, error } = spawnSync(command, args, {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    ...options,
  });
  if (error) throw error;
  return { status: status ?? signal, stdout, stderr, output: stdout + stderr };
}
