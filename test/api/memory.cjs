// Measures memory over many cycles of load, session, generate and, depending on the mode, dispose.
// Prints { before, after }: after the warm-up and at the end, each { resident, native, used } in
// bytes. native: resident memory outside V8's heaps, which grow and shrink by tens of MB
// unpredictably. used: the live objects in those heaps.
//   node --expose-gc memory.cjs MODE CYCLES WORKERS MODEL_DIRECTORY
// MODE: dispose | collect | tensors | keep
const { Worker, isMainThread, workerData, parentPort } = require('node:worker_threads');
const { setTimeout: sleep } = require('node:timers/promises');
const { Model, openDevice, kernels } = require('../../dist/lib/index.js');

const kept = [];

async function cycle(mode, directory) {
  if (mode === 'tensors') {
    const device = await openDevice('cpu');
    const x = device.tensor('f32', [64, 1024]);
    for (let i = 0; i < 20; i++) (await kernels.matmul({ x, weight: x })).dispose();
    await x.read();
    device.dispose();
    return;
  }
  const model = await Model.load(directory, { device: 'cpu' });
  const session = await model.createSession();
  const fork = await session.fork();
  await fork.prefill([1, 2, 3]);
  await model.generate('# tar\n', { maxTokens: 3, session }).result;
  if (mode === 'keep') kept.push(model); // a leak, to show that the measurement detects it
  if (mode === 'dispose') {
    fork.dispose();
    session.dispose();
    model.dispose();
  }
}

// Finalizers run between turns of the event loop, so a full collection needs several turns.
async function collect() {
  for (let i = 0; i < 6; i++) {
    global.gc();
    await sleep(5);
  }
}

async function cycles(mode, count, directory) {
  for (let i = 0; i < count; i++) {
    await cycle(mode, directory);
    if (mode === 'collect' || i % 10 === 9) await collect();
  }
  await collect();
}

async function main() {
  const [mode, count, workers, directory] = process.argv.slice(2);
  const ask = (thread, message) =>
    new Promise((resolve, reject) => {
      thread.once('message', ({ error, heap }) => (error ? reject(new Error(error)) : resolve(heap)));
      thread.postMessage(message);
    });
  const round = async (cycleCount) => {
    if (threads.length === 0) await cycles(mode, cycleCount, directory);
    await Promise.all(threads.map((thread) => ask(thread, cycleCount)));
    await collect();
    // Samples all values now: a heap shrinks while its thread idles.
    const heaps = [...(await Promise.all(threads.map((thread) => ask(thread, 0)))), process.memoryUsage()];
    const resident = process.memoryUsage.rss();
    const sum = (field) => heaps.reduce((total, heap) => total + heap[field], 0);
    return { resident, native: resident - sum('heapTotal'), used: sum('heapUsed') };
  };
  const threads = Array.from({ length: Number(workers) }, () => new Worker(__filename, { workerData: { mode, directory } }));
  const before = await round(30);
  const after = await round(Number(count));
  await Promise.all(threads.map((thread) => thread.terminate()));
  console.log(JSON.stringify({ before, after }));
}

if (isMainThread) {
  main();
} else {
  parentPort.on('message', (count) => {
    cycles(workerData.mode, count, workerData.directory).then(
      () => parentPort.postMessage({ heap: process.memoryUsage() }),
      (error) => parentPort.postMessage({ error: String(error.stack) }),
    );
  });
}
