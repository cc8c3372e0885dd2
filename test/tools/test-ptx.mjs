// npm run test:ptx [-- OPTION ...]: executes the PTX that nvcc makes of every kernel in the
// interpreter of test/ptx, and compares the results with the emulation. Needs nvcc, but no GPU.
// All other options are passed to ptx_check (test/ptx/main.cc), by default --seeds 24.
//   --no-build    does not build ptx_check (npm run build:test builds it)
//   --json FILE   writes ptx_check's output to FILE

import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';

import { capture, root } from './run.mjs';

const reports = join(root, 'build', 'kernel-reports');
const program = join(root, process.env.DIFFQKV_BUILD_DIR ?? 'build-cmake', 'ptx_check');
const architectures = ['sm_80', 'sm_90a'];
const nvcc = process.env.CUDACXX || 'nvcc';

const given = process.argv.slice(2);
const takeOption = (name, count) => (given.includes(name) ? given.splice(given.indexOf(name), count) : undefined);
const noBuild = takeOption('--no-build', 1) !== undefined;
const jsonFile = takeOption('--json', 2)?.[1];

function stop(message) {
  console.error(`test-ptx: ${message}`);
  process.exit(1);
}

/** Compiles the kernels that wrap the device layer's functions, next to the other kernels' PTX. */
function compileWrappers(architecture, version) {
  const source = join('test', 'ptx', 'wrappers.cu');
  const options = ['-std=c++20', '-O3', `-arch=${architecture}`, '-Icuda', '-Icsrc', '-Itest/native'];
  const headers = ['cuda', 'cuda/device', 'csrc/backend', 'test/native'].flatMap((folder) =>
    readdirSync(join(root, folder))
      .filter((name) => name.endsWith('.h'))
      .map((name) => join(folder, name)),
  );
  const hash = createHash('sha256').update(version + options.join(' '));
  for (const path of [source, ...headers]) hash.update(path).update(readFileSync(join(root, path)));
  const prefix = `wrappers.cu.${architecture}.`;
  const ptx = `${prefix}${hash.digest('hex').slice(0, 16)}.ptx`;
  if (existsSync(join(reports, ptx))) return;
  for (const name of readdirSync(reports)) if (name.startsWith(prefix)) rmSync(join(reports, name));
  const compiled = capture(nvcc, [...options, '-ptx', source, '-o', join(reports, `${ptx}.${process.pid}`)]);
  if (compiled.status !== 0) stop(`${source} does not compile for ${architecture}:\n${compiled.output}`);
  writeFileSync(join(reports, ptx), readFileSync(join(reports, `${ptx}.${process.pid}`)));
  rmSync(join(reports, `${ptx}.${process.pid}`));
}

const version = spawnSync(nvcc, ['--version'], { encoding: 'utf8' });
if (version.error || version.status !== 0 || process.arch !== 'x64') {
  console.log('test-ptx: SKIPPED: no nvcc on PATH or in CUDACXX, or not an x86-64 CPU');
  process.exit(0);
}
if (!noBuild && capture(process.execPath, [join('scripts', 'build-native.js'), '--test']).status !== 0)
  stop('building the test programs failed: run `npm run build:test`');
if (!existsSync(program)) stop(`${program} is not built: run npm run build:test`);
mkdirSync(reports, { recursive: true });
const kernels = capture(process.execPath, [join('test', 'tools', 'check-kernels.mjs'), ...architectures]);
if (kernels.status !== 0) stop(`check-kernels fails:\n${kernels.output.slice(-3000)}`);
for (const architecture of architectures) compileWrappers(architecture, version.stdout);

const options = ['--ptx', reports, '--jobs', String(availableParallelism()), ...given];
if (!given.includes('--seeds')) options.push('--seeds', '24');
const { status, stdout, stderr } = capture(program, options);
if (status !== 0 && status !== 1) stop(`ptx_check ended with status ${status}: ${stderr}`);
if (jsonFile) writeFileSync(jsonFile, stdout);
const result = JSON.parse(stdout);
for (const failure of result.failures) console.log(`FAIL ${failure}`);
for (const [name, { kernels, compared, code, codeExecuted, executed }] of Object.entries(result.architectures))
  console.log(
    `${name}: ${compared} of ${kernels} kernels executed from PTX and compared; ` +
      `${((100 * codeExecuted) / code).toFixed(1)} % of their ${code} instructions, ${(executed / 1e9).toFixed(2)}e9 in all`,
  );
console.log(
  `test-ptx: ${result.cases} calls, ${result.seeds} orders of threads for each and architecture, ` +
    `${result.failures.length} failures, ${result.seconds} s`,
);
process.exit(status);
