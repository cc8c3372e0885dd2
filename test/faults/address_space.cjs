// Runs a model's whole life under limits of the address space (what `ulimit -v` sets), from hardly
// any room to enough. The limit starts in a process that has already run, so V8 has what it needs.
// Each step succeeds or fails with ERR_OUT_OF_MEMORY, and without the limit the same device can do
// all of it. Prints { steps: [[MB of room, outcome, ...], ...], byV8 }. byV8: how often V8 itself,
// which needs memory too, ended the process.
//   node --expose-gc address_space.cjs MODEL_DIRECTORY MB [MB ...]
const { execFileSync, fork } = require('node:child_process');
const { readFileSync } = require('node:fs');
const assert = require('node:assert');

const [directory, ...rooms] = process.argv.slice(2);
const tokens = (length) => Array.from({ length }, (_, i) => (i * 37 + 5) % 120);

/** Starts one process per amount of room. This process sets and removes the limit from outside. */
function main() {
  const steps = [];
  let byV8 = 0;
  const next = () => {
    if (steps.length + byV8 === rooms.length) return console.log(JSON.stringify({ steps, byV8 }));
    const room = rooms[steps.length + byV8];
    const child = fork(__filename, [directory, room], { env: { ...process.env, IN_CHILD: '1' }, silent: true });
    let stderr = '';
    let outcome;
    child.stderr.setEncoding('utf8').on('data', (text) => {
      stderr += text;
    });
    child.on('message', (message) => {
      if (message.limit !== undefined) {
        execFileSync('prlimit', ['--pid', String(child.pid), `--as=${message.limit}:unlimited`]);
        child.send('done');
      } else {
        outcome = message.outcome;
      }
    });
    child.on('close', (status, signal) => {
      if (status === 0 && outcome) steps.push([Number(room), ...outcome]);
      else if (/^.*(FATAL ERROR|Fatal process out of memory|Fatal JavaScript out of memory)/m.test(stderr)) byV8++;
      else {
        console.error(`with ${room} MB of room: ${status ?? signal}\n${stderr}`);
        process.exit(1);
      }
      next();
    });
  };
  next();
}

async function inChild() {
  const { Model, kernels, openDevice } = require('../../dist/lib/index.js');
  const limit = (bytes) =>
    new Promise((resolve) => {
      process.once('message', resolve);
      process.send({ limit: bytes });
    });
  const big = 6 << 20; // floats: 24 MB
  const work = {
    open: (at) => openDevice('cpu').then((device) => Object.assign(at, { device })),
    tensor: async ({ device }) => {
      const x = device.tensor('bf16', [big]);
      await device.synchronize();
      x.dispose();
    },
    kernel: async ({ device }) => {
      const x = device.tensor('f32', [40, 64], new Float32Array(2560).fill(0.5));
      const y = await kernels.matmul({ x, weight: x });
      assert((await y.read()).every((value) => value === 16));
      x.dispose();
      y.dispose();
    },
    load: async (at) => {
      at.model = await Model.load(directory, { device: at.device });
    },
    generate: async (at) => {
      at.drawn = (await at.model.generate(tokens(900), { maxTokens: 4 }).result).tokens;
    },
  };
  const all = async (at) => {
    for (const name of Object.keys(work)) await work[name](at);
    at.model.dispose();
    return at.drawn;
  };
  const first = {};
  const expected = await all(first);
  first.device.dispose();
  for (let i = 0; i < 4; i++) {
    global.gc();
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  const pages = Number(readFileSync('/proc/self/statm', 'utf8').split(' ')[0]);
  await limit(pages * 4096 + Number(rooms[0]) * 2 ** 20);
  const outcome = [];
  const at = {};
  for (const name of Object.keys(work)) {
    const code = await work[name](at).then(() => 'ok', ({ code, message }) => code ?? message);
    outcome.push(code);
    assert(code === 'ok' || code === 'ERR_OUT_OF_MEMORY', `${name}: ${code}`);
    if ((name === 'open' || name === 'load') && code !== 'ok') break;
  }
  if (at.drawn) assert.deepStrictEqual(at.drawn, expected);
  await limit('unlimited');
  at.model?.dispose();
  const again = at.device ? { device: at.device } : {};
  if (again.device) delete work.open;
  assert.deepStrictEqual(await all(again), expected);
  process.send({ outcome }, () => process.exit(0));
}

if (process.env.IN_CHILD) {
  inChild().catch((error) => {
    console.error(error);
    process.exit(1);
  });
} else {
  main();
}
