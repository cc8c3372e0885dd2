// Measures the longest block of the event loop in each phase, in ms:
// { load, prefill, decode, generate, kernels, ... }.
//   node event_loop.cjs MODEL_DIRECTORY [BLOCK_MS]
// BLOCK_MS blocks the loop on purpose, to show that the measurement detects it.
const { monitorEventLoopDelay } = require('node:perf_hooks');
const { setTimeout: sleep } = require('node:timers/promises');
const { Model, kernels, openDevice } = require('../../dist/lib/index.js');

async function longest(work) {
  const monitor = monitorEventLoopDelay({ resolution: 1 });
  monitor.enable();
  await sleep(20);
  monitor.reset();
  // The monitor skips the first tick after a reset, and would miss work that blocks before it.
  await sleep(5);
  const result = await work();
  await sleep(5); // so that a block just before the end counts
  monitor.disable();
  return { ms: monitor.max / 1e6, result };
}

async function main() {
  const [directory, blockMs] = process.argv.slice(2);
  const device = await openDevice('cpu');
  const delays = {};
  const measure = async (name, work) => {
    const { ms, result } = await longest(work);
    delays[name] = ms;
    return result;
  };
  const model = await measure('load', () => Model.load(directory, { device, onProgress: () => {} }));
  const session = await measure('session', () => model.createSession());
  const tokens = Array.from({ length: 1000 }, (_, i) => (i * 37) % model.config.vocabSize);
  await measure('prefill', () => session.prefill(tokens));
  await measure('decode', async () => {
    for (let i = 0; i < 20; i++) await session.decode(i);
  });
  await measure('fork', async () => (await session.fork()).dispose());
  await session.truncate(0);
  await measure('generate', () => model.generate(tokens.slice(0, 900), { session, maxTokens: 20, temperature: 0.8, seed: 1 }).result);
  const x = device.tensor('bf16', [1024, 2048]);
  await measure('kernels', async () => {
    for (let i = 0; i < 3; i++) (await kernels.matmul({ x, weight: x })).dispose();
  });
  await measure('dispose', async () => {
    session.dispose();
    model.dispose();
  });
  if (blockMs) {
    await measure('blocked', async () => {
      const end = Date.now() + Number(blockMs);
      while (Date.now() < end);
    });
  }
  device.dispose();
  console.log(JSON.stringify(delays));
}

main();
