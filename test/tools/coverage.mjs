// npm run coverage [-- --report]: measures which lines of lib/, csrc/ and cuda/ the tests run.
// Builds the tests' module in build-coverage/ with gcc's counters. Runs suites with fewer sizes on
// the device `emulated`, the operators on the CPU at every instruction set that it has, and the
// command line. On a CPU with AVX512-BF16 but no AMX, AMX is emulated. Prints the share of lines
// for each folder, writes the lines that no test runs to build/coverage/summary.json, and fails if
// lib/, csrc/ or cuda/ is below the limit. --report prints the last run's results again.
//
// A line of a template or header counts as run if any instance of it ran. Lines that the
// preprocessor removes from this build do not count: PTX and everything that only nvcc compiles,
// the oneDNN code (this build has the project's own loops; npm test runs oneDNN), and files for
// instruction sets that this CPU lacks.
//
// Each suite runs in its own process, because only a process that exits by itself writes its
// counts. Jest may kill a worker first.

import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { join, relative } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

import { buildForTests, root } from './run.mjs';
import { everyDevice, operators, pattern } from './suites.mjs';

const LIMIT = 90;
const work = join(root, 'build-coverage');
const out = join(root, 'build', 'coverage');
const jest = join(root, 'node_modules', 'jest', 'bin', 'jest.js');
const module = join(work, 'diffqkv-test.node');

// Suites for the emulated device: those for every device except the longest, and these.
const tooLong = ['checkpoint_shapes', 'fixtures', 'generate', 'kv_append', 'kv_cache'];
const others = [
  'architecture_configs',
  'ceilings',
  'chat_templates',
  'convert',
  'counters',
  'decoder',
  'device_choice',
  'device_lost',
  'emulated_device',
  'folder_messages',
  'forged_tokens',
  'hub_cli',
  'hub_faults',
  'hub_load',
  'native_module',
  'receivers',
  'session_order',
  'signals',
  'stop',
  'tensor_names',
  'tokenizer_reference',
];
// emulated_amx is a level of the tests' module (test/emulation/module.cc).
const levels = ['baseline', 'avx2', 'avx512', 'avx512_bf16', 'amx', 'emulated_amx'];
// These are long or do not depend on instructions, so they run only at the lowest and highest
// level.
const onTwoLevels = ['generate', 'key_and_value_sizes', 'kv_cache', 'kv_types'];

function cannot(why) {
  console.log(`coverage: SKIPPED: ${why}`);
  process.exit(0);
}

/** The runs of Jest: a name, the suites, and additional environment variables. */
function runs() {
  const emulated = [...everyDevice.filter((name) => !tooLong.includes(name)), ...others];
  const usable = usableLevels();
  return [
    ...usable.map((level) => [
      `the CPU at ${level}`,
      level === usable[0] || level === usable.at(-1)
        ? [...new Set([...operators, ...onTwoLevels])]
        : operators.filter((name) => !onTwoLevels.includes(name)),
      { DIFFQKV_CPU_ISA: level, DIFFQKV_TEST_DEVICES: 'cpu' },
    ]),
    ['the command line', ['cli'], { NODE_V8_COVERAGE: join(out, 'processes') }],
    ['the tokenizers', ['tokenizer', 'tokenizer_process'], { NODE_V8_COVERAGE: join(out, 'processes') }],
    ...emulated.map((name) => [name, [name], { DIFFQKV_TEST_DEVICES: 'emulated' }]),
  ];
}

/** Runs Jest once on the instrumented module. Prints its output only if it fails. */
function suite([name, suites, env], index) {
  const report = join(out, 'jest', `${index}.json`);
  const started = Date.now();
  const child = spawn(
    process.execPath,
    [
      jest,
      ...['--runInBand', '--forceExit', '--silent', '--json', `--outputFile=${report}`],
      ...['--coverage', '--coverageProvider=babel', '--coverageReporters=json'],
      `--coverageDirectory=${join(out, 'jest', `${index}`)}`,
      // The first run counts every file, even if nothing loads it. Later runs count only loaded
      // files.
      ...(index === 0
        ? ['--collectCoverageFrom={lib,cli}/**/*.ts']
        : ['--coveragePathIgnorePatterns=/(bench|examples|node_modules|test)/']),
      `--testPathPatterns=${pattern(suites)}`,
    ],
    {
      cwd: root,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: {
        ...process.env,
        DIFFQKV_MODULE: module,
        DIFFQKV_TEST_REDUCED: '1',
        // As many processes as cores; threads of one process contend for its counters.
        OMP_NUM_THREADS: '1',
        ...env,
      },
    },
  );
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text) => (output += text));
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (status) => {
      let result = { success: false, numRuntimeErrorTestSuites: 1 };
      try {
        result = JSON.parse(readFileSync(report, 'utf8'));
      } catch (error) {
        output += `\n${report} is not a report: ${error.message}`;
      }
      const good = status === 0 && result.success;
      if (!good) console.error(output);
      const seconds = Math.round((Date.now() - started) / 1000);
      console.log(`  ${good ? 'passed' : 'FAILED'}: ${name}, ${result.numPassedTests ?? 0} tests, ${seconds} s`);
      resolve(good);
    });
  });
}

