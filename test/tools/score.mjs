// npm run test:score [-- --characters N --dtype TYPE --device ID]: compares Model.score with decoding
// token by token, on the held-out pages of the embedded model: the largest difference of a log
// probability, the perplexities, and the time of both. Needs `npm run build`. By default the first
// 8,000 characters, in which decoding takes some seconds, in the type of the checkpoint.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

import { root } from './run.mjs';

const { defaultModelDirectory, Model } = createRequire(import.meta.url)(join(root, 'dist', 'lib', 'index.js'));
const { values } = parseArgs({
  options: {
    characters: { type: 'string', default: '8000' },
    dtype: { type: 'string' },
    device: { type: 'string', default: 'cpu' },
  },
});

const pages = readFileSync(join(root, 'bench', 'data', 'tldr-heldout.txt'), 'utf8').slice(0, Number(values.characters));
const model = await Model.load(defaultModelDirectory, { device: values.device, dtype: values.dtype });
const context = model.config.maxPositionEmbeddings;
const all = await model.tokenizer.encodeAsync(pages);
await model.score(all.slice(0, 200));

let [numTokens, scoreMs, decodeMs, largest, scored, decoded] = [0, 0, 0, 0, 0, 0];
for (let first = 0; first + 1 < all.length; first += context) {
  const tokens = all.slice(first, first + context);
  const begin = performance.now();
  const { logprobs } = await model.score(tokens);
  scoreMs += performance.now() - begin;
  const session = await model.createSession();
  for (const [i, token] of tokens.slice(0, -1).entries()) {
    const start = performance.now();
    const logits = await session.decode(token);
    decodeMs += performance.now() - start;
    const most = logits.reduce((a, b) => Math.max(a, b));
    const sum = logits.reduce((total, x) => total + Math.exp(x - most), 0);
    const expected = logits[tokens[i + 1]] - most - Math.log(sum);
    largest = Math.max(largest, Math.abs(logprobs[i] - expected));
    scored += logprobs[i];
    decoded += expected;
    numTokens++;
  }
  session.dispose();
}
model.dispose();
const perplexity = (sum) => Math.exp(-sum / numTokens).toFixed(4);
console.log(`${numTokens} tokens in ${model.dtype} on ${values.device}`);
console.log(`score:  ${scoreMs.toFixed(0)} ms, perplexity ${perplexity(scored)}`);
console.log(`decode: ${decodeMs.toFixed(0)} ms, perplexity ${perplexity(decoded)}`);
console.log(`${(decodeMs / scoreMs).toFixed(1)} times as fast; the largest difference is ${largest.toExponential(2)}`);
if (!(largest < (model.dtype === 'f32' ? 1e-3 : 0.5))) process.exitCode = 1;
