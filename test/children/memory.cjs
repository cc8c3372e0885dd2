// Resident memory over many cycles of load, session, generate and, by mode, dispose. Prints { before, after } in bytes:
// resident memory after the warm-up and at the end.
//   node --expose-gc memory.cjs MODE CYCLES WORKERS MODEL_DIRECTORY       MODE: dispose | collect | tensors
const { Worker, isMainThread, workerData, parentPort } = require('node:worker_threads');
const { setTimeout: sleep } = require('node:timers/promises');
const { Model, openDevice, kernels } = require('../../dist/lib/index.js');

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
  if (mode === 'dispose') {
    fork.dispose();
    session.dispose();
    model.dispose();
  }
}

// Finalizers run between turns of the loop, so a collection takes a few.
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
  const round = async (n) => {
    if (Number(workers) === 0) return cycles(mode, n, directory);
    await Promise.all(
      threads.map(
        (thread) =>
          new Promise((resolve, reject) => {
            thread.once('message', (error) => (error ? reject(new Error(error)) : resolve()));
            thread.postMessage(n);
          }),
      ),
    );
  };
  const threads = Array.from({ length: Number(workers) }, () => new Worker(__filename, { workerData: { mode, directory } }));
  await round(20);
  const before = process.memoryUsage.rss();
  await round(Number(count));
  const after = process.memoryUsage.rss();
  await Promise.all(threads.map((thread) => thread.terminate()));
  console.log(JSON.stringify({ before, after }));
}

if (isMainThread) {
  main();
} else {
  parentPort.on('message', (count) => {
    cycles(workerData.mode, count, workerData.directory).then(
      () => parentPort.postMessage(null),
      (error) => parentPort.postMessage(String(error.stack)),
    );
  });
}
