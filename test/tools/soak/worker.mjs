// A worker of test/tools/soak.mjs: runs random actions on the built package, compares the results with
// those of one undisturbed run in the main thread, and is terminated at any moment. Messages: {
// done: action }, { calm: heap } if asked to pause, { failed: text }.

import { createRequire } from 'node:module';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { isMainThread, parentPort, workerData } from 'node:worker_threads';

const require = createRequire(import.meta.url);
const { Model, kernels, openDevice } = require('../../../dist/lib/index.js');

export const tokens = (length, seed = 5) => Array.from({ length }, (_, i) => (i * 37 + seed) % 500);
const lengths = [5, 70, 130, 700];
const sampling = { temperature: 0.8, topK: 30, seed: 7 };
const matrix = Float32Array.from({ length: 64 * 96 }, (_, i) => Math.sin(i) / 8);

async function multiply(device) {
  const x = device.tensor('bf16', [64, 96], matrix);
  const out = await kernels.matmul({ x, weight: x });
  const result = await out.read();
  x.dispose();
  out.dispose();
  return result;
}

/** The results that every action must return, whatever else runs. */
export async function expectations(directories, deviceId) {
  const device = await openDevice(deviceId);
  const product = await multiply(device);
  const models = [];
  for (const directory of directories) {
    const model = await Model.load(directory, { device });
    const generated = [];
    for (const length of lengths)
      generated.push((await model.generate(tokens(length), { ...sampling, maxTokens: 12 }).result).tokens);
    const session = await model.createSession();
    await session.prefill(tokens(100));
    models.push({ directory, generated, logits: await session.decode(9) });
  }
  device.dispose();
  return { models, product, deviceId };
}

function equal(a, b, what) {
  if (a.length !== b.length || a.some((x, i) => x !== b[i]))
    throw new Error(`${what} differs from the undisturbed run`);
}

/** Awaits a call that may be cut off. Returns undefined if it failed with one of these codes. */
async function unless(codes, promise) {
  try {
    return await promise;
  } catch (error) {
    if (codes.includes(error.code)) return undefined;
    throw error;
  }
}
const cutOff = ['ERR_DISPOSED', 'ABORT_ERR'];

