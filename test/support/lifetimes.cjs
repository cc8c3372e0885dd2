// Ends objects or the process at a bad moment, selected by name. The process must exit by itself
// with status 0. Prints {} at the end.
//   node --expose-gc lifetimes.cjs NAME MODEL_DIRECTORY
const { Worker, isMainThread, workerData, parentPort } = require('node:worker_threads');
const { setTimeout: sleep } = require('node:timers/promises');
const assert = require('node:assert');
const { Model, kernels, openDevice } = require('../../dist/lib/index.js');

const [name, directory] = isMainThread ? process.argv.slice(2) : [workerData.name, workerData.directory];
const deviceId = process.env.DIFFQKV_TEST_DEVICE ?? 'cpu';
const long = Array.from({ length: 1000 }, (_, i) => i);
const settled = (promise) => promise.then(() => 'done', (error) => error.code);
const allowed = (outcome) => assert(['done', 'ERR_DISPOSED', 'ABORT_ERR'].includes(outcome), `unexpected outcome ${outcome}`);

const ways = {
  async leftOpen() {
    const device = await openDevice(deviceId);
    device.tensor('f32', [100]);
    const model = await Model.load(directory, { device });
    await (await model.createSession()).prefill([1, 2, 3]);
  },
  async disposeWhileRunning() {
    for (let round = 0; round < 10; round++) {
      const model = await Model.load(directory, { device: deviceId });
      const session = await model.createSession();
      const running = [settled(session.prefill(long)), settled(session.fork())];
      if (round % 2) await sleep(round);
      session.dispose();
      model.dispose();
      model.device.dispose();
      for (const outcome of await Promise.all(running)) allowed(outcome);
    }
  },
  async disposeTensorsWhileRunning() {
    const device = await openDevice(deviceId);
    for (let round = 0; round < 20; round++) {
      const x = device.tensor('f32', [512, 1024]);
      const weight = device.tensor('f32', [512, 1024]);
      const out = device.tensor('f32', [512, 512]);
      const running = [settled(kernels.matmul({ x, weight, out })), settled(out.read()), settled(x.write(new Float32Array(512 * 1024)))];
      for (const tensor of [x, weight, out]) tensor.dispose();
      for (const outcome of await Promise.all(running)) allowed(outcome);
    }
    const pending = settled(kernels.matmul({ x: device.tensor('f32', [512, 1024]), weight: device.tensor('f32', [512, 1024]) }));
    device.dispose();
    allowed(await pending);
  },
  async disposeWhileLoading() {
    for (let round = 0; round < 5; round++) {
      const device = await openDevice(deviceId);
      const loading = settled(Model.load(directory, { device }));
      await sleep(round * 3);
      device.dispose();
      allowed(await loading);
    }
  },
  async disposeWhileGenerating() {
    const model = await Model.load(directory, { device: deviceId });
    for (let round = 0; round < 5; round++) {
      const session = await model.createSession();
      const result = settled(model.generate('# tar\n', { maxTokens: 200, session }).result);
      await sleep(10 * round);
      session.dispose();
      allowed(await result);
    }
    const result = settled(model.generate('# tar\n', { maxTokens: 200 }).result);
    await sleep(10);
    model.dispose();
    allowed(await result);
  },
  async collectWhileRunning() {
    const device = await openDevice(deviceId);
    const running = [];
    for (let round = 0; round < 20; round++) {
      running.push(kernels.matmul({ x: device.tensor('f32', [256, 512]), weight: device.tensor('f32', [256, 512]) }).then((out) => out.read()));
      global.gc();
    }
    for (const values of await Promise.all(running)) assert(values.every((x) => x === 0));
    const model = await Model.load(directory, { device });
    const logits = (async () => (await model.createSession()).prefill(long))();
    for (let i = 0; i < 20; i++) {
      global.gc();
      await sleep(5);
    }
    assert((await logits).every(Number.isFinite));
  },
  async exitWhileRunning() {
    const model = await Model.load(directory, { device: deviceId });
    const session = await model.createSession();
    session.prefill(long);
    await sleep(2);
    console.log('{}');
    process.exit(0);
  },
  async unawaited() {
    const model = await Model.load(directory, { device: deviceId });
    let numTokens = 0;
    model.generate('# tar\n', { maxTokens: 60 }).result.then(({ tokens }) => {
      numTokens = tokens.length;
    });
    process.on('exit', () => assert.strictEqual(numTokens, 60));
  },
  async workers() {
    for (let round = 0; round < 12; round++) {
      const worker = new Worker(__filename, { workerData: { name: 'inWorker', directory } });
      await new Promise((resolve, reject) => {
        worker.once('message', resolve);
        worker.once('error', reject);
      });
      await sleep((round % 6) * 8); // loading, prefilling, decoding
      await worker.terminate();
    }
  },
  async inWorker() {
    parentPort.postMessage('started');
    for (;;) {
      const model = await Model.load(directory, { device: deviceId });
      const session = await model.createSession();
      await session.prefill(long.slice(0, 500));
      for (let i = 0; i < 20; i++) await session.decode(i);
      await model.generate('# tar\n', { maxTokens: 5 }).result;
    }
  },
  async workerLeftOpen() {
    const worker = new Worker(__filename, { workerData: { name: 'leftOpen', directory } });
    const code = await new Promise((resolve, reject) => {
      worker.once('exit', resolve);
      worker.once('error', reject);
    });
    assert.strictEqual(code, 0);
  },
};

/** Work of seconds, during which process.exit(3) or an error that nobody handles ends the process. */
const work = {
  load: () => {
    for (let i = 0; i < 20; i++) void Model.load(directory, { device: deviceId });
  },
  generate: (model) => {
    for (let i = 0; i < 50; i++) model.generate('# tar\n', { maxTokens: 900 });
  },
  prefill: async (model) => {
    const sessions = await Promise.all(Array.from({ length: 100 }, () => model.createSession()));
    for (const session of sessions) void session.prefill(long);
  },
  kernels: ({ device }) => {
    const x = device.tensor('f32', [2048, 2048]);
    for (let i = 0; i < 500; i++) void kernels.matmul({ x, weight: x });
  },
  encode: (model) => void model.tokenizer.encodeAsync('word '.repeat(2e7)),
};
for (const [kind, start] of Object.entries(work)) {
  ways[`${kind}ThenExit`] = async () => {
    await start(await Model.load(directory, { device: deviceId }));
    await sleep(50);
    process.on('exit', () => console.log(JSON.stringify({ exitedAt: Date.now() })));
    process.exit(3);
  };
}
ways.generateThenThrow = async () => {
  work.generate(await Model.load(directory, { device: deviceId }));
  await sleep(50);
  process.on('exit', () => console.log(JSON.stringify({ exitedAt: Date.now() })));
  void Promise.reject(new Error('nobody handles this'));
  await new Promise(() => {});
};

ways[name]().then(
  () => isMainThread && console.log('{}'),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
