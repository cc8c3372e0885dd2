// npm run test:speculative [-- --prompts N] [--max-tokens N] [--together N,N,...] [--device ID]:
// generates 1,000 prompts on the embedded model with and without speculative decoding, half of them
// greedy and half drawn, and requires the same tokens. A part of the prompts runs one by one, the
// others in batches of each size of --together. The draft model is the embedded model with weights of
// 4 bits. Prints tokens per step and the median of the prompts' speedups: how many times as fast they
// were decoded as without, in the same run.
//
// --rows MODEL [--weight-type TYPE]: instead, the time of a step that verifies 2 to 16 tokens, as a
// multiple of a step of one token: medians of interleaved steps. MODEL is a directory, or a preset
// such as sigma-1.5b, which gets random weights.

import { createRequire } from 'node:module';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { root } from './run.mjs';

const { values } = parseArgs({
  options: {
    prompts: { type: 'string', default: '1000' },
    'max-tokens': { type: 'string', default: '64' },
    together: { type: 'string', default: '1,2,4,8' },
    device: { type: 'string', default: 'cpu' },
    rows: { type: 'string' },
    'weight-type': { type: 'string' },
  },
});
const require = createRequire(import.meta.url);
const { Model, defaultModelDirectory, openDevice } = require(join(root, 'dist', 'lib', 'index.js'));
const { native } = require(join(root, 'dist', 'lib', 'internal.js'));
const { compare } = require(join(root, 'test', 'model', 'speculative_campaign.cjs'));

const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];

const device = await openDevice(values.device);
if (values.rows !== undefined) {
  await costOfRows(values.rows, { device, weightType: values['weight-type'] });
  process.exit(0);
}
const model = await Model.load(defaultModelDirectory, { device });
const draft = await Model.load(defaultModelDirectory, { device, weightType: 'i4' });
const sizes = values.together.split(',').map(Number);
const total = Number(values.prompts);
let different = 0;
let done = 0;
for (const [i, together] of sizes.entries()) {
  const count = Math.floor((total * (i + 1)) / sizes.length) - Math.floor((total * i) / sizes.length);
  const rows = await compare(model, {
    first: done,
    count,
    total,
    together,
    maxTokens: Number(values['max-tokens']),
    speculative: { ngram: { ngram: 3 }, draft: { draft } },
    onProgress: (n) => process.stderr.isTTY && process.stderr.write(`\r${together} at once: ${n} of ${count}  `),
  });
  done += count;
  for (const row of rows) {
    different += row.different;
    const perStep = (row.tokens / row.steps).toFixed(2);
    const accepted = ((100 * row.accepted) / Math.max(1, row.proposed)).toFixed(0);
    console.log(
      `${together} at once, ${row.name}, ${row.drawn}: ${row.prompts} prompts, ${row.different} different; ` +
        `${perStep} tokens per step, ${accepted} % of ${row.proposed} proposals accepted, ` +
        `${median(row.speedups).toFixed(2)} times as fast`,
    );
  }
}
draft.dispose();
model.dispose();
device.dispose();
if (different > 0) {
  console.error(`speculative: ${different} results differ`);
  process.exit(1);
}

async function costOfRows(name, options) {
  const isPreset = name.startsWith('sigma-') && !name.includes('/');
  const model = await (isPreset ? Model.random(name, options) : Model.load(name, options));
  const session = await model.createSession({ maxKvLen: 512 });
  await session.prefill(Array.from({ length: 100 }, (_, i) => i));
  const sampling = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 0n };
  const sizes = [1, 2, 3, 4, 6, 8, 12, 16];
  const times = new Map(sizes.map((size) => [size, []]));
  for (let repeat = 0; repeat < 16; repeat++) {
    for (const size of sizes) {
      const tokens = Int32Array.from({ length: size }, (_, i) => (i * 31 + repeat) % model.config.vocabSize);
      const item = { session: session[native], tokens, chunks: 'next', sampling, draw: 0, continues: false };
      const begin = performance.now();
      const [{ error }] = await model[native].step({ items: [{ ...item, verifies: size > 1 }] });
      if (error) throw error;
      if (repeat > 0) times.get(size).push(performance.now() - begin); // the first is a warm-up
      await session.truncate(100);
    }
  }
  const one = median(times.get(1));
  console.log(`${name}, ${model.dtype} and ${model.weightType}: a step of one token takes ${one.toFixed(2)} ms`);
  for (const size of sizes) console.log(`${size} tokens: ${(median(times.get(size)) / one).toFixed(2)} times that`);
  model.dispose();
}
