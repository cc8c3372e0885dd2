// npm run gpu:pack [-- --plan]: builds build-gpu/diffqkv-gpu.tar.xz, which test/tools/gpu-check.sh
// uses on a machine with an H200 (or another GPU of compute capability 9.0) that has neither Node
// nor a network. See docs/guides/gpu-check.md.
//
// The archive contains Node, the module and programs for 9.0a, the tests for every device as
// JavaScript, Jest, and the headers to compile the module again. It contains no checkpoints and no
// sources: they are tracked files, and the archive is copied together with the checkout. The total
// size of both is limited to LIMIT bytes; the command fails above it.
//
// --plan builds nothing and prints the contents of the archive and the transfer size as JSON.

import { createHash } from 'node:crypto';
import { cpSync, existsSync, lstatSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';

import { capture, root, run as runProgram } from './run.mjs';
import { everyDevice, testFiles } from './suites.mjs';

const MIB = 2 ** 20;
const LIMIT = 60 * MIB;
/** The archive's size limit. The test of the total size uses it if there is no archive yet. */
const EXPECTED_ARCHIVE = 30 * MIB;
const work = join(root, 'build-gpu');
const stage = join(work, 'stage');
const archive = join(work, 'diffqkv-gpu.tar.xz');
const require = createRequire(import.meta.url);

function run(command, args, env) {
  if (runProgram(command, args, env) === 0) return;
  console.error(`gpu-pack: ${command} ${args.join(' ')} failed`);
  process.exit(1);
}

function output(command, args) {
  const { status, stdout, stderr } = capture(command, args);
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${stderr}`);
  return stdout;
}

/**
 * The files that are copied with the archive: tracked files, and untracked files that git does not
 * ignore.
 */
const traveling = () =>
  output('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'])
    .split('\0')
    .filter((path) => path && existsSync(join(root, path)));

/** The TypeScript files that these files load, including themselves. */
function sourceClosure(paths) {
  const found = new Set();
  const visit = (path) => {
    if (found.has(path)) return;
    found.add(path);
    const text = readFileSync(join(root, path), 'utf8');
    for (const [, name] of text.matchAll(/(?:from|import|import\(|require\(|mock\()\s*'(\.\.?\/[^']+)'/g)) {
      const next = join(dirname(path), `${name}.ts`);
      if (existsSync(join(root, next))) visit(next);
    }
  };
  for (const path of paths) visit(path);
  return [...found].sort();
}

/** The folders of these packages and of all their dependencies, as paths below the root. */
function packageClosure(names) {
  const found = new Set();
  const visit = (name, from) => {
    // Like Node's resolution: node_modules of the requiring folder, then of each folder above it.
    for (let folder = from; ; folder = dirname(folder)) {
      const path = join(folder, 'node_modules', name);
      if (existsSync(join(path, 'package.json'))) {
        const relative = path.slice(root.length + 1);
        if (found.has(relative)) return;
        found.add(relative);
        const { dependencies, optionalDependencies } = JSON.parse(readFileSync(join(path, 'package.json'), 'utf8'));
        for (const next of Object.keys({ ...dependencies, ...optionalDependencies })) visit(next, path);
        return;
      }
      if (folder === root) return; // an optional package for another platform
    }
  };
  for (const name of names) visit(name, root);
  return [...found];
}

const plan = () => ({
  /** Programs from build-gpu. */
  programs: {
    'diffqkv.node': 'build/Release/diffqkv.node',
    gpu_driver: 'build-cmake/gpu_driver',
    device_check: 'build-cmake/device_check',
  },
  /** Copied without changes. */
  files: [
    ...['dist/lib', 'dist/bench/shapes.js', 'package.json', 'test/tools/gpu-check.sh', 'test/tools/suites.mjs'],
    ...['steps.sh', 'limits.py', 'models.cjs', 'stand_in'].map((name) => `test/gpu/${name}`),
    ...packageClosure(['jest', 'node-gyp-build', 'tokenizers']),
    ...packageClosure(['node-addon-api', 'node-api-headers']),
  ],
  /** TypeScript files, copied as JavaScript. */
  sources: sourceClosure(everyDevice.map((stem) => `test/${testFiles.get(stem)}`)),
});

/** Bytes to copy, and the limit. */
function budget() {
  const tracked = traveling().reduce((total, path) => total + lstatSync(join(root, path)).size, 0);
  const made = existsSync(archive) ? statSync(archive).size : null;
  return { tracked, archive: made, expectedArchive: EXPECTED_ARCHIVE, limit: LIMIT };
}

function transpile(path) {
  const { code } = require('@swc/core').transformFileSync(join(root, path), {
    swcrc: false,
    module: { type: 'commonjs' },
    jsc: { target: 'es2022', parser: { syntax: 'typescript', explicitResourceManagement: true } },
  });
  const to = join(stage, path.replace(/\.ts$/, '.js'));
  mkdirSync(dirname(to), { recursive: true });
  writeFileSync(to, code);
}

const copy = (from, to) =>
  cpSync(from, join(stage, to), {
    recursive: true,
    dereference: true,
    // tokenizers has the modules of all platforms, 60 MB.
    filter: (path) => !/\.(map|d\.m?ts|md)$|tokenizers\.(?!linux-x64-gnu)[\w-]+\.node$/.test(path),
  });

function strippedCopy(from, to) {
  copy(from, to);
  run('strip', ['--strip-unneeded', join(stage, to)]);
}

/** The folder with nlohmann/json.hpp that CMake found. */
function jsonHeaders() {
  const found = /^NLOHMANN_JSON_INCLUDE_DIR:PATH=(.*)$/m.exec(readFileSync(join(work, 'CMakeCache.txt'), 'utf8'));
  return join(found[1], 'nlohmann');
}

function make() {
  const { programs, files, sources } = plan();
  rmSync(archive, { force: true });
  // The target machine may lack oneDNN.
  const options = ['-DDIFFQKV_CUDA=ON', '-DDIFFQKV_ONEDNN=OFF', '-DCMAKE_CUDA_ARCHITECTURES=90a-real'];
  run('cmake', ['-S', root, '-B', work, '-DCMAKE_BUILD_TYPE=Release', ...options]);
  const targets = ['addon', 'gpu_driver', 'device_check'];
  run('cmake', ['--build', work, '--parallel', String(availableParallelism()), '--target', ...targets]);
  run(process.execPath, [join(root, 'node_modules', 'typescript', 'bin', 'tsc'), '-p', '.']);

  rmSync(stage, { recursive: true, force: true });
  strippedCopy(process.execPath, 'bin/node');
  for (const name of ['libstdc++.so.6', 'libgomp.so.1', 'libgcc_s.so.1'])
    copy(output(process.env.CXX || 'g++', [`-print-file-name=${name}`]).trim(), `system/${name}`);
  for (const [from, to] of Object.entries(programs)) strippedCopy(join(work, from), to);
  for (const path of files) copy(join(root, path), path);
  copy(jsonHeaders(), 'include/nlohmann');
  for (const path of sources) transpile(path);
  const jest = {
    testEnvironment: 'node',
    testMatch: ['<rootDir>/test/**/*.test.js'],
    transform: {},
    moduleNameMapper: { '^diffqkv$': '<rootDir>/lib/index.js' },
    testTimeout: 180_000,
  };
  writeFileSync(join(stage, 'jest.config.js'), `module.exports = ${JSON.stringify(jest)};\n`);
  writeFileSync(join(stage, 'commit'), output('git', ['describe', '--always', '--dirty']).trim());
  // gpu-check.sh uses these sums to detect sources that changed after packing.
  const compiled = traveling().filter((path) => /^(csrc|cuda|lib|test)\/.*\.(cc|h|cu|ts)$|^CMakeLists/.test(path));
  const sum = (path) =>
    createHash('sha256')
      .update(readFileSync(join(root, path)))
      .digest('hex');
  writeFileSync(join(stage, 'sources.sha256'), compiled.map((path) => `${sum(path)}  ${path}\n`).join(''));

  const xz = '--x86 --lzma2=preset=9'; // the filter for x86 code saves 4 %
  run('tar', ['--sort=name', '-cJf', archive, '-C', stage, '.'], { XZ_OPT: xz });
}

const given = process.argv.slice(2);
if (given.includes('--plan')) {
  console.log(JSON.stringify({ ...plan(), ...budget() }));
} else {
  make();
  const { tracked, archive: made } = budget();
  const mib = (bytes) => `${(bytes / MIB).toFixed(1)} MiB`;
  console.log(
    `gpu-pack: ${archive}: ${mib(made)}; with ${mib(tracked)} of tracked files ${mib(made + tracked)} of ${mib(LIMIT)}`,
  );
  if (made > EXPECTED_ARCHIVE || made + tracked > LIMIT) {
    console.error(`gpu-pack: the archive is larger than its limit of ${mib(EXPECTED_ARCHIVE)}`);
    process.exitCode = 1;
  }
}
