// npm run check:kernels [-- ARCHITECTURE ...] (default: sm_80 sm_90a sm_120): prints the registers,
// static shared memory, spills and stack of each compiled kernel. Fails if a kernel that COLD does
// not list has spills or a stack. Needs nvcc, but no GPU. Results for unchanged sources come from
// build/kernel-reports/.
//   --json FILE        also writes the table to FILE
// If there is a disassembler (nvdisasm on PATH or in NVDISASM), the script also reads the main
// loops in the machine code (sass.js). It fails if they are worse than those in
// bench/results/sass-ARCHITECTURE.json, which is a table for one version of nvcc.
//   --sass-json FILE   writes the main loops of one architecture to FILE and compares nothing

import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { checkSass, findDisassembler } from './check-sass.js';
import { root } from './run.mjs';

const reports = join(root, 'build', 'kernel-reports');

// Kernels in which a stack or a spill does not matter, and the reason.
const COLD = [[/^sample_kernel\b/, 'runs once per token']];

const given = process.argv.slice(2);
function takeOption(name) {
  if (!given.includes(name)) return undefined;
  const [, value] = given.splice(given.indexOf(name), 2);
  if (value !== undefined && !value.startsWith('-')) return value;
  console.error(`check-kernels: ${name} needs a file`);
  process.exit(1);
}
const jsonFile = takeOption('--json');
const sassFile = takeOption('--sass-json');
// These kernels process rows of any size and type, one element at a time.
const readsBytes = new Set(['attention_plain.cu', 'kv_gather.cu']);
const architectures = given.length > 0 ? given : ['sm_80', 'sm_90a', 'sm_120'];

const nvcc = process.env.CUDACXX || 'nvcc';
const version = spawnSync(nvcc, ['--version'], { encoding: 'utf8' });
if (version.error || version.status !== 0) {
  console.log('check-kernels: SKIPPED: no nvcc on PATH or in CUDACXX');
  process.exit(0);
}

const disassembler = findDisassembler();
if (sassFile && (!disassembler || architectures.length !== 1)) {
  console.error('check-kernels: --sass-json needs nvdisasm on PATH or in NVDISASM, and one architecture');
  process.exit(1);
}

const headers = ['cuda', 'cuda/device', 'csrc/backend'].flatMap((folder) =>
  readdirSync(join(root, folder))
    .filter((name) => name.endsWith('.h'))
    .map((name) => join(root, folder, name)),
);

/**
 * ptxas' output for one file and architecture. Adds the cubin's path if there is a disassembler.
 */
function compile(file, architecture) {
  const options = ['-std=c++20', '-O3', `-arch=${architecture}`, '-Xptxas', '-v', '-Icuda', '-Icsrc'];
  const hash = createHash('sha256').update(version.stdout + options.join(' '));
  for (const path of [fileURLToPath(import.meta.url), join(root, 'cuda', file), ...headers])
    hash.update(path.slice(root.length)).update(readFileSync(path));
  const cached = join(reports, `${file}.${architecture}.${hash.digest('hex').slice(0, 16)}.txt`);
  const keptPtx = cached.replace(/txt$/, 'ptx'); // test/tools/test-ptx.mjs executes it
  const cubin = disassembler && cached.replace(/txt$/, 'cubin');
  if (existsSync(cached) && existsSync(keptPtx) && (!cubin || existsSync(cubin)))
    return { words: readFileSync(cached, 'utf8'), cubin };
  const kept = join(reports, `${file}.${architecture}.${process.pid}`);
  mkdirSync(kept, { recursive: true });
  const { status, stderr } = spawnSync(
    nvcc,
    [...options, '--keep', '--keep-dir', kept, '-cubin', join('cuda', file), '-o', join(kept, 'out.cubin')],
    { cwd: root, encoding: 'utf8', maxBuffer: 1 << 28 },
  );
  const ptx = status === 0 ? readFileSync(join(kept, file.replace(/\.cu$/, '.ptx')), 'utf8') : '';
  const machineCode = status === 0 ? readFileSync(join(kept, 'out.cubin')) : undefined;
  rmSync(kept, { recursive: true, force: true });
  if (status !== 0) throw new Error(`${file} does not compile for ${architecture}:\n${stderr}`);
  // A fast kernel never loads elements of one byte. Such a load means that the compiler split a
  // wide load. (Loads of local memory show up as stack.)
  const bytes = ptx.match(/ld\.(?!param|local)(\S*\.)?[usb]8\s/g)?.length ?? 0;
  if (bytes > 0 && !readsBytes.has(file))
    throw new Error(`${file} for ${architecture}: ${bytes} loads of single bytes; the source asks for wide loads`);
  for (const name of readdirSync(reports))
    if (name.startsWith(`${file}.${architecture}.`)) rmSync(join(reports, name), { force: true });
  writeFileSync(keptPtx, ptx);
  if (cubin) writeFileSync(cubin, machineCode);
  writeFileSync(cached, stderr);
  return { words: stderr, cubin };
}

