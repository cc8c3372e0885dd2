// Makes each allocation of the native module in one piece of work fail: only this one, or also all
// later ones. The work must succeed or fail with ERR_OUT_OF_MEMORY, and the objects that it uses
// must be unchanged. Prints for both ways { allocations, tried, refused }: the number of
// allocations in the work, of runs with a failed allocation, and of runs that rejected.
// Runs with test/faults/fail_allocation.cc preloaded.
//   node --expose-gc out_of_memory.cjs NAME MODEL_DIRECTORY TRIALS
// TRIALS: how many allocations are tried at most
const { mkdtempSync, openSync, readdirSync, readSync, rmSync, writeSync } = require('node:fs');
const { tmpdir } = require('node:os');
const { join } = require('node:path');
const assert = require('node:assert');
const { Model, kernels, openDevice } = require('../../dist/lib/index.js');

const [name, directory, trials] = process.argv.slice(2);
const folder = mkdtempSync(join(tmpdir(), 'diffqkv-memory-'));
process.on('exit', () => rmSync(folder, { recursive: true }));
const file = openSync(process.env.FAIL_ALLOCATION_FILE, 'r+');

/** `first`: the number of the allocation that fails, from 1; 0: none. */
function fail(first, times) {
  const trace = process.env.FAIL_ALLOCATION_TRACE ? 1n : 0n;
  writeSync(file, new BigInt64Array([0n]), 0, 8, 0); // off, while the other fields change
  writeSync(file, new BigInt64Array([BigInt(times), 0n, 0n, trace]), 0, 32, 8);
  writeSync(file, new BigInt64Array([BigInt(first)]), 0, 8, 0);
}

function counts() {
  const [seen, failed] = [new BigInt64Array(1), new BigInt64Array(1)];
  readSync(file, seen, 0, 8, 16);
  readSync(file, failed, 0, 8, 24);
  return { seen: Number(seen[0]), failed: Number(failed[0]) };
}

const random = (length, seed = 1) => Float32Array.from({ length }, (_, i) => Math.sin(i * 12.9898 + seed) / 8);
const tokens = (length) => Array.from({ length }, (_, i) => (i * 37 + 5) % 120);
const same = (a, b) => assert.deepStrictEqual(a, b);

async function everyKernel(device) {
  const t = (shape, seed, dtype = 'bf16') => device.tensor(dtype, shape, random(shape.reduce((a, b) => a * b, 1), seed));
  const results = [];
  const keep = async (out) => results.push(await out.read());
  for (const rows of [3, 40]) {
    const x = t([rows, 64]);
    const w = t([96, 64]);
    await keep(await kernels.matmul({ x, weight: w }));
    await keep(await kernels.matmul({ x: t([rows, 64], 2, 'f16'), weight: t([96, 64], 3, 'f16') }));
    await keep(await kernels.augmentedQ({ x, gate: w, up: w, down: t([64, 96]) }));
    await keep(await kernels.rmsNorm({ x, weight: t([64], 4, 'f32'), eps: 1e-5 }));
    await keep(await kernels.rope({ x: t([rows, 2, 32]), positions: device.tensor('i32', [rows]), theta: 10000 }));
    const { values, scales } = await kernels.quantize({ x: t([rows, 2, 32]), dtype: 'i8' });
    await keep(values);
    await keep(scales);
  }
  const [q, k, v] = [t([1, 70, 4, 32]), t([1, 300, 2, 32]), t([1, 300, 4, 32])];
  await keep(await kernels.attentionPrefill({ q, k, v, causal: true }));
  const one = t([1, 4, 32]);
  await keep(await kernels.attentionDecode({ q: one, k, v }));
  await keep(await kernels.attentionDecode({ q: one, k, v, selectiveV: { topK: 20 } }));
  return results;
}

/**
 * A device, a model and a session that the work does not touch. They must return correct results
 * throughout.
 */
async function bystander() {
  const device = await openDevice('cpu');
  const model = await Model.load(directory, { device });
  const session = await model.createSession();
  await session.prefill(tokens(70));
  const read = async () => {
    const logits = await session.decode(7);
    await session.truncate(70);
    return logits;
  };
  const expected = await read();
  return async () => same(await read(), expected);
}

