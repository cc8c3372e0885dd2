// Injects GPU faults into the emulated CUDA runtime during a model's work and checks the outcome.
// Prints the number of trials. Needs the tests' module (DIFFQKV_MODULE).
//   node device_lost.cjs NAME MODEL_DIRECTORY TRIALS     TRIALS: most places tried per kind of call
const assert = require('node:assert');
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');
const { Model, kernels, openDevice } = require('../../dist/lib/index.js');
const { addon } = require('../../dist/lib/addon.js');

const [name, directory, trials] = isMainThread ? process.argv.slice(2) : workerData;
const { fault } = addon().emulation;
const kOff = ['', 0, 0, 0];
const kOutOfMemory = 2;
const kIllegalAddress = 700;
const kOutOfResources = 701; // a launch that asks for too much: a temporary error
const kLaunchFailure = 719;

const tokens = (length) => Array.from({ length }, (_, i) => (i * 37 + 5) % 120);
const options = { temperature: 0.9, topK: 20, seed: 3, repetitionPenalty: 1.1, maxTokens: 3 };
const values = Float32Array.from({ length: 500 }, (_, i) => i / 250 - 1);
const errorOf = (promise) => promise.then(() => undefined, (error) => error);
const thrown = async (work) => errorOf((async () => work())());

async function gatedActivation(device) {
  const x = device.tensor('f32', [500], values);
  const y = await kernels.gatedActivation({ gate: x, up: x });
  const result = await y.read();
  x.dispose();
  y.dispose();
  return result;
}

/** A device, a model, and a session that decodes while two generations run. */
async function work(state) {
  state.device = await openDevice('emulated');
  state.model = await Model.load(directory, { device: state.device, prefixCacheBytes: 1 << 20 });
  state.session = await state.model.createSession();
  const running = [
    state.session.prefill(tokens(70)),
    ...[70, 5].map((length) => state.model.generate(tokens(length), options).result.then((result) => result.tokens)),
    gatedActivation(state.device),
    state.device.time(() => {}).then((ms) => ms >= 0),
  ];
  const outcomes = await Promise.allSettled(running);
  const failed = outcomes.filter(({ status }) => status === 'rejected');
  if (failed.length > 0) throw Object.assign(failed[0].reason, { all: failed.map(({ reason }) => reason) });
  return outcomes.map(({ value }) => value);
}

function end({ device, model, session }) {
  session?.dispose();
  model?.dispose();
  device?.dispose();
}

/** How often the work calls each function without a fault. */
async function callsOf(calls) {
  const counts = {};
  for (const call of calls) {
    const state = {};
    fault(call, 0, 0, 0);
    await work(state);
    counts[call] = fault(...kOff);
    end(state);
  }
  return counts;
}

function* places(count) {
  const step = Math.max(1, Math.ceil(count / Number(trials)));
  for (let place = 1; place <= count; place += step) yield place;
}

function isLost(error) {
  assert.strictEqual(error?.code, 'ERR_DEVICE_UNAVAILABLE', String(error?.stack));
  assert.match(error.message, /\blost\b.*: start the process again$/);
}