function parse(text, file, architecture) {
  const kernels = [];
  // ptxas prints for each kernel: "Compiling entry function 'x' for 'sm_80'", its stack and spills,
  // and "Used 40 registers, ... bytes smem".
  for (const part of text.split("Compiling entry function '").slice(1)) {
    const [, stack, stores, loads] =
      /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/.exec(part) ?? [];
    const registers = /Used (\d+) registers/.exec(part)?.[1];
    if (stack === undefined || registers === undefined)
      throw new Error(`cannot parse ptxas' output for ${file}:\n${part}`);
    kernels.push({
      file,
      architecture,
      mangled: part.slice(0, part.indexOf("'")),
      registers: Number(registers),
      sharedBytes: Number(/(\d+) bytes smem/.exec(part)?.[1] ?? 0),
      stackBytes: Number(stack),
      spillStoreBytes: Number(stores),
      spillLoadBytes: Number(loads),
    });
  }
  return kernels;
}

function demangle(names) {
  for (const program of ['cu++filt', 'c++filt']) {
    try {
      return execFileSync(program, { input: names.join('\n'), encoding: 'utf8', maxBuffer: 1 << 28 }).split('\n');
    } catch {
      // Try the next program.
    }
  }
  return names;
}

/** Removes namespaces, parameters, and the numbers that nvcc adds to unnamed namespaces. */
const shorten = (name) =>
  name
    .replace(/^void /, '')
    .replace(/\(anonymous namespace\)::|<unnamed>::|_GLOBAL__N__\w+::|_INTERNAL_\w+::/g, '')
    .replace(/diffqkv::(cuda::)?/g, '')
    .replace(/\((int|bool|unsigned int|long)\)/g, '')
    .replace(/\([^()]*\)$/, '');

mkdirSync(reports, { recursive: true });
const kernels = [];
const builds = [];
for (const file of readdirSync(join(root, 'cuda'))
  .filter((name) => name.endsWith('.cu'))
  .sort()) {
  for (const architecture of architectures) {
    const { words, cubin } = compile(file, architecture);
    kernels.push(...parse(words, file, architecture));
    builds.push({ file, architecture, cubin });
  }
}
const names = demangle(kernels.map(({ mangled }) => mangled));
for (const [i, kernel] of kernels.entries()) kernel.kernel = shorten(names[i]);

const columns = ['regs', 'shared', 'stack', 'spill st', 'spill ld'];
const bad = [];
let last = '';
for (const kernel of kernels) {
  const { file, architecture, registers, sharedBytes, stackBytes, spillStoreBytes, spillLoadBytes } = kernel;
  if (`${file} ${architecture}` !== last) {
    last = `${file} ${architecture}`;
    console.log(`\n${file} for ${architecture}\n${columns.map((name) => name.padStart(8)).join(' ')}  kernel`);
  }
  const numbers = [registers, sharedBytes, stackBytes, spillStoreBytes, spillLoadBytes];
  const cold = COLD.find(([pattern]) => pattern.test(kernel.kernel));
  const wrong = stackBytes + spillStoreBytes + spillLoadBytes > 0 && !cold;
  if (wrong) bad.push(kernel);
  const note = wrong ? '  <- FAIL' : cold ? `  (cold: ${cold[1]})` : '';
  console.log(`${numbers.map((number) => String(number).padStart(8)).join(' ')}  ${kernel.kernel}${note}`);
}
if (jsonFile) writeFileSync(jsonFile, `${JSON.stringify(kernels, null, 1)}\n`);

let slower = 0;
if (disassembler) {
  const nameOf = new Map(kernels.map(({ mangled, kernel }) => [mangled, kernel]));
  for (const architecture of architectures) {
    slower += checkSass({
      disassembler,
      architecture,
      nvcc: /release .*/.exec(version.stdout)?.[0],
      builds: builds.filter((build) => build.architecture === architecture),
      nameOf: (mangled) => nameOf.get(mangled),
      table: sassFile ?? relative(process.cwd(), join(root, 'bench', 'results', `sass-${architecture}.json`)),
      write: sassFile !== undefined,
    });
  }
} else {
  console.log('\nSASS: SKIPPED: no nvdisasm on PATH or in NVDISASM');
}
const most = Math.max(...kernels.map(({ registers }) => registers));
console.log(
  `\ncheck-kernels: ${kernels.length} kernels for ${architectures.join(', ')}, at most ${most} registers; ${bad.length} with spills or stack`,
);
process.exitCode = bad.length + slower > 0 ? 1 : 0;