const options = { temperature: 0.9, topK: 20, seed: 3, repetitionPenalty: 1.1, maxTokens: 8 };
const generateAll = (model) =>
  Promise.all([70, 71, 5].map((length) => model.generate(tokens(length), options).result.then((result) => result.tokens)));

// `start` creates the objects that the work uses; `work` may fail; `after` checks that all is
// unchanged, and disposes. `work` must return what it returned the first time.
const ways = {
  open: {
    start: async () => ({}),
    work: async (state) => {
      state.device = await openDevice('cpu');
      const x = state.device.tensor('f32', [20, 8], random(160));
      return (await kernels.matmul({ x, weight: x })).read();
    },
    after: async ({ device }) => device?.dispose(),
  },
  tensors: {
    start: async () => {
      const device = await openDevice('cpu');
      const kept = device.tensor('bf16', [600000], random(600000));
      await device.synchronize(); // else the buffer is filled while the work runs
      return { device, kept };
    },
    work: async ({ device, kept }) => {
      const a = device.tensor('f16', [600000], random(600000));
      const b = device.tensor('i8', [5], Int8Array.of(1, 2, 3, 4, 5));
      const back = await Promise.all([a.read(), b.read(), kept.read()]);
      await a.write(random(600000, 2));
      const ms = await device.time(() => {});
      assert(ms >= 0);
      a.dispose();
      return back;
    },
    after: async ({ device, kept }, expected) => {
      same(await kept.read(), expected[2]);
      device.dispose();
    },
  },
  kernels: {
    // A new device: scratch memory and compiled products are cached.
    start: async () => ({ device: await openDevice('cpu') }),
    work: ({ device }) => everyKernel(device),
    after: async ({ device }, expected) => {
      same(await everyKernel(device), expected);
      device.dispose();
    },
  },
  load: {
    start: async () => ({ device: await openDevice('cpu') }),
    work: async (state) => {
      state.model = await Model.load(directory, { device: state.device, onProgress: () => {} });
      return state.model.config;
    },
    after: async ({ device }) => {
      const model = await Model.load(directory, { device });
      assert((await (await model.createSession()).prefill([1, 2, 3])).every(Number.isFinite));
      device.dispose();
    },
  },
  session: {
    start: async () => {
      const model = await Model.load(directory, { device: 'cpu' });
      const session = await model.createSession({ vType: 'i8' });
      await session.prefill(tokens(100));
      return { model, session, held: await session.fork() };
    },
    work: async (state) => {
      const { model, session, held } = state;
      const own = await model.createSession();
      await own.prefill(tokens(20));
      const fork = await session.fork();
      const forked = await fork.decode(3); // copies the shared page
      const long = await held.prefill(tokens(90)); // more pages
      return [forked, long, await session.decode(3)];
    },
    after: async ({ model, session, held }, expected) => {
      if (session.kvLen > 100) await session.truncate(100);
      if (held.kvLen > 100) await held.truncate(100);
      same([session.kvLen, held.kvLen], [100, 100]);
      same([await session.decode(3), await held.prefill(tokens(90))], [expected[0], expected[1]]);
      session.dispose();
      held.dispose();
      model.dispose();
      model.device.dispose();
    },
  },
  save: {
    start: async () => {
      const model = await Model.load(directory, { device: 'cpu' });
      const session = await model.createSession({ vType: 'i8' });
      await session.prefill(tokens(100));
      return { model, session };
    },
    work: async (state) => {
      await state.session.save(join(folder, 'session'));
      state.loaded = await state.model.loadSession(join(folder, 'session'));
      return state.loaded.decode(3);
    },
    after: async ({ model, session, loaded }, expected) => {
      same(readdirSync(folder).filter((name) => name !== 'session'), []);
      same(session.kvLen, 100);
      same(await session.decode(3), expected);
      session.dispose();
      loaded?.dispose();
      await model.device.synchronize();
      same(model.kvCache.pages, 0);
      model.dispose();
      model.device.dispose();
      rmSync(join(folder, 'session'), { force: true });
    },
  },
  generate: {
    start: async () => ({ model: await Model.load(directory, { device: 'cpu', prefixCacheBytes: 1 << 20 }) }),
    work: async (state) => {
      const outcomes = await Promise.allSettled(
        [70, 71, 5].map((length) => state.model.generate(tokens(length), options).result.then((result) => result.tokens)),
      );
      const failed = outcomes.find(({ status }) => status === 'rejected');
      if (failed) throw failed.reason;
      return outcomes.map(({ value }) => value);
    },
    after: async ({ model }, expected) => {
      same(await generateAll(model), expected);
      await model.device.synchronize();
      for (let i = 0; i < 2; i++) await new Promise(setImmediate);
      await model.device.synchronize();
      same(model.kvCache.pages, model.kvCache.prefixPages); // no session has kept one
      model.dispose();
      model.device.dispose();
    },
  },
  verify: {
    start: async () => {
      const model = await Model.load(directory, { device: 'cpu' });
      const sessions = await Promise.all([1, 2, 3].map(() => model.createSession()));
      for (const session of sessions) await session.prefill(tokens(62));
      return { model, sessions };
    },
    // Generations that verify proposals in the passes of one that does not.
    work: async ({ model, sessions }) => {
      const results = await Promise.all(
        sessions.map((session, i) => {
          const speculative = i === 0 ? undefined : { ngram: 1 };
          return model.generate([1, 2, 1, 2, 1], { maxTokens: 6, seed: 1, session, speculative }).result;
        }),
      );
      return results.map((result) => result.tokens);
    },
    after: async ({ model, sessions }, expected) => {
      for (const [i, session] of sessions.entries()) {
        await session.truncate(62);
        same((await model.generate([1, 2, 1, 2, 1], { maxTokens: 6, session }).result).tokens, expected[i]);
        session.dispose();
      }
      await model.device.synchronize();
      same(model.kvCache.pages, 0);
      model.dispose();
      model.device.dispose();
    },
  },
  rows: {
    start: async () => ({ model: await Model.load(directory, { device: 'cpu' }) }),
    work: async ({ model }) => {
      const { logprobs } = await model.score(tokens(90));
      const [mean] = await model.embed([tokens(70)], { pooling: 'mean' });
      const drawn = await model.generate(tokens(5), { ...options, logprobs: 3 }).result;
      return [logprobs, mean, drawn.logprobs];
    },
    after: async ({ model }, expected) => {
      same((await model.score(tokens(90))).logprobs, expected[0]);
      await model.device.synchronize();
      same(model.kvCache.pages, 0);
      model.dispose();
      model.device.dispose();
    },
  },
};

