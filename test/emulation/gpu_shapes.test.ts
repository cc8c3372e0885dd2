// Kernels plan by the GPU's multiprocessors and shared memory. The emulated device has a small GPU
// by default. Here it has larger ones, in separate processes. `npm run test:emulated -- --gpu NAME`
// runs all suites on one.

import { spawnSync } from 'node:child_process';
import { listDevices } from '../../lib/index';
import { randomCheckpoint } from '../support/checkpoints';
import { builtIndex } from '../support/children';
import { passSuites } from '../support/suites';

const emulated = listDevices().some(({ id }) => id === 'emulated');
const suites = ['attention_decode', 'attention_prefill', 'augmented_q', 'matmul', 'quantized_weights'];

const list = `console.log(JSON.stringify(require(${JSON.stringify(builtIndex)}).listDevices().at(-1)))`;
const listWith = (gpu: string) =>
  spawnSync(process.execPath, ['-e', list], {
    env: { ...process.env, NODE_OPTIONS: '', DIFFQKV_EMULATED_GPU: gpu },
    encoding: 'utf8',
  });

(emulated ? describe : describe.skip)('DIFFQKV_EMULATED_GPU', () => {
  it.each([
    ['', '16', '8.6'],
    ['small', '16', '8.6'],
    ['h200', '132', '9.0'],
    ['rtx5090', '170', '12.0'],
  ])("'%s' has %s multiprocessors", (gpu, multiprocessors, computeCapability) => {
    const info = JSON.parse(listWith(gpu).stdout);
    expect(info).toMatchObject({ kind: 'emulated', usable: true, computeCapability });
    expect(info.details.multiprocessors).toBe(multiprocessors);
  });

  it('rejects an unknown name with the list of names', () => {
    const { status, stderr } = listWith('h100');
    expect(status).not.toBe(0);
    expect(stderr).toMatch(/ERR_DEVICE_UNAVAILABLE/);
    expect(stderr).toMatch(/DIFFQKV_EMULATED_GPU is 'h100'; it must be one of small, h200, rtx5090/);
  });

  it.each(['h200', 'rtx5090'])(
    'passes the operator suites on %s',
    async (gpu) => {
      const numPassed = await passSuites(suites, { DIFFQKV_EMULATED_GPU: gpu, DIFFQKV_TEST_DEVICES: 'emulated' });
      expect(numPassed).toBeGreaterThan(100);
    },
    600_000,
  );
});

/** The prompt's progress after each chunk, on a GPU with that much memory. */
const prefill = (memoryMb: number, numTokens: number): number[] => {
  const { config } = randomCheckpoint({
    heads: [1, 1, 1],
    headDim: 16,
    hiddenSize: 16,
    intermediateSize: 16,
    numLayers: 1,
  });
  const script = `(async () => {
    const { Model } = require(${JSON.stringify(builtIndex)});
    const model = await Model.random(${JSON.stringify(config)}, { device: 'emulated', seed: 1 });
    const session = await model.createSession({ maxKvLen: 4096 });
    const done = [];
    const tokens = new Array(${numTokens}).fill(1);
    await model.generate(tokens, { session, maxTokens: 1, onPrefillProgress: (p) => void done.push(p.doneTokens) }).result;
    console.log(JSON.stringify(done));
  })()`;
  const { stdout, stderr } = spawnSync(process.execPath, ['-e', script], {
    env: { ...process.env, NODE_OPTIONS: '', DIFFQKV_EMULATED_MEMORY_MB: String(memoryMb) },
    encoding: 'utf8',
  });
  expect(stderr).toBe('');
  return JSON.parse(stdout);
};

(emulated ? describe : describe.skip)('DIFFQKV_EMULATED_MEMORY_MB', () => {
  it('sets the tokens in a chunk of a prompt', () => {
    expect(prefill(4096, 1030)).toEqual([512, 1024, 1030]);
    expect(prefill(8192, 2050)).toEqual([2048, 2050]);
    expect(prefill(20_480, 2050)).toEqual([2050]);
  }, 120_000);
});
