// The copy of the tracked files, in build-mutations/, that test:mutations and test:mutants break and
// build.

import { copyFileSync, existsSync, mkdirSync, readFileSync, symlinkSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';

import { capture, root } from './run.mjs';

export const copy = join(root, 'build-mutations');

export const runInCopy = (command, args) => capture(command, args, { cwd: copy, timeout: 1_800_000 });

/**
 * Makes the copy equal to the checkout. Unchanged files keep their times, so that builds are
 * incremental.
 */
export function refresh() {
  const { stdout } = capture('git', ['ls-files', '-z']);
  for (const path of stdout.split('\0')) {
    const [from, to] = [join(root, path), join(copy, path)];
    if (path === '' || !existsSync(from)) continue;
    if (existsSync(to) && readFileSync(to).equals(readFileSync(from))) continue;
    mkdirSync(dirname(to), { recursive: true });
    copyFileSync(from, to);
  }
  if (!existsSync(join(copy, 'node_modules'))) symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'));
}

/** Builds targets of the copy, without CUDA and oneDNN. Returns the compiler's output if that fails. */
export function tryBuild(...targets) {
  const options = ['-DCMAKE_BUILD_TYPE=Release', '-DDIFFQKV_ONEDNN=OFF', '-DDIFFQKV_CUDA=OFF'];
  if (!existsSync(join(copy, 'build-cmake', 'CMakeCache.txt'))) {
    const configured = runInCopy('cmake', ['-S', '.', '-B', 'build-cmake', ...options]);
    if (configured.status !== 0) return configured.output;
  }
  const parallel = ['--parallel', String(availableParallelism())];
  const built = runInCopy('cmake', ['--build', 'build-cmake', ...parallel, '--target', ...targets]);
  return built.status === 0 ? undefined : built.output;
}

/** Builds targets of the copy. Throws if that fails. */
export function build(...targets) {
  const output = tryBuild(...targets);
  if (output !== undefined) throw new Error(`building the copy failed:\n${output.slice(-4000)}`);
}
