// node bench/peers/install.mjs: installs the peers into bench/peers/node_modules, which git ignores. They are not dependencies
// of this package. Install scripts do not run: one would download CUDA libraries, another would compile llama.cpp.
import { spawnSync } from 'node:child_process';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';

const PEERS = ['node-llama-cpp@3.22.1', 'onnxruntime-node@1.30.0'];
const LLAMA_CPP_BINARIES = { 'linux-x64': 'linux-x64', 'linux-arm64': 'linux-arm64', 'win32-x64': 'win-x64' };

const binary = LLAMA_CPP_BINARIES[`${process.platform}-${process.arch}`];
if (binary === undefined)
  console.error(`no CPU binary of node-llama-cpp is known for ${process.platform}-${process.arch}`);
// The optional packages are binaries for all kinds of GPUs. Only the one for the CPU is installed.
const packages = binary === undefined ? PEERS : [...PEERS, `@node-llama-cpp/${binary}@3.22.1`];
const options = '--no-save --no-package-lock --ignore-scripts --omit=optional --no-audit --no-fund'.split(' ');
const folder = dirname(fileURLToPath(import.meta.url));
const { status, error } = spawnSync('npm', ['install', '--prefix', folder, ...options, ...packages], {
  stdio: 'inherit',
  shell: process.platform === 'win32',
});
if (error) console.error(`cannot run npm: ${error.message}`);
process.exitCode = status ?? 1;
