// node bench/peers/install.mjs: fetches the peers into bench/peers/node_modules, which git ignores. They are no dependency
// of this package. Install scripts do not run: one would fetch CUDA libraries, another would compile llama.cpp.
import { spawnSync } from 'node:child_process';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';

const PEERS = ['node-llama-cpp@3.22.1', 'onnxruntime-node@1.30.0'];
const LLAMA_CPP_BINARIES = { 'linux-x64': 'linux-x64', 'linux-arm64': 'linux-arm64', 'win32-x64': 'win-x64' };

const binary = LLAMA_CPP_BINARIES[`${process.platform}-${process.arch}`];
if (binary === undefined)
  console.error(`node-llama-cpp has no CPU binary that is known here for ${process.platform}-${process.arch}`);
// Optional packages are its binaries for every kind of GPU: only the one for the CPU is wanted.
const packages = binary === undefined ? PEERS : [...PEERS, `@node-llama-cpp/${binary}@3.22.1`];
const options = '--no-save --no-package-lock --ignore-scripts --omit=optional --no-audit --no-fund'.split(' ');
const folder = dirname(fileURLToPath(import.meta.url));
const { status, error } = spawnSync('npm', ['install', '--prefix', folder, ...options, ...packages], {
  stdio: 'inherit',
  shell: process.platform === 'win32',
});
if (error) console.error(`cannot run npm: ${error.message}`);
process.exitCode = status ?? 1;
