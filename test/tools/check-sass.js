// Compares the main loops of compiled kernels (test/tools/sass.js) with a committed table. Used by
// test/tools/check-kernels.mjs.
'use strict';

const { execFileSync, spawnSync } = require('node:child_process');
const { createHash } = require('node:crypto');
const { existsSync, readFileSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');
const { readSass } = require('./sass.js');

// An unrelated edit of a kernel may add an address computation to a loop. This leeway is enough for
// the compiler's noise: the same source compiles to loops of equal length for f16 and bf16.
const LEEWAY = 0.02;

/** The name and version of the disassembler in NVDISASM or on PATH; undefined if there is none. */
function findDisassembler() {
  const program = process.env.NVDISASM || 'nvdisasm';
  const { status, stdout, error } = spawnSync(program, ['--version'], { encoding: 'utf8' });
  if (!error && status === 0) return { program, version: stdout };
  if (process.env.NVDISASM)
    throw new Error(`NVDISASM=${program} does not run: ${error?.message ?? `status ${status}`}`);
  return undefined;
}

/**
 * The main loops of each function of a cubin. Caches them in a file, because the disassembler is
 * slow.
 */
function loopsOf(cubin, { program, version }) {
  const hash = createHash('sha256')
    .update(version)
    .update(readFileSync(join(__dirname, 'sass.js')));
  const kept = `${cubin}.loops.${hash.digest('hex').slice(0, 16)}.json`;
  if (existsSync(kept)) return JSON.parse(readFileSync(kept, 'utf8'));
  const functions = readSass(execFileSync(program, ['-c', '-hex', cubin], { encoding: 'utf8', maxBuffer: 1 << 30 }));
  writeFileSync(kept, JSON.stringify(functions));
  return functions;
}

const ratio = (loop, work) => (loop[work] > 0 ? (loop.instructions ?? Number.NaN) / loop[work] : 0);
const FIGURES = [
  { what: 'instructions per HMMA', of: (loop) => ratio(loop, 'hmma'), leeway: LEEWAY },
  { what: 'instructions per LDGSTS', of: (loop) => ratio(loop, 'ldgsts'), leeway: LEEWAY },
  { what: 'loads in flight at the first wait', of: (loop) => loop.inFlightAtFirstWait ?? 0, more: 'better' },
  { what: 'loads in flight at most', of: (loop) => loop.inFlightAtMost ?? 0, more: 'better' },
  { what: 'loads in flight at least', of: (loop) => loop.inFlightAtLeast ?? 0, more: 'better' },
  { what: 'copies in flight at the first wait', of: (loop) => loop.copiesInFlight ?? 0, more: 'better' },
  { what: 'moves from loads before the back-edge', of: (loop) => loop.carriedMoves ?? 0 },
  { what: 'spills', of: (loop) => loop.spills ?? 0 },
];

/**
 * The kind of work in a loop. Two versions of a kernel are compared loop by loop only if these
 * agree.
 */
const kind = (loop) => ['hmma', 'ldgsts', 'loads'].filter((work) => loop[work] > 0).join('+');
const kinds = (loops) => `[${loops.map(kind).join(', ')}]`;

/**
 * @param {Record<string, import('./sass.js').MainLoop[]>}
 *   committed by kernel; a count of 0 may be omitted
 * @param {Record<string, import('./sass.js').MainLoop[]>} measured
 * @returns {{worse: string[], better: string[]}}
 */
function compareLoops(committed, measured) {
  const worse = [];
  const better = [];
  for (const name of Object.keys({ ...committed, ...measured })) {
    const [before, now] = [committed[name], measured[name]];
    if (!before) worse.push(`${name}: not in the committed table`);
    else if (!now) worse.push(`${name}: in the committed table, but not compiled`);
    else if (kinds(before) !== kinds(now)) worse.push(`${name}: other main loops: ${kinds(before)} -> ${kinds(now)}`);
    else {
      for (const [i, loop] of now.entries()) {
        for (const { what, of, more = 'worse', leeway = 0 } of FIGURES) {
          const [was, is] = [of(before[i]), of(loop)];
          const line = `${name}: loop ${i + 1}: ${what} ${Number(was.toFixed(2))} -> ${Number(is.toFixed(2))}`;
          const [low, high] = [was * (1 - leeway), was * (1 + leeway)];
          if (is >= low && is <= high) continue;
          // A count that is not a number counts as worse.
          if (more === 'better' ? is > high : is < low) better.push(line);
          else worse.push(line);
        }
      }
    }
  }
  return { worse, better };
}

const COLUMNS = [
  ['address', (loop) => `0x${loop.address.toString(16)}`],
  ['depth', (loop) => loop.depth],
  ['instr', (loop) => loop.instructions],
  ['HMMA', (loop) => loop.hmma],
  ['/HMMA', (loop) => ratio(loop, 'hmma').toFixed(1)],
  ['LDGSTS', (loop) => loop.ldgsts],
  ['/LDGSTS', (loop) => ratio(loop, 'ldgsts').toFixed(1)],
  ['loads', (loop) => loop.loads],
  ['first', (loop) => loop.inFlightAtFirstWait],
  ['most', (loop) => loop.inFlightAtMost],
  ['least', (loop) => loop.inFlightAtLeast],
  ['copies', (loop) => loop.copiesInFlight],
  ['moves', (loop) => loop.carriedMoves],
  ['bars', (loop) => loop.barriers],
  ['spills', (loop) => loop.spills],
];
const formatRow = (cells) =>
  cells
    .map((cell) => String(/^0(\.0)?$/.test(cell) ? '-' : cell).padStart(7))
    .join(' ')
    .trimEnd();

/**
 * The table as text, one line per loop, so that a diff names the kernel. Omits addresses and counts
 * of 0.
 */
function formatTable(architecture, nvcc, kernels) {
  const rows = Object.entries(kernels).map(([name, loops]) => {
    const lines = loops.map(({ address, ...counts }) =>
      JSON.stringify(Object.fromEntries(Object.entries(counts).filter(([, count]) => count !== 0))),
    );
    return `    ${JSON.stringify(name)}: [\n      ${lines.join(',\n      ')}\n    ]`;
  });
  const head = `  "architecture": ${JSON.stringify(architecture)},\n  "nvcc": ${JSON.stringify(nvcc)},`;
  return `{\n${head}\n  "kernels": {\n${rows.join(',\n')}\n  }\n}\n`;
}

/**
 * Prints the main loops of an architecture's kernels and compares them with the table, or writes
 * the table.
 * @param {{program: string, version: string}} disassembler
 * @param {string} architecture
 * @param {string} nvcc its version
 * @param {{file: string, cubin: string}[]} builds
 * @param {(mangled: string) => string} nameOf
 * @param {string} table file with the committed table
 * @param {boolean} write
 * @returns {number} how many figures are worse
 */
function checkSass({ disassembler, architecture, nvcc, builds, nameOf, table, write = false }) {
  console.log(
    `\nSASS: main loops for ${architecture}. first, most, least: loads in flight at the first wait for one, before`,
  );
  console.log('any wait, after any wait. copies: LDGSTS in flight at the first wait for a group of them. moves: from');
  console.log('loads before the back-edge.');
  console.log(formatRow(COLUMNS.map(([title]) => title)));
  const kernels = {};
  for (const { file, cubin } of builds) {
    for (const { name, loops } of loopsOf(cubin, disassembler)) {
      if (loops.length === 0) continue;
      const key = `${file} ${nameOf(name)}`;
      if (kernels[key]) throw new Error(`two kernels are called '${key}'`);
      kernels[key] = loops;
      console.log(key);
      for (const loop of loops) console.log(formatRow(COLUMNS.map(([, cell]) => cell(loop))));
    }
  }
  const count = Object.values(kernels).flat().length;
  if (write) {
    writeFileSync(table, formatTable(architecture, nvcc, kernels));
    console.log(`SASS: ${count} main loops of ${architecture} written to ${table}`);
    return 0;
  }
  if (!existsSync(table)) {
    console.log(`SASS: SKIPPED: ${count} main loops of ${architecture} not compared: there is no ${table}`);
    return 0;
  }
  const committed = JSON.parse(readFileSync(table, 'utf8'));
  if (committed.nvcc !== nvcc) {
    console.log(
      `SASS: SKIPPED: ${count} main loops of ${architecture} not compared: ${table} is of nvcc ${committed.nvcc}`,
    );
    return 0;
  }
  if (Object.keys(kernels).some((key) => / _Z/.test(key))) {
    console.log(
      `SASS: SKIPPED: ${count} main loops of ${architecture} not compared: no c++filt, so kernels have no names`,
    );
    return 0;
  }
  const { worse, better } = compareLoops(committed.kernels, kernels);
  for (const line of better) console.log(`better: ${line}`);
  for (const line of worse) console.log(`worse: ${line}`);
  if (better.length + worse.length > 0) {
    console.log(`SASS: if the change is intended, commit a new ${table}:`);
    console.log(`  npm run check:kernels -- ${architecture} --sass-json ${table}`);
  }
  console.log(`SASS: ${count} main loops of ${architecture}: ${worse.length} figures worse, ${better.length} better`);
  return worse.length;
}

module.exports = { LEEWAY, checkSass, compareLoops, findDisassembler };