/** Executes all runs, as many at once as there are cores. */
async function runAll() {
  const waiting = [...runs().entries()];
  let success = true;
  const worker = async () => {
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      if (!(await suite(next[1], next[0]))) success = false;
    }
  };
  await Promise.all(Array.from({ length: availableParallelism() }, worker));
  return success;
}

/**
 * The instruction sets that the CPU has. Opening the device fails at a level that it lacks. AMX is
 * emulated only if the CPU lacks it.
 */
function usableLevels() {
  const open = `require(process.argv[1]).openDevice('cpu').then((device) => device.dispose(), () => process.exit(1))`;
  const usable = levels.filter(
    (level) =>
      spawnSync(process.execPath, ['-e', open, join(root, 'dist', 'lib', 'index.js')], {
        env: { ...process.env, DIFFQKV_MODULE: module, DIFFQKV_CPU_ISA: level },
      }).status === 0,
  );
  return usable.includes('amx') ? usable.filter((level) => level !== 'emulated_amx') : usable;
}

// ---- lines: { 'csrc/model/loader.cc': Map(line -> count) }

function add(lines, file, line, count) {
  if (!lines.has(file)) lines.set(file, new Map());
  const counts = lines.get(file);
  counts.set(line, Math.max(counts.get(line) ?? 0, count));
}

function jestLines(lines) {
  const reports = existsSync(join(out, 'jest')) ? readdirSync(join(out, 'jest')) : [];
  for (const file of reports.map((name) => join(out, 'jest', name, 'coverage-final.json')).filter(existsSync)) {
    for (const { path, statementMap, s } of Object.values(JSON.parse(readFileSync(file, 'utf8')))) {
      for (const [id, { start }] of Object.entries(statementMap)) add(lines, relative(root, path), start.line, s[id]);
    }
  }
}

/**
 * V8's counts from other processes, for the lines that Jest treats as statements. V8 counts every
 * line.
 */
async function processLines(lines) {
  const folder = join(out, 'processes');
  if (!existsSync(folder)) return;
  const v8ToIstanbul = createRequire(createRequire(import.meta.url).resolve('@jest/reporters'))('v8-to-istanbul');
  const built = `${pathToFileURL(join(root, 'dist'))}/`;
  for (const name of readdirSync(folder)) {
    for (const { url, functions } of JSON.parse(readFileSync(join(folder, name), 'utf8')).result) {
      if (!url.startsWith(built)) continue;
      const converter = v8ToIstanbul(fileURLToPath(url));
      await converter.load();
      converter.applyCoverage(functions);
      for (const { path, statementMap, s } of Object.values(converter.toIstanbul())) {
        const known = lines.get(relative(root, path));
        for (const [id, { start }] of Object.entries(statementMap)) {
          if (known?.has(start.line)) add(lines, relative(root, path), start.line, s[id]);
        }
      }
    }
  }
}

