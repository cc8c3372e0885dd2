// Loads a checkpoint again and again, and truncates its file at a random moment of each load. Prints
// how often each outcome occurred: an error code, or "loaded".
//
//   node truncated_load.cjs DIRECTORY TIMES

const { copyFileSync, truncate, statSync } = require('node:fs');
const { join } = require('node:path');
const { performance } = require('node:perf_hooks');

const [directory, times] = process.argv.slice(2);
const { Model, openDevice } = require('../../dist/lib/index.js');
const original = join(directory, 'original');
const file = join(directory, 'model.safetensors');

async function load(device) {
  const started = performance.now();
  const model = await Model.load(directory, { device });
  model.dispose();
  return performance.now() - started;
}

(async () => {
  const device = await openDevice('cpu');
  const { size } = statSync(original);
  copyFileSync(original, file);
  const whole = await load(device);
  const outcomes = {};
  for (let i = 0; i < Number(times); i++) {
    copyFileSync(original, file);
    const length = Math.floor(Math.random() * size);
    const truncated = new Promise((resolve) => {
      setTimeout(() => truncate(file, length, resolve), (whole * i) / Number(times));
    });
    const outcome = await load(device).then(
      () => 'loaded',
      ({ code }) => code,
    );
    outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
    await truncated;
  }
  device.dispose();
  console.log(JSON.stringify(outcomes));
})();