async function main() {
  const { start, work, after } = ways[name];
  const check = await bystander();
  const first = await start();
  const expected = await work(first);
  await after(first, expected);
  const run = async (number, times) => {
    const state = await start();
    fail(number, times);
    const error = await work(state).then(
      (result) => void same(result, expected),
      (reason) => reason,
    );
    const { seen, failed } = counts();
    fail(0, 0);
    if (error !== undefined && error.code !== 'ERR_OUT_OF_MEMORY') throw new Error(`allocation ${number}, ${times} times`, { cause: error });
    if (error !== undefined) assert(failed > 0);
    await after(state, expected);
    await check();
    return { seen, failed: failed > 0, refused: error !== undefined };
  };
  const outcome = {};
  for (const [label, times] of [['once', 1], ['from then on', 1e9]]) {
    const { seen: allocations } = await run(1e9, 1);
    let tried = 0;
    let refused = 0;
    // Tries at most `trials` allocations, evenly spread.
    const step = Math.max(1, Math.ceil(allocations / Number(trials)));
    for (let number = 1; number <= allocations; number += step) {
      const result = await run(number, times);
      if (result.failed) tried++;
      if (result.refused) refused++;
      if (number % (8 * step) === 1) global.gc();
    }
    outcome[label] = { allocations, tried, refused };
  }
  console.log(JSON.stringify(outcome));
  process.exit(0);
}

main().catch((error) => {
  fail(0, 0);
  console.error(error);
  process.exit(1);
});