const ways = {
  /**
   * A permanent fault: the call that meets it loses the device for everything on it, and nothing
   * else.
   */
  async lost() {
    const cpu = await openDevice('cpu');
    const onCpu = await gatedActivation(cpu);
    const clean = {};
    const expected = await work(clean);
    end(clean);
    const kinds = { kernel: kLaunchFailure, cudaLaunchKernelEx: kLaunchFailure, cudaMemcpyAsync: kIllegalAddress, cudaMallocAsync: kIllegalAddress, cudaEventRecord: kLaunchFailure, cudaEventSynchronize: kLaunchFailure, cudaStreamSynchronize: kLaunchFailure, cudaHostAlloc: kIllegalAddress };
    const counts = await callsOf(Object.keys(kinds));
    let tried = 0;
    for (const [call, status] of Object.entries(kinds)) {
      assert(counts[call] > 0, call);
      for (const place of places(counts[call])) {
        const other = await openDevice('emulated'); // another device object for the same GPU
        const state = {};
        fault(call, place, 1, status);
        const [error, meanwhile] = await Promise.all([errorOf(work(state)), gatedActivation(cpu)]);
        fault(...kOff);
        assert.deepStrictEqual(meanwhile, onCpu);
        if (error === undefined) {
          // The fault hit the opening of `other`, or no call in this run.
          end(state);
          other.dispose();
          continue;
        }
        tried++;
        for (const one of error.all ?? [error]) isLost(one);
        // Everything later on that device must fail too.
        isLost(await thrown(() => other.synchronize()));
        isLost(await thrown(() => gatedActivation(other)));
        if (state.session) {
          isLost(await thrown(() => state.session.decode(1)));
          isLost(await thrown(() => state.session.prefill([1, 2])));
          isLost(await thrown(() => state.model.generate([1, 2], options).result));
          isLost(await thrown(async () => (await state.session.fork()).prefill([1])));
          isLost(await thrown(() => Model.load(directory, { device: state.device })));
          isLost(await thrown(() => state.device.tensor('f32', [3]).read()));
          isLost(await thrown(() => state.device.time(() => {})));
        }
        // In half of the cases the old device is released only after the new one exists.
        if (place % 2) end(state);
        const again = {};
        assert.deepStrictEqual(await work(again), expected, `after ${call} ${place}`);
        if (place % 2 === 0) end(state);
        other.dispose();
        assert.deepStrictEqual(await gatedActivation(again.device), expected[3]);
        end(again);
      }
    }
    assert.deepStrictEqual(await gatedActivation(cpu), onCpu);
    return { tried, counts };
  },

  /**
   * The device cannot be opened again: the reset fails, or it succeeds although the GPU still
   * fails, which CUDA allows in the same process.
   */
  async notBack() {
    const expected = await gatedActivation(await openDevice('cpu'));
    const ways = { cudaDeviceReset: 1, cudaSetDevice: 2 }; // the first cudaSetDevice is for the reset
    for (const [call, place] of Object.entries(ways)) {
      const device = await openDevice('emulated');
      fault('kernel', 1, 1, kIllegalAddress);
      isLost(await thrown(() => gatedActivation(device)));
      for (let times = 0; times < 2; times++) {
        fault(call, place, 1, kIllegalAddress);
        const error = await thrown(() => openDevice('emulated'));
        isLost(error);
        assert.match(error.message, call === 'cudaDeviceReset' ? /a reset does not bring it back/ : /cudaSetDevice/);
        isLost(await thrown(() => gatedActivation(device)));
      }
      fault(...kOff);
      const again = await openDevice('emulated');
      const found = await gatedActivation(again);
      assert(found.every((x, i) => Math.abs(x - expected[i]) < 1e-6));
      again.dispose();
      device.dispose();
    }
    return { tried: Object.keys(ways).length };
  },

  /** A launch that the GPU rejects fails only its own call. */
  async refused() {
    const clean = {};
    const expected = await work(clean);
    const count = (await callsOf(['cudaLaunchKernelEx'])).cudaLaunchKernelEx;
    let tried = 0;
    for (const place of places(count)) {
      const state = {};
      fault('cudaLaunchKernelEx', place, 1, kOutOfResources);
      const error = await errorOf(work(state));
      fault(...kOff);
      assert.strictEqual(error?.code, 'ERR_DEVICE_UNAVAILABLE', String(error?.stack));
      tried++;
      if (state.session) {
        const length = state.session.kvLen;
        assert([0, 70].includes(length));
        await state.session.truncate(0);
        assert.deepStrictEqual(await state.session.prefill(tokens(70)), expected[0]);
        assert.deepStrictEqual(await gatedActivation(state.device), expected[3]);
      }
      end(state);
      assert.deepStrictEqual(await gatedActivation(clean.device), expected[3]);
    }
    return { tried, count };
  },

  /**
   * Without memory the calls that asked for it fail with ERR_OUT_OF_MEMORY. Everything else is
   * unchanged, and freed memory can be allocated again.
   */
  async outOfMemory() {
    const clean = {};
    const expected = await work(clean);
    const counts = await callsOf(['cudaMallocAsync', 'cudaHostAlloc']);
    let tried = 0;
    let refused = 0;
    for (const call of Object.keys(counts)) {
      // Once: the backend waits for the stream, tries again and succeeds. Twice: that call fails.
      // 1e9: all calls fail.
      for (const times of [1, 2, 1e9]) {
        for (const place of places(counts[call])) {
          const state = {};
          fault(call, place, times, kOutOfMemory);
          const error = await errorOf(work(state));
          fault(...kOff);
          tried++;
          if (error !== undefined) {
            refused++;
            for (const one of error.all ?? [error]) assert.strictEqual(one.code, 'ERR_OUT_OF_MEMORY', String(one.stack));
          } else {
            assert(call === 'cudaMallocAsync' && times === 1, `${call} ${place}: no call reported the fault`);
          }
          if (state.session) {
            assert([0, 70].includes(state.session.kvLen));
            await state.session.truncate(0);
            assert.deepStrictEqual(await state.session.prefill(tokens(70)), expected[0]);
            const { tokens: drawn } = await state.model.generate(tokens(5), options).result;
            assert.deepStrictEqual(drawn, expected[2]);
          }
          if (state.device) assert.deepStrictEqual(await gatedActivation(state.device), expected[3]);
          end(state);
          assert.deepStrictEqual(await gatedActivation(clean.device), expected[3]);
        }
      }
    }
    return { tried, refused, counts };
  },

  /**
   * A worker's device is lost together with the main thread's. The worker continues and opens it
   * again.
   */
  async workers() {
    const workers = Array.from({ length: 3 }, () => new Worker(__filename, { argv: [], workerData: ['inWorker', directory, trials] }));
    const next = (worker) =>
      new Promise((resolve, reject) => {
        worker.once('message', resolve);
        worker.once('error', reject);
      });
    await Promise.all(workers.map(next)); // all have opened the device
    const state = {};
    fault('kernel', 20, 1, kLaunchFailure);
    isLost(await errorOf(work(state)));
    fault(...kOff);
    end(state);
    const done = workers.map(next);
    for (const worker of workers) worker.postMessage('go on');
    const lost = await Promise.all(done);
    await Promise.all(workers.map((worker) => worker.terminate()));
    return { tried: lost.length };
  },
  async inWorker() {
    const [device, cpu] = [await openDevice('emulated'), await openDevice('cpu')];
    const [before, onCpu] = [await gatedActivation(device), await gatedActivation(cpu)];
    const goOn = new Promise((resolve) => parentPort.once('message', resolve));
    parentPort.postMessage('open');
    await goOn;
    isLost(await thrown(() => gatedActivation(device)));
    assert.deepStrictEqual(await gatedActivation(cpu), onCpu);
    device.dispose();
    // The other workers may open and reset the device at the same time.
    assert.deepStrictEqual(await gatedActivation(await openDevice('emulated')), before);
    parentPort.postMessage('done');
  },
};

ways[name]().then(
  (outcome) => isMainThread && console.log(JSON.stringify(outcome)),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
