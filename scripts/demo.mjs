// npm run demo: generates a help page with the embedded model, then prints the speed and the KV
// cache size. The prompt, the sampling and the seed produce a page that does not repeat itself.
import { createRequire } from 'node:module';

const { defaultModelDirectory, Model } = createRequire(import.meta.url)('../dist/lib/index.js');

const model = await Model.load(defaultModelDirectory);
const session = await model.createSession();
const prompt = '# apt\n> Package manager for Debian-based distributions.\n';
const generation = model.generate(prompt, { session, temperature: 0.6, topP: 0.9, repetitionPenalty: 1.15, seed: 3 });
process.stdout.write(prompt);
for await (const { text } of generation) process.stdout.write(text);
const { timings } = await generation.result;

const { numQHeads, numKHeads, numVHeads } = model.config;
const { k, v } = session.kvCacheBytes;
const gqa = (k / numKHeads) * numVHeads + v;
console.log(`
${timings.tokensPerSecond.toFixed(0)} tokens/s on ${model.device.id} (${model.device.info.name})
KV cache with ${numQHeads}/${numKHeads}/${numVHeads} Q/K/V heads: ${k + v} bytes for ${session.kvLen} tokens
the same in a GQA with ${numQHeads}/${numVHeads}/${numVHeads} heads: ${gqa} bytes, so DiffQKV saves ${(100 * (1 - (k + v) / gqa)).toFixed(1)} %`);
model.dispose();
