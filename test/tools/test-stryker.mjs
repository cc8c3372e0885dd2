// npm run test:stryker [-- --part NAME --share X --seed S --mutate FILES --report]: Stryker changes the
// code of lib/ in one small place at a time and runs the tests of its part (stryker_parts.mjs) that
// reach the place, on the CPU. Needs the tests' module (npm run build:test) and dist/. Reports of each
// part are in build/stryker: PART.html and PART.json, or PART.SEED.json for a sample. Prints the score
// of each folder.
//
// --part: one part, and more with more options; without any, all of lib/. `server` is the HTTP example.
// --share: a random sample, such as 0.1 of all mutants; --seed: another sample (1).
// --mutate: only these files, or lines of them such as lib/stop.ts:10-20.
// --report: prints the score and the survivors of the last run.

import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { root, runNode } from './run.mjs';
import { parts } from './stryker_parts.mjs';

const { values: options } = parseArgs({
  options: {
    part: { type: 'string', multiple: true, default: Object.keys(parts).filter((name) => name !== 'server') },
    share: { type: 'string', default: '1' },
    seed: { type: 'string', default: '1' },
    mutate: { type: 'string' },
    report: { type: 'boolean', default: false },
  },
});

const stryker = join(root, 'node_modules', '@stryker-mutator', 'core', 'bin', 'stryker.js');
const isSampled = Number(options.share) < 1;
process.env.STRYKER_SHARE = options.share;
process.env.STRYKER_SEED = options.seed;
const { isInSample } = await import('./stryker-sample.mjs');

let failed = 0;
const statuses = ['Killed', 'Timeout', 'Survived', 'NoCoverage', 'RuntimeError'];
const folders = new Map();
for (const part of options.part) {
  process.env.STRYKER_PART = part;
  if (!options.report) {
    const mutate = options.mutate ? ['--mutate', options.mutate] : [];
    if (runNode([stryker, 'run', 'test/tools/stryker.config.mjs', ...mutate]) !== 0) {
      failed = 1;
      continue;
    }
  }
  const report = join(root, 'build', 'stryker', `${part}${isSampled ? `.${options.seed}` : ''}.json`);
  for (const [file, { source, mutants }] of Object.entries(JSON.parse(readFileSync(report, 'utf8')).files)) {
    const lines = source.split('\n');
    const counts = folders.get(dirname(file)) ?? Object.fromEntries(statuses.map((status) => [status, 0]));
    folders.set(dirname(file), counts);
    for (const mutant of mutants.filter(isInSample)) {
      const { status, mutatorName, location, replacement } = mutant;
      counts[status]++;
      if (status !== 'Survived' && status !== 'NoCoverage') continue;
      const { line, column } = location.start;
      console.log(`${file}:${line}:${column}  ${status}  ${mutatorName}  ${lines[line - 1].trim()}`);
      console.log(`    -> ${replacement.replace(/\s+/g, ' ').slice(0, 100)}`);
    }
  }
}

function score(name, counts) {
  const detected = counts.Killed + counts.Timeout;
  const valid = detected + counts.Survived + counts.NoCoverage;
  const list = statuses.map((status) => `${counts[status]} ${status}`).join(', ');
  console.log(`${name}: ${((100 * detected) / valid).toFixed(1)} % of ${valid} (${list})`);
}
const all = Object.fromEntries(statuses.map((status) => [status, 0]));
for (const [folder, counts] of folders) {
  score(folder, counts);
  for (const status of statuses) all[status] += counts[status];
}
score('all', all);
process.exitCode = failed;
