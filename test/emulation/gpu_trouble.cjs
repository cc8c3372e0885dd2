// Causes a GPU problem, selected by name, on the emulated device. Prints what happened.
//   node gpu_trouble.cjs NAME MODEL_DIRECTORY
const { Model, kernels, openDevice } = require('../../dist/lib/index.js');
const { addon } = require('../../dist/lib/addon.js');

const [name, directory] = process.argv.slice(2);

async function errorOf(work) {
  try {
    await work();
  } catch (error) {
    return { code: error.code, message: error.message };
  }
  return null;
}

const values = Float32Array.from({ length: 1000 }, (_, i) => i / 500 - 1);
async function gatedActivation(device) {
  const x = device.tensor('f32', [1000], values);
  return [...(await (await kernels.gatedActivation({ gate: x, up: x })).read())];
}

const troubles = {
  async choose() {
    const auto = await openDevice('auto');
    return { auto: auto.id, cuda: await openDevice('cuda').then(({ id }) => id, ({ code }) => code) };
  },

  async lost() {
    const device = await openDevice('emulated');
    const x = device.tensor('f32', [1000], values);
    const other = await openDevice('emulated').catch(() => undefined);
    // DIFFQKV_EMULATED_FAIL_LAUNCH selects the failing launch by its number. It is one of these
    // calls.
    let first = null;
    for (let i = 0; i < 6 && first === null; i++) first = await errorOf(() => gatedActivation(device));
    const later = [];
    for (const work of [
      () => x.read(),
      () => x.write(values),
      () => device.synchronize(),
      () => kernels.gatedActivation({ gate: x, up: x }),
      () => device.tensor('f32', [3]),
      () => device.time(() => {}),
      () => Model.load(directory, { device }),
      () => (other ?? device).synchronize(),
    ]) {
      later.push(await errorOf(work));
    }
    const again = await openDevice('emulated');
    x.dispose();
    device.dispose();
    const result = await gatedActivation(again);
    other?.dispose();
    const expected = await gatedActivation(await openDevice('cpu'));
    return { first, later, difference: Math.max(...result.map((x, i) => Math.abs(x - expected[i]))) };
  },

  async generate() {
    const model = await Model.load(directory, { device: 'emulated' });
    const tokens = async (options) => (await model.generate([1, 2, 3], { maxTokens: 20, ...options }).result).tokens;
    const alone = await tokens({ temperature: 0 });
    const together = await Promise.all([
      tokens({ temperature: 1, seed: 3 }),
      tokens({ temperature: 1, seed: 4, repetitionPenalty: 1.2 }),
    ]);
    const graphs = model.decodeGraphs;
    model.dispose();
    return { tokens: [alone, ...together], graphs };
  },

  /** Two devices on one GPU: the larger heads of K need more shared memory in the same kernel. */
  async twoDevices() {
    const { fault } = addon().emulation;
    const kvLen = 40;
    const numbers = (length) => Float32Array.from({ length }, (_, i) => Math.sin(i) / 10);
    const open = async (dim, id) => {
      const device = await openDevice(id);
      const q = device.tensor('bf16', [1, 8, dim], numbers(8 * dim));
      const k = device.tensor('bf16', [1, kvLen, 1, dim], numbers(kvLen * dim));
      const v = device.tensor('bf16', [1, kvLen, 2, 64], numbers(kvLen * 2 * 64));
      return async () => (await kernels.attentionDecode({ q, k, v })).read();
    };
    const decodes = [await open(32, 'emulated'), await open(256, 'emulated')];
    const expected = await Promise.all([32, 256].map(async (dim) => (await open(dim, 'cpu'))()));
    fault('cudaFuncSetAttribute', 0, 0, 0);
    const results = await Promise.all(
      decodes.map(async (decode) => {
        const all = await Promise.all(Array.from({ length: 100 }, decode));
        return { all, last: await decode() };
      }),
    );
    const attributeCalls = fault('', 0, 0, 0);
    const difference = (a, b) => Math.max(...[...a].map((x, i) => Math.abs(x - b[i])));
    const differences = results.map(({ all, last }) => Math.max(...all.map((one) => difference(one, last))));
    const errors = results.map(({ last }, i) => difference(last, expected[i]));
    return { differences, errors, attributeCalls };
  },

  async lostModel() {
    const options = { maxTokens: 12 };
    const generate = async (device) => {
      const model = await Model.load(directory, { device });
      const { tokens } = await model.generate([1, 2, 3], options).result;
      return tokens;
    };
    const device = await openDevice('emulated');
    const error = await errorOf(() => generate(device));
    device.dispose();
    return { error, again: await generate(await openDevice('emulated')), expected: await generate(await openDevice('cpu')) };
  },

  async outOfMemory() {
    const device = await openDevice('emulated');
    let error = null;
    const fill = async () => {
      const held = [];
      error = await errorOf(async () => {
        for (;;) {
          held.push(device.tensor('f32', [1 << 22]));
          await device.synchronize();
        }
      });
      return held;
    };
    const held = await fill();
    const read = (await held[0].read()).length;
    for (const tensor of held) tensor.dispose();
    await device.synchronize();
    return { error, read, held: held.length, afterwards: (await fill()).length };
  },

  async modelTooLarge() {
    const device = await openDevice('emulated');
    const error = await errorOf(() => Model.load(directory, { device }));
    return { error, read: [...(await device.tensor('f32', [2], Float32Array.of(1, 2)).read())] };
  },

  async findings() {
    const device = await openDevice('emulated');
    const table = device.tensor('f32', [4, 2], new Float32Array(8).fill(2));
    const embed = (...tokens) => kernels.embed({ table, tokens: device.tensor('i32', [tokens.length], Int32Array.from(tokens)) });
    await embed(0, 77);
    const late = await embed(99, 0);
    return { first: await errorOf(() => late.read()), second: [...(await (await embed(3)).read())] };
  },

  async copies() {
    const device = await openDevice('emulated');
    const wrong = [];
    // Sizes around that of a piece of a copy, 4 MiB, and many small ones in a row.
    for (const length of [1, 63, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 * (1 << 20) + 7]) {
      const data = Float32Array.from({ length }, (_, i) => i % 1000003);
      const tensor = device.tensor('f32', [length], data);
      data.fill(-1);
      const back = await tensor.read();
      for (let i = 0; i < length; i++) {
        if (back[i] === i % 1000003) continue;
        wrong.push([length, i, back[i]]);
        break;
      }
      tensor.dispose();
    }
    const many = Array.from({ length: 500 }, (_, i) => device.tensor('f32', [3000], new Float32Array(3000).fill(i)));
    for (const [i, tensor] of many.entries()) {
      const back = await tensor.read();
      if (!back.every((x) => x === i)) wrong.push(['many', i, back[0]]);
    }
    return { wrong };
  },
};

troubles[name]().then(
  (outcome) => {
    console.log(JSON.stringify(outcome));
  },
  (error) => {
    console.error(error);
    process.exitCode = 1;
  },
);
