// A process that feeds mutated inputs to one target of tokenizer_targets.cjs, guided by the blocks
// of lib/ and its two libraries that they reach. It writes each input to a file before it runs it.
// The file is also its heartbeat: test/tools/fuzz.mjs kills the process if the file does not change,
// and saves the file if the process died.
//   node tokenizer_child.cjs TARGET SECONDS SEED SCRATCH_FOLDER NEW_CORPUS_FOLDER CORPUS_FOLDER...
'use strict';

const { createHash } = require('node:crypto');
const { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } = require('node:fs');
const { Session } = require('node:inspector');
const { join } = require('node:path');
const { generator, mutate } = require('./tokenizer_mutate.cjs');
const { Tokenizer } = require('../../dist/lib/index.js');

const [, , target, seconds, seed, scratch, ...folders] = process.argv;
const run = require('./tokenizer_targets.cjs')[target];
const MAX_LENGTH = 4096;
const MAX_MILLISECONDS = 500; // slower inputs, up to the limits of lib/, are bad starting points
const BATCH = 64; // reading the coverage takes longer than one input

const directory = join(scratch, 'model');
const current = join(scratch, 'current');
const found = folders[0];
mkdirSync(directory, { recursive: true });
mkdirSync(found, { recursive: true });
console.warn = () => {}; // the encoder warns about unknown settings

const session = new Session();
session.connect();
let answer;
const post = (method, parameters) => {
  session.post(method, parameters, (error, result) => {
    if (error) throw new Error(error.message);
    answer = result;
  });
  return answer; // the answer arrives synchronously
};
post('Profiler.enable');
post('Profiler.startPreciseCoverage', { callCount: true, detailed: true });

/** The blocks that ran since the last call. */
function reached() {
  const blocks = [];
  for (const { url, functions } of post('Profiler.takePreciseCoverage').result) {
    if (!/dist\/lib\/(tokenizer|decoder|chat|errors)/.test(url)) continue;
    for (const { ranges } of functions)
      for (const { startOffset, endOffset, count } of ranges)
        if (count > 0) blocks.push(`${url.slice(-24)}:${startOffset}:${endOffset}`);
  }
  return blocks;
}

const seen = new Set();
const addNew = () => {
  const before = seen.size;
  for (const block of reached()) seen.add(block);
  return seen.size - before;
};
let executions = 0;
async function execute(input) {
  writeFileSync(current, input);
  executions++;
  await run(Tokenizer, directory, input);
}

async function main() {
  const corpus = [];
  for (const folder of folders.filter(existsSync)) {
    for (const name of readdirSync(folder).sort()) {
      const input = readFileSync(join(folder, name), 'utf8');
      const start = Date.now();
      await execute(input);
      addNew();
      if (Date.now() - start <= MAX_MILLISECONDS) corpus.push(input);
    }
  }
  if (corpus.length === 0) corpus.push('');
  const below = generator(Number(seed));
  const end = Date.now() + 1000 * Number(seconds);
  while (Date.now() < end) {
    const batch = [];
    for (let i = 0; i < BATCH && Date.now() < end; i++) {
      // The newest inputs are the most likely to lead to more.
      const from = below(2) ? corpus[corpus.length - 1 - below(Math.min(20, corpus.length))] : corpus[below(corpus.length)];
      const input = mutate(target, from, corpus[below(corpus.length)], below, MAX_LENGTH);
      await execute(input);
      batch.push(input);
    }
    const blocks = reached().filter((block) => !seen.has(block));
    if (blocks.length === 0) continue;
    for (const input of batch) {
      const start = Date.now();
      await execute(input);
      if (addNew() === 0 || Date.now() - start > MAX_MILLISECONDS) continue;
      corpus.push(input);
      writeFileSync(join(found, createHash('sha1').update(input).digest('hex')), input);
    }
  }
  console.log(JSON.stringify({ executions, corpus: corpus.length, blocks: seen.size, seed: Number(seed) }));
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
