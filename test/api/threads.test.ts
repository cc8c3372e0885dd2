// Threads of the CPU device: their number, and how long they spin while they wait.

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { kernels, listDevices, openDevice } from '../../lib/index';
import { temporaryDirectories } from '../support/checkpoints';
import { builtCli, builtIndex, runNode } from '../support/children';
import { firstBitDifference } from '../support/compare';
import { errorOf } from '../support/devices';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const defaultThreads = Number(listDevices().find(({ id }) => id === 'cpu')?.details.threads);

it('openDevice sets the number of threads, for each device its own', async () => {
  const inputs = Float32Array.from({ length: 512 * 64 }, (_, i) => Math.sin(i));
  const devices = await Promise.all([1, 3, undefined, 5].map((threads) => openDevice('cpu', { threads })));
  expect(devices.map(({ info }) => Number(info.details.threads))).toEqual([1, 3, defaultThreads, 5]);
  const results: Float32Array[] = [];
  for (const device of devices) {
    const x = device.tensor('f32', [512, 64], inputs);
    results.push(
      await (await kernels.matmul({ x, weight: device.tensor('f32', [64, 64], inputs.subarray(0, 4096)) })).read(),
    );
  }
  for (const result of results) expect(result).toEqual(results[0]);
  for (const device of devices) device.dispose();
});

it.each(['f32', 'bf16', 'f16'] as const)('the number of threads does not change results: %s', async (type) => {
  // Large enough for several threads; the rows of 20,001 elements are also copied by several.
  const values = Float32Array.from({ length: 40 * 20_001 }, (_, i) => Math.sin(i * 0.7) / 8);
  const results: Float32Array[][] = [];
  for (const threads of [1, 3]) {
    const device = await openDevice('cpu', { threads });
    const make = (...shape: number[]) =>
      device.tensor(
        type,
        shape,
        values.subarray(
          0,
          shape.reduce((product, size) => product * size, 1),
        ),
      );
    const positions = device.tensor(
      'i32',
      [40],
      Int32Array.from({ length: 40 }, (_, i) => i * 3),
    );
    const weight = device.tensor('f32', [20_001], values.subarray(0, 20_001));
    const outputs = [
      await kernels.matmul({ x: make(40, 20_001), weight: make(5, 20_001) }),
      await kernels.matmul({ x: make(2, 20_001), weight: make(37, 20_001) }),
      await kernels.matmul({ x: make(37, 64), weight: make(300, 64) }),
      await kernels.gatedActivation({ gate: make(40, 20_001), up: make(40, 20_001) }),
      await kernels.rmsNorm({ x: make(40, 20_001), weight, eps: 1e-5 }),
      await kernels.rope({ x: make(40, 8, 64), positions, theta: 1e4 }),
    ];
    results.push(await Promise.all(outputs.map((output) => output.read())));
    device.dispose();
  }
  const [one, three] = results as [Float32Array[], Float32Array[]];
  for (const [i, result] of one.entries()) {
    expect(result.some((x) => x !== 0)).toBe(true);
    expect(firstBitDifference(three[i] as Float32Array, result)).toBe(-1);
  }
});

it('openDevice("auto") uses the number if it opens the CPU', async () => {
  if (listDevices().some(({ kind, usable }) => kind === 'cuda' && usable)) return;
  const device = await openDevice('auto', { threads: 3 });
  expect(device.info.details.threads).toBe('3');
  device.dispose();
});

it.each([
  ['cpu', 0, 'not 0'],
  ['cpu', 1025, 'not 1025'],
  ['cpu', 1.5, 'not 1.5'],
  ['cpu', '2', 'threads'],
  ['cuda', 2, 'threads'],
])('openDevice(%j, { threads: %j }) is rejected', async (id, threads, message) => {
  const error = await errorOf(() => openDevice(id as 'cpu', { threads: threads as number }));
  expect([error.code, error.message]).toEqual(['ERR_INVALID_ARGUMENT', expect.stringContaining(message)]);
});

it('diffqkv generate has --threads', async () => {
  const run = (threads: string) =>
    runNode([builtCli, 'generate', '--device', 'cpu', '--threads', threads, '--prompt', '# tar', '--max-tokens', '3']);
  expect(await run('1')).toMatchObject({ status: 0 });
  expect(await run('0')).toMatchObject({
    status: 1,
    stderr: expect.stringContaining('threads must be an integer from 1 to 1024, not 0'),
  });
});

// libgomp prints what it has read from the environment.
const onLinux = process.platform === 'linux' ? it : it.skip;

onLinux('starts as many threads as openDevice says', async () => {
  const code = `
    const { openDevice, kernels } = require(${JSON.stringify(builtIndex)});
    openDevice('cpu', { threads: Number(process.argv[2]) }).then(async (device) => {
      const x = device.tensor('f32', [64, 64], new Float32Array(4096));
      await (await kernels.matmul({ x, weight: x })).read();
      console.log(require('node:fs').readdirSync('/proc/self/task').length);
      device.dispose();
    });`;
  const file = join(directories.make(), 'count.cjs');
  writeFileSync(file, code);
  const countOf = async (threads: string) => Number((await runNode([file, threads])).stdout);
  const one = await countOf('1');
  expect(one).toBeGreaterThan(0);
  for (const threads of [2, 9]) expect(await countOf(String(threads))).toBe(one + threads - 1);
});

onLinux('limits spinning, also if a worker thread is the first that loads the module', async () => {
  const code = `
    const { isMainThread, Worker } = require('node:worker_threads');
    const { execSync } = require('node:child_process');
    const load = () => require(${JSON.stringify(builtIndex)}).listDevices();
    if (isMainThread && process.argv[2] === 'worker') {
      new Worker(__filename).on('exit', () => console.log(execSync('env').toString()));
    } else {
      load();
      if (isMainThread) console.log(execSync('env').toString());
    }`;
  const file = join(directories.make(), 'load.cjs');
  writeFileSync(file, code);
  const limitOf = async (thread: string, env: Record<string, string>) => {
    const { stdout, stderr, status } = await runNode([file, thread], { env: { OMP_DISPLAY_ENV: 'verbose', ...env } });
    expect(status).toBe(0);
    // A child process does not inherit the variables.
    const inherited = ['GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'].map(
      (name) => new RegExp(`^${name}=(.*)$`, 'm').exec(stdout)?.[1],
    );
    const used = [/GOMP_SPINCOUNT = '(\d+)'/, /OMP_WAIT_POLICY = '(\w+)'/].map((line) => line.exec(stderr)?.[1]);
    return { used, inherited };
  };
  for (const thread of ['main', 'worker']) {
    expect(await limitOf(thread, {})).toEqual({ used: ['3000', 'ACTIVE'], inherited: [undefined, undefined] });
    expect(await limitOf(thread, { GOMP_SPINCOUNT: '77' })).toEqual({
      used: ['77', 'PASSIVE'],
      inherited: ['77', undefined],
    });
  }
});