async function work({ models, product, deviceId, seed, folder }) {
  let state = seed;
  const random = (limit) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 8) % limit;
  };
  setFlagsFromString('--expose-gc');
  const gc = runInNewContext('gc');
  let device = await openDevice(deviceId);
  const held = []; // { model, expected }
  let wantsCalm = false;
  parentPort.on('message', () => {
    wantsCalm = true;
  });
  const pick = () => held[random(held.length)];
  const generate = (one, index, options = {}) =>
    one.model.generate(tokens(lengths[index]), { ...sampling, maxTokens: 12, ...options });

  const actions = {
    async load() {
      if (held.length > 2) held.splice(random(held.length), 1)[0].model.dispose();
      const expected = models[random(models.length)];
      const onDevice = random(3) > 0 ? device : deviceId;
      held.push({ expected, model: await Model.load(expected.directory, { device: onDevice }) });
    },
    async loadAborted() {
      const directory = models[random(models.length)].directory;
      const loading = Model.load(directory, { device, signal: AbortSignal.timeout(random(20)) });
      (await unless(cutOff, loading))?.dispose();
    },
    async generate() {
      const [one, index] = [pick(), random(lengths.length)];
      equal((await generate(one, index).result).tokens, one.expected.generated[index], 'a generation');
    },
    async generateMany() {
      const one = pick();
      const controller = new AbortController();
      const running = lengths.map(
        (_, index) => generate(one, index, index % 2 ? { signal: controller.signal } : {}).result,
      );
      setTimeout(() => controller.abort(), random(60));
      (await Promise.all(running)).forEach((result, index) => {
        const whole = one.expected.generated[index];
        equal(
          result.tokens,
          result.finishReason === 'abort' ? whole.slice(0, result.tokens.length) : whole,
          'one of many',
        );
      });
    },
    async generateLimited() {
      const { expected } = pick();
      const model = await Model.load(expected.directory, { device, kvCacheBytes: 1 << 19, prefixCacheBytes: 1 << 18 });
      const running = [1, 2, 2, 3].map((index) => unless(['ERR_KV_CACHE_FULL'], generate({ model }, index).result));
      for (const result of await Promise.all(running)) {
        if (result && result.tokens.length !== 12 && result.finishReason !== 'stop') throw new Error('too few tokens');
      }
      model.dispose();
    },
    async leave() {
      for await (const { token } of generate(pick(), random(lengths.length))) if (token % 3 === 0) break;
    },
    async fork() {
      const { model, expected } = pick();
      const session = await model.createSession();
      await session.prefill(tokens(100));
      const forks = await Promise.all([session.fork(), session.fork(), session.fork()]);
      forks[2].dispose();
      await forks[0].prefill(tokens(80, 1));
      equal(await session.decode(9), expected.logits, 'a session next to its forks');
      equal(await forks[1].decode(9), expected.logits, 'a fork');
      session.dispose();
      if (random(2)) forks[1].dispose(); // else the garbage collector disposes it
    },
    async truncate() {
      const { model, expected } = pick();
      const session = await model.createSession();
      const length = 101 + random(100);
      await session.prefill([...tokens(100), ...tokens(length - 100, 3)]);
      await session.truncate(100);
      equal(await session.decode(9), expected.logits, 'a session after truncate');
      session.dispose();
    },
    async save() {
      const { model, expected } = pick();
      const session = await model.createSession();
      await session.prefill(tokens(100));
      const file = join(folder, `${random(4)}`); // other workers replace it meanwhile
      const controller = new AbortController();
      if (random(3) === 0) setTimeout(() => controller.abort(), random(5));
      await unless(cutOff, session.save(file, { signal: controller.signal }));
      // The file may be of another model, or none may exist yet.
      const loaded = await unless(
        ['ERR_SESSION_FILE', 'ABORT_ERR'],
        model.loadSession(file, { signal: controller.signal }),
      );
      if (loaded) equal(await loaded.decode(9), expected.logits, 'a loaded session');
      session.dispose();
      loaded?.dispose();
    },
    async disposeSession() {
      const session = await pick().model.createSession();
      const running = [unless(cutOff, session.prefill(tokens(600))), unless(cutOff, session.fork())];
      await sleep(random(10));
      session.dispose();
      await Promise.all(running);
    },
    async disposeModel() {
      const [one] = held.splice(random(held.length), 1);
      const running = [1, 3].map((index) => unless(cutOff, generate(one, index).result));
      running.push(unless(cutOff, one.model.createSession()));
      await sleep(random(30));
      one.model.dispose();
      await Promise.all(running);
    },
    async disposeDevice() {
      const running = [unless(cutOff, multiply(device)), unless(cutOff, Model.load(models[0].directory, { device }))];
      await sleep(random(5));
      device.dispose();
      await Promise.all(running);
      for (const { model } of held.splice(0)) model.dispose();
      device = await openDevice(deviceId);
    },
    async kernels() {
      for (const result of await Promise.all([multiply(device), multiply(device)])) equal(result, product, 'a product');
    },
    async forget() {
      held.pop(); // the garbage collector disposes it and its sessions
      gc();
    },
  };
  const names = Object.keys(actions);
  for (;;) {
    if (wantsCalm) {
      wantsCalm = false;
      for (const { model } of held.splice(0)) model.dispose();
      device.dispose();
      for (let i = 0; i < 6; i++) {
        gc();
        await sleep(10);
      }
      parentPort.postMessage({ calm: process.memoryUsage().heapTotal });
      await new Promise((resolve) => parentPort.once('message', resolve));
      wantsCalm = false;
      device = await openDevice(deviceId);
    }
    const name = held.length === 0 ? 'load' : names[random(names.length)];
    await actions[name]();
    parentPort.postMessage({ done: name });
  }
}

if (!isMainThread) work(workerData).catch((error) => parentPort.postMessage({ failed: String(error.stack) }));