function nativeLines(lines, gcov, usable) {
  const objects = readdirSync(work, { recursive: true }).filter((name) => name.endsWith('.gcno'));
  const unused = levels.filter((level) => !usable.includes(level));
  for (const object of objects) {
    if (unused.some((level) => object.includes(`/cpu_${level}.dir/`))) continue;
    const { stdout, status, stderr } = spawnSync(gcov, ['-j', '-t', join(work, object)], {
      cwd: work,
      encoding: 'utf8',
      maxBuffer: 1 << 30,
    });
    if (status !== 0) throw new Error(`gcov ${object}: ${stderr}`);
    for (const report of stdout.split('\n').filter((line) => line.startsWith('{'))) {
      for (const { file, lines: found } of JSON.parse(report).files) {
        const path = relative(root, file);
        if (!/^(csrc|cuda|test\/emulation)\//.test(path)) continue;
        for (const { line_number, count } of found) add(lines, path, line_number, count);
      }
    }
  }
  // The objects of avx512_bf16 contain the AMX kernels.
  return unused.filter((level) => level !== 'amx' && level !== 'emulated_amx');
}

const groups = [
  ['lib', (file) => file.startsWith('lib/')],
  ['csrc/addon', (file) => file.startsWith('csrc/addon/')],
  ['csrc/model', (file) => file.startsWith('csrc/model/')],
  ['csrc/backend', (file) => /^csrc\/backend\/[^/]*$/.test(file)],
  ['csrc/backend/cpu', (file) => file.startsWith('csrc/backend/cpu/')],
  ['cuda', (file) => file.startsWith('cuda/')],
];
const whole = [
  ['lib, whole', (file) => file.startsWith('lib/')],
  ['csrc, whole', (file) => file.startsWith('csrc/')],
  ['cuda, whole', (file) => file.startsWith('cuda/')],
  ['total', (file) => !/^(cli|test)\//.test(file)],
];
const apart = [
  ['cli', (file) => file.startsWith('cli/')],
  ['test/emulation', (file) => file.startsWith('test/emulation/')],
];

function share(lines, belongs) {
  let total = 0;
  let ran = 0;
  for (const [file, counts] of lines) {
    if (!belongs(file)) continue;
    total += counts.size;
    for (const count of counts.values()) ran += count > 0 ? 1 : 0;
  }
  return { lines: total, ran, percent: total === 0 ? 0 : Math.floor((ran / total) * 1000) / 10 };
}

/** The lines that no test ran, as `3-7, 12`. A range includes lines without code. */
function missing(counts) {
  const ranges = [];
  let open;
  for (const [line, count] of [...counts].sort(([a], [b]) => a - b)) {
    if (count > 0) open = undefined;
    else if (open) open[1] = line;
    else {
      open = [line, line];
      ranges.push(open);
    }
  }
  return ranges.map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`)).join(', ');
}

async function report(gcov) {
  const lines = new Map();
  const usable = usableLevels();
  jestLines(lines);
  await processLines(lines);
  const lacking = nativeLines(lines, gcov, usable);
  const show = ([name, belongs]) => {
    const figure = share(lines, belongs);
    console.log(
      `  ${name.padEnd(18)} ${String(figure.ran).padStart(6)} of ${String(figure.lines).padStart(6)} lines  ${figure.percent.toFixed(1).padStart(5)} %`,
    );
    return [name, figure];
  };
  console.log('\ncoverage: lines that the tests run');
  const summary = {
    folders: Object.fromEntries(groups.map(show)),
    whole: Object.fromEntries(whole.map(show)),
    apart: Object.fromEntries(apart.map(show)),
    levels: usable,
    missing: Object.fromEntries(
      [...lines]
        .map(([file, counts]) => [file, missing(counts)])
        .filter(([, ranges]) => ranges)
        .sort(),
    ),
  };
  console.log(
    '  not in the build, so not counted: code that only nvcc compiles (PTX), oneDNN code, uninstantiated templates',
  );
  if (usable.includes('emulated_amx')) console.log('  AMX: emulated, this CPU lacks it');
  if (lacking.length > 0)
    console.log(`  also not counted: the CPU kernels for ${lacking.join(', ')}, which this CPU lacks`);
  mkdirSync(out, { recursive: true });
  writeFileSync(join(out, 'summary.json'), `${JSON.stringify(summary, null, 1)}\n`);
  console.log(`  lines that no test ran: ${relative(root, join(out, 'summary.json'))}`);
  return summary;
}

if (process.arch !== 'x64') cannot('the emulation needs x86-64');
const { stdout } = spawnSync(process.env.CXX || 'c++', ['-print-prog-name=gcov'], { encoding: 'utf8' });
const gcov = (stdout ?? '').trim() || 'gcov';
if (!/Free Software/.test(spawnSync(gcov, ['--version'], { encoding: 'utf8' }).stdout ?? ''))
  cannot('the C++ compiler is not gcc, or has no gcov');

let passed = true;
if (!process.argv.includes('--report')) {
  const started = Date.now();
  const seconds = () => Math.round((Date.now() - started) / 1000);
  const options = ['-DDIFFQKV_COVERAGE=ON', '-DDIFFQKV_CUDA=OFF', '-DDIFFQKV_ONEDNN=OFF'];
  if (buildForTests(options, { DIFFQKV_BUILD_DIR: work }) !== 0) process.exit(1);
  console.log(`coverage: built in ${seconds()} s; running the suites`);
  for (const name of readdirSync(work, { recursive: true })) {
    if (name.endsWith('.gcda')) rmSync(join(work, name));
  }
  rmSync(out, { recursive: true, force: true });
  mkdirSync(join(out, 'jest'), { recursive: true });
  passed = await runAll();
  console.log(`coverage: ${seconds()} s in all`);
}
const { whole: figures } = await report(gcov);
for (const [name, { percent }] of Object.entries(figures)) {
  if (percent >= LIMIT) continue;
  console.error(`coverage: ${name}: ${percent} % is below ${LIMIT} %`);
  passed = false;
}
if (!passed) process.exitCode = 1;
