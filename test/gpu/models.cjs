// A whole model on a device, as JSON lines: node models.cjs sigma-1.5b|sigma-10b DEVICE
//
// First, two layers of the model with random weights: their logits on the device beside those of the CPU. Then the full
// model with random weights, by the wall clock: prefill and decode tokens per second at batch 1, and of 16 generations at
// once. On `emulated` the model is tiny: that shows that the script runs. Status 1 if the logits differ.
'use strict';

const { Model } = require('../../dist/lib/index.js');
const { sigma10bConfig, sigma15bConfig } = require('../../dist/bench/shapes.js');

const [name, device] = process.argv.slice(2);
const preset = {
  'sigma-1.5b': { make: sigma15bConfig, layers: 26, comparedVocabSize: 128256 },
  'sigma-10b': { make: sigma10bConfig, layers: 32, comparedVocabSize: 16384 }, // less to draw
}[name];
if (!preset || !device) throw new Error('usage: models.cjs sigma-1.5b|sigma-10b DEVICE');
const small = device === 'emulated';
const TOLERANCE = 3e-2; // that of test/support/compare.ts for a model in bf16
const tiny = { hidden_size: 64, intermediate_size: 96, aug_q_dim: 96, vocab_size: 256, head_dim: 32 };
const config = (layers, changes) => ({ ...preset.make(layers), ...changes, ...(small ? tiny : {}) });

const emit = (what, fields) => console.log(JSON.stringify({ model: name, what, ...fields }));
const tokens = (count, vocabSize, salt = 0) =>
  Array.from({ length: count }, (_, i) => (i * 7919 + salt * 104729 + 17) % vocabSize);
const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];

/** Logits after a prefill and after each of some decode steps. */
async function logits(where, layers) {
  const model = await Model.random(config(layers, { vocab_size: preset.comparedVocabSize }), { device: where, dtype: 'bf16', seed: 1 });
  const session = await model.createSession();
  const found = [await session.prefill(tokens(40, model.config.vocabSize))];
  for (const token of tokens(3, model.config.vocabSize, 1)) found.push(await session.decode(token));
  session.dispose();
  model.dispose();
  return found;
}

async function compare() {
  const layers = small ? 1 : 2;
  const [expected, actual] = [await logits('cpu', layers), await logits(device, layers)];
  let worst = 0;
  for (const [step, row] of expected.entries()) {
    const largest = row.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    for (let i = 0; i < row.length; i++) {
      worst = Math.max(worst, Math.abs(row[i] - actual[step][i]) / largest); // NaN stays
    }
  }
  const passed = worst <= TOLERANCE;
  emit(`logits of ${layers} layers beside the CPU`, { value: Number(worst.toPrecision(3)), unit: 'of the largest', passed });
  return passed;
}

async function measure() {
  const begun = performance.now();
  const model = await Model.random(config(small ? 1 : preset.layers), { device, dtype: 'bf16' });
  const { vocabSize } = model.config;
  emit('weights', { value: Math.round(performance.now() - begun), unit: 'ms', bytes: model.weightBytes });

  const session = await model.createSession();
  const rate = (what, count, ms) => emit(what, { value: Number(((count * 1000) / ms).toPrecision(4)), unit: 'tokens/s', ms });
  for (const length of small ? [8] : [512, 4096]) {
    const times = [];
    for (let round = 0; round < (small ? 2 : 4); round++) {
      await session.truncate(0);
      const start = performance.now();
      await session.prefill(tokens(length, vocabSize));
      times.push(performance.now() - start);
    }
    rate(`prefill ${length}`, length, median(times.slice(1))); // the first one warms up
    const steps = [];
    for (const token of tokens(small ? 3 : 64, vocabSize, 1)) {
      const start = performance.now();
      await session.decode(token);
      steps.push(performance.now() - start);
    }
    rate(`decode after ${length}`, 1, median(steps.slice(1)));
  }
  session.dispose();

  for (const [batch, count] of small ? [[2, 3]] : [[1, 128], [16, 128]]) {
    const stamps = await Promise.all(
      Array.from({ length: batch }, async (_, i) => {
        const times = [];
        for await (const _ of model.generate(tokens(32 + i, vocabSize, i), { maxTokens: count })) times.push(performance.now());
        return times;
      }),
    );
    // From the first token of the last one to begin to the last token of the first one to end: all of them decode.
    const from = Math.max(...stamps.map((times) => times[0]));
    const to = Math.min(...stamps.map((times) => times.at(-1)));
    rate(`generate, batch ${batch}`, stamps.flat().filter((time) => time > from && time <= to).length, to - from);
  }
  model.dispose();
}

compare().then(async (passed) => {
  await measure();
  process.exitCode = passed ? 0 : 1;
});
