// node test/tools/time-sampling.mjs [DEVICE]: prints what a mask of allowed tokens and biases add to a step that draws a token
// from a vocabulary of 128,256, in ms, at the fastest tenth of the steps of a model that has little else to do.
// Each way is measured in turn, round after round. Needs npm run build.

import { createRequire } from 'node:module';
import { join } from 'node:path';
import { root } from './run.mjs';

const require = createRequire(import.meta.url);
const { Model } = require(join(root, 'dist', 'lib', 'index.js'));
const { native } = require(join(root, 'dist', 'lib', 'internal.js'));

const vocabSize = 128_256;
const rounds = 200;
const config = {
  ...{ model_type: 'llama', architectures: ['LlamaForCausalLM'], hidden_act: 'silu', rms_norm_eps: 1e-5 },
  ...{ hidden_size: 32, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 1, num_key_value_heads: 1 },
  ...{ vocab_size: vocabSize, max_position_embeddings: 4096, rope_theta: 10_000, tie_word_embeddings: true },
};

const maskOf = (isAllowed) =>
  Uint32Array.from({ length: Math.ceil(vocabSize / 32) }, (_, word) => {
    let bits = 0;
    for (let i = 0; i < 32; i++) if (isAllowed(32 * word + i)) bits |= 1 << i;
    return bits >>> 0;
  });
const biasesOf = (count) => ({
  tokens: Int32Array.from({ length: count }, (_, i) => Math.floor((i * vocabSize) / count)),
  values: new Float32Array(count).fill(0.5),
});
const limits = {
  neither: {},
  'a mask of 50 tokens': { allowed: maskOf((token) => token % 2565 === 0) },
  'a mask of every second token': { allowed: maskOf((token) => token % 2 === 0) },
  'a mask of all but 50 tokens': { allowed: maskOf((token) => token % 2565 !== 0) },
  '300 biases': { biases: biasesOf(300) },
  '10,000 biases': { biases: biasesOf(10_000) },
};
const off = { topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, seed: 1n };
const settings = {
  greedy: { ...off, temperature: 0 },
  'all tokens': { ...off, temperature: 1 },
  'topK 40, topP 0.95': { ...off, temperature: 0.8, topK: 40, topP: 0.95 },
};

const model = await Model.random(config, { device: process.argv[2] ?? 'cpu', dtype: 'f32' });
for (const [setting, sampling] of Object.entries(settings)) {
  const times = new Map(Object.keys(limits).map((name) => [name, []]));
  for (let round = 0; round < rounds; round++) {
    for (const [name, limit] of Object.entries(limits)) {
      const session = await model.createSession();
      const item = { session: session[native], tokens: Int32Array.of(5), chunks: 'next', sampling, draw: round };
      const begin = performance.now();
      await model[native].step({ items: [{ ...item, continues: false, ...limit }] });
      times.get(name).push(performance.now() - begin);
      session.dispose();
    }
  }
  const fast = (list) => list.sort((a, b) => a - b)[Math.floor(list.length / 10)];
  const plain = fast(times.get('neither'));
  for (const [name, list] of times) {
    const ms = fast(list);
    console.log(`${setting}: ${name}: ${ms.toFixed(3)} ms, ${(ms - plain).toFixed(3)} more than neither`);
  }
}
model.dispose();
