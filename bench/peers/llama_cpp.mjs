// llama.cpp through node-llama-cpp, in its own process. See serve.mjs.
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

import { serve } from './serve.mjs';

const folder = fileURLToPath(new URL('node_modules/node-llama-cpp/', import.meta.url));
const LIMIT_MS = 15_000;
let loaded = null;

async function unload() {
  await loaded?.context.dispose();
  await loaded?.model.dispose();
  loaded = null;
}

/** Processes `tokens` and draws `count` greedy tokens. Times: milliseconds to the first and between successive ones. */
async function generate(tokens, count) {
  const { sequence } = loaded;
  await sequence.clearHistory();
  const drawn = [];
  const ms = [];
  const start = performance.now();
  let since = start;
  for await (const token of sequence.evaluate(tokens, { temperature: 0, yieldEogToken: true })) {
    const now = performance.now();
    ms.push(now - since);
    since = now;
    drawn.push(token);
    // On a busy machine a token can take most of a second. Take fewer samples then.
    if (drawn.length === count || (drawn.length > 1 && now - start > LIMIT_MS)) break;
  }
  return { tokens: drawn, ms };
}

await serve({
  async open({ threads }) {
    const { getLlama } = await import('node-llama-cpp');
    // Sets all numbers of threads, because the defaults depend on its view of the machine.
    const llama = await getLlama({
      gpu: false,
      build: 'never',
      maxThreads: threads,
      logLevel: 'error',
      progressLogs: false,
    });
    loaded = { llama, threads };
    this.llama = llama;
    const { version } = JSON.parse(readFileSync(`${folder}package.json`, 'utf8'));
    return { version, llamaCpp: llama.llamaCppRelease.release, system: llama.systemInfo };
  },
  async load({ modelPath, contextSize, threads, flashAttention }) {
    if (loaded?.model) await unload();
    const model = await this.llama.loadModel({ modelPath, gpuLayers: 0 });
    const context = await model.createContext({
      contextSize,
      batchSize: 512,
      flashAttention,
      threads: { ideal: threads, min: threads },
      sequences: 1,
    });
    loaded = { model, context, sequence: context.getSequence() };
    return { size: model.size, threads: context.currentThreads };
  },
  generate: ({ tokens, count }) => generate(tokens, count),
  /** Log-probabilities of the next token after `tokens`, and then after `steps`, which are processed one by one. */
  async logProbabilities({ tokens, steps }) {
    await loaded.sequence.clearHistory();
    const after = async (before, last) => {
      const input = [...before, [last, { generateNext: { probabilities: true, options: { temperature: 0 } } }]];
      const output = await loaded.sequence.controlledEvaluate(input);
      return [...output.at(-1).next.probabilities].map(([token, p]) => [token, Math.log(p)]);
    };
    const prompt = await after(tokens.slice(0, -1), tokens.at(-1));
    let decoded = prompt;
    for (const token of steps) decoded = await after([], token);
    return { prompt, decoded };
  },
  unload,
});
