// npm run gpu:pack [-- --fat] [--out FILE]: one archive (64 MiB at most) with which a GPU machine that has neither Node nor a
// network checks this checkout: Node, the module with its CUDA part (for 9.0a; with --fat for all GPUs that are served), the
// tests' module, the package, the tests as JavaScript, Jest, and scripts/gpu-check.mjs. There:
//   mkdir check && tar -xJf diffqkv-gpu.tar.xz -C check && check/gpu-check.sh

import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const LIMIT = 64 * 2 ** 20;
const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const work = join(root, 'build-gpu');
const stage = join(work, 'stage');
const given = process.argv.slice(2);
const outAt = given.indexOf('--out');
const out = outAt >= 0 ? given[outAt + 1] : join(work, 'diffqkv-gpu.tar.xz');
const require = createRequire(import.meta.url);

function run(command, args, env = {}) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit', env: { ...process.env, ...env } });
  if (error) throw error;
  if (status !== 0) {
    console.error(`gpu-pack: ${command} ${args.join(' ')} failed`);
    process.exit(1);
  }
}

/** The folders of `names` and of all that they depend on, as paths below the root. */
function closure(names) {
  const found = new Set();
  const visit = (name, from) => {
    // As Node looks for it: in node_modules of the one who asks, then further up.
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
      if (folder === root) return; // optional, and for another platform
    }
  };
  for (const name of names) visit(name, root);
  return found;
}

function transpile(folder) {
  const { transformFileSync } = require('@swc/core');
  for (const name of readdirSync(join(root, folder))) {
    if (!name.endsWith('.ts') || name.endsWith('.d.ts')) continue;
    const { code } = transformFileSync(join(root, folder, name), {
      swcrc: false,
      module: { type: 'commonjs' },
      jsc: { target: 'es2022', parser: { syntax: 'typescript', explicitResourceManagement: true } },
    });
    mkdirSync(join(stage, folder), { recursive: true });
    writeFileSync(join(stage, folder, name.replace(/\.ts$/, '.js')), code);
  }
}

const copy = (from, to = from) =>
  cpSync(join(root, from), join(stage, to), {
    recursive: true,
    dereference: true,
    filter: (path) => !/\.(map|d\.m?ts)$/.test(path),
  });

// The machine need not have oneDNN.
const options = ['-DDIFFQKV_CUDA=ON', '-DDIFFQKV_ONEDNN=OFF'];
options.push(given.includes('--fat') ? '-DDIFFQKV_FAT=ON' : '-DDIFFQKV_FAT=OFF');
run('cmake', ['-S', root, '-B', work, '-DCMAKE_BUILD_TYPE=Release', ...options]);
const targets = ['addon', 'addon_test', 'emulation_check', 'device_check', 'gpu_ceilings'];
run('cmake', ['--build', work, '--parallel', String(availableParallelism()), '--target', ...targets]);
run(process.execPath, [join(root, 'node_modules', 'typescript', 'bin', 'tsc'), '-p', '.']);

rmSync(stage, { recursive: true, force: true });
mkdirSync(join(stage, 'bin'), { recursive: true });
cpSync(process.execPath, join(stage, 'bin', 'node'), { dereference: true });
run('strip', [join(stage, 'bin', 'node')]);
for (const name of ['libstdc++.so.6', 'libgomp.so.1', 'libgcc_s.so.1']) {
  const { stdout } = spawnSync(process.env.CXX || 'g++', [`-print-file-name=${name}`], { encoding: 'utf8' });
  cpSync(stdout.trim(), join(stage, 'system', name), { dereference: true });
}
for (const [from, to] of [
  ['diffqkv.node', 'build/Release/diffqkv.node'],
  ['diffqkv-test.node', 'build-cmake/diffqkv-test.node'],
  ['emulation_check', 'build-cmake/emulation_check'],
  ['device_check', 'build-cmake/device_check'],
  ['gpu_ceilings', 'build-cmake/gpu_ceilings'],
]) {
  cpSync(join(work, from), join(stage, to));
  run('strip', ['--strip-unneeded', join(stage, to)]);
}
for (const path of ['dist', 'models', 'package.json', 'test/fixtures', 'test/children', 'scripts/gpu-check.mjs'])
  copy(path);
transpile('lib');
transpile('test');
for (const path of closure(['jest', 'node-gyp-build', '@huggingface/jinja', '@huggingface/tokenizers', 'commander']))
  copy(path);
writeFileSync(
  join(stage, 'jest.config.js'),
  `module.exports = ${JSON.stringify({
    testEnvironment: 'node',
    testMatch: ['<rootDir>/test/**/*.test.js'],
    transform: {},
    moduleNameMapper: { '^diffqkv$': '<rootDir>/lib/index.js' },
    testTimeout: 180_000,
    maxWorkers: 2,
  })};\n`,
);
const { stdout: commit } = spawnSync('git', ['describe', '--always', '--dirty'], { cwd: root, encoding: 'utf8' });
writeFileSync(join(stage, 'commit'), (commit ?? '').trim());
writeFileSync(
  join(stage, 'gpu-check.sh'),
  `#!/bin/sh
# Runs scripts/gpu-check.mjs with what this archive brought.
here=$(cd "$(dirname "$0")" && pwd)
export LD_LIBRARY_PATH="$here/system\${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export PATH="$here/bin:$PATH"
exec "$here/bin/node" "$here/scripts/gpu-check.mjs" "$@"
`,
);
chmodSync(join(stage, 'gpu-check.sh'), 0o755);
run('tar', ['-cJf', out, '-C', stage, '.'], { XZ_OPT: '-6 -T0' });
const { size } = statSync(out);
console.log(`gpu-pack: ${out}: ${(size / 2 ** 20).toFixed(1)} MiB of 64 at most`);
process.exitCode = size > LIMIT ? 1 : 0;
