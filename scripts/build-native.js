#!/usr/bin/env node
// Builds the native module with CMake in build-cmake/ and copies it to build/Release/diffqkv.node,
// where node-gyp-build finds it. Uses cmake-js if it is installed, else CMake itself. build-cmake/
// is a separate folder because `node-gyp rebuild` deletes build/.
//
//   node scripts/build-native.js [--clean] [--verbose] [--test] [-DNAME=VALUE ...]
//
// --test builds what the tests need instead and leaves it in build-cmake/: the module with the
// emulated device, the checks of the emulation, the PTX interpreter, and gpu_driver on the emulated
// device. build-cmake/ keeps CMake options from one call to the next. DIFFQKV_CMAKE_ARGS in the
// environment adds CMake options. DIFFQKV_BUILD_DIR replaces build-cmake/, and DIFFQKV_OUTPUT_DIR
// replaces build/Release/.
'use strict';

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const root = path.resolve(__dirname, '..');
const work = path.resolve(root, process.env.DIFFQKV_BUILD_DIR || 'build-cmake');
const args = process.argv.slice(2);
const verbose = args.includes('--verbose');
const defines = [...(process.env.DIFFQKV_CMAKE_ARGS || '').split(/\s+/), ...args].filter((arg) => arg.startsWith('-D'));

function stop(message) {
  console.error(`diffqkv: ${message}`);
  process.exit(1);
}

function onPath(program) {
  const names = process.platform === 'win32' ? [`${program}.exe`, `${program}.cmd`] : [program];
  return (process.env.PATH || '')
    .split(path.delimiter)
    .some((folder) => folder && names.some((name) => fs.existsSync(path.join(folder, name))));
}

function cmakeJs() {
  try {
    return require.resolve('cmake-js/bin/cmake-js', { paths: [root] });
  } catch {
    return null;
  }
}

// Runs a command. With --verbose its output is shown directly, else only the lines that matter, and
// all of it if the command fails.
function run(command, commandArgs) {
  const result = spawnSync(command, commandArgs, {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 1 << 30,
    stdio: verbose ? 'inherit' : ['ignore', 'pipe', 'pipe'],
  });
  if (result.error) stop(`cannot run ${command}: ${result.error.message}`);
  const output = verbose ? '' : result.stdout + result.stderr;
  if (result.status !== 0) {
    process.stderr.write(output);
    // Repeats CMake's reason in one line at the end.
    const reason = /CMake Error at [^\n]*:\n\s+(.+?)\n\s*\n/s.exec(output);
    stop(reason ? reason[1].replace(/\s+/g, ' ') : `${command} failed with status ${result.status ?? result.signal}`);
  }
  for (const line of output.split('\n')) {
    if (/^-- diffqkv: |warning:/.test(line)) console.log(line.replace(/^-- /, ''));
  }
}

function configure() {
  const script = cmakeJs();
  if (script) {
    const custom = defines.map((define) => `--CD${define.slice(2)}`);
    run(process.execPath, [script, 'configure', '-d', root, '-O', work, '-B', 'Release', ...custom]);
  } else {
    const generator = onPath('ninja') ? ['-G', 'Ninja'] : [];
    run('cmake', ['-S', root, '-B', work, ...generator, '-DCMAKE_BUILD_TYPE=Release', ...defines]);
  }
}

const missing = [
  ['cmake', onPath('cmake')],
  ['g++', onPath('c++') || Boolean(process.env.CXX)],
  ['make', onPath('make') || onPath('ninja')],
].filter(([, there]) => !there);
if (missing.length > 0) {
  const names = missing.map(([name]) => name);
  stop(
    `${names.join(', ')} missing. On Debian and Ubuntu: apt-get install ${names.join(' ')} nlohmann-json3-dev libdnnl-dev`,
  );
}

if (args.includes('--clean')) fs.rmSync(work, { recursive: true, force: true });
const cache = path.join(work, 'CMakeCache.txt');
const moved =
  fs.existsSync(cache) && !fs.readFileSync(cache, 'utf8').includes(`CMAKE_HOME_DIRECTORY:INTERNAL=${root}\n`);
if (moved) fs.rmSync(work, { recursive: true, force: true }); // the checkout was moved or copied
if (!fs.existsSync(path.join(work, 'build.ninja')) && !fs.existsSync(path.join(work, 'Makefile'))) {
  fs.rmSync(cache, { force: true });
}
if (!fs.existsSync(cache) || defines.length > 0) configure();
const file = args.includes('--test') ? 'diffqkv-test.node' : 'diffqkv.node';
if (!fs.existsSync(path.join(work, file)))
  console.log(
    `diffqkv: compiling the native module${args.includes('--test') ? ' of the tests' : ''}, which takes a few minutes`,
  );
const targets = args.includes('--test') ? ['--target', 'test_programs'] : [];
run('cmake', ['--build', work, '--parallel', String(os.availableParallelism()), ...targets]);
if (args.includes('--test')) process.exit(0);

const from = path.join(work, 'diffqkv.node');
const to = path.join(root, process.env.DIFFQKV_OUTPUT_DIR || path.join('build', 'Release'), 'diffqkv.node');
if (
  !fs.existsSync(to) ||
  fs.statSync(from).mtimeMs > fs.statSync(to).mtimeMs ||
  !fs.readFileSync(from).equals(fs.readFileSync(to))
) {
  // A module can lack symbols and still link, because Node might have provided them.
  const loads = spawnSync(process.execPath, ['-e', 'require(process.argv[1])', from], { encoding: 'utf8' });
  if (loads.status !== 0)
    stop(`the module was built, but it does not load: ${/Error: (.*)/.exec(loads.stderr)?.[1] ?? loads.stderr}`);
  fs.mkdirSync(path.dirname(to), { recursive: true });
  // Rename it, so that a process that has mapped the old module keeps the old file.
  fs.copyFileSync(from, `${to}.${process.pid}`);
  fs.renameSync(`${to}.${process.pid}`, to);
  console.log(`diffqkv: built ${path.relative(process.cwd(), to)}`);
}
