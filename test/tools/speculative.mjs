// npm run test:speculative [-- --prompts N] [--max-tokens N] [--together N,N,...] [--device ID]:
// generates 1,000 prompts on the embedded model with and without speculative decoding, half of them
// greedy and half drawn, and requires the same tokens. Prints tokens per step. A part of the prompts
// runs one by one, the others in batches of each size of --together. The draft model is the embedded
// model with weights of 4 bits.

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
  },
});
const require = createRequire(import.meta.url);
const { Model, defaultModelDirectory, openDevice } = require(join(root, 'dist', 'lib', 'index.js'));
const { compare } = require(join(root, 'test', 'model', 'speculative_campaign.cjs'));

const device = await openDevice(values.device);
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
        `${perStep} tokens per step, ${accepted} % of ${row.proposed} proposals accepted`,
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
