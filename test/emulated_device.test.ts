// What a GPU can do to a program, on the emulated one, where it can be made to happen: a kernel that fails, too little
// memory, mistakes in device memory that are found late. In processes of their own, since the emulation reads its settings
// once; without the tests' module they are skipped.

import { listDevices } from '../lib/index';
import { runNode, runScript } from './children';
import { tolerances } from './compare';
import { tldrDirectory } from './fixtures';

const there = listDevices().some(({ kind }) => kind === 'emulated');
const run = (name: string, env: Record<string, string> = {}): Promise<Record<string, unknown>> =>
  runScript('gpu_trouble.cjs', [name, tldrDirectory], { env });

(there ? describe : describe.skip)('the emulated device', () => {
  it('is listed, last, and is never what auto or cuda take', async () => {
    const devices = listDevices();
    expect(devices.filter(({ kind }) => kind === 'emulated').map(({ id, usable }) => [id, usable])).toEqual([
      ['emulated', true],
    ]);
    expect(devices.at(-1)?.computeCapability).toMatch(/^\d+\.\d$/);
    const outcome = await run('choose');
    expect(outcome.auto).toMatch(/^c(pu|uda)/);
    expect(outcome.cuda).not.toBe('emulated');
  });

  it.each([3, 4, 6])(
    'launch %i fails: the device is lost, with the kernel named, and can be opened again',
    async (n) => {
      const outcome = await run('lost', { DIFFQKV_EMULATED_FAIL_LAUNCH: String(n) });
      expect(outcome.first).toMatchObject({
        code: 'ERR_DEVICE_UNAVAILABLE',
        message: expect.stringMatching(/silu_mul/),
      });
      const later = outcome.later as { code: string; message: string }[];
      expect(later.length).toBe(8);
      for (const error of later)
        expect(error).toMatchObject({
          code: 'ERR_DEVICE_UNAVAILABLE',
          message: expect.stringMatching(/lost.*: start the process again$/),
        });
      expect(outcome.difference).toBeLessThan(1e-6);
    },
  );

  it('two devices launch a kernel with different amounts of shared memory at once', async () => {
    const { differences, errors, attributeCalls } = await run('twoDevices');
    expect(differences).toEqual([0, 0]);
    for (const error of errors as number[]) expect(error).toBeLessThan(tolerances.bf16.abs); // from the CPU's result
    expect(attributeCalls).toBe(1);
  });

  it('a failing launch within a model ends the generation and nothing else', async () => {
    const outcome = await run('lostModel', { DIFFQKV_EMULATED_FAIL_LAUNCH: '200' });
    expect(outcome.error).toMatchObject({ code: 'ERR_DEVICE_UNAVAILABLE' });
    expect(outcome.again).toEqual(outcome.expected);
  });

  it('memory that runs out is ERR_OUT_OF_MEMORY, and what is freed can be had again', async () => {
    const outcome = await run('outOfMemory', { DIFFQKV_EMULATED_MEMORY_MB: '64' });
    expect(outcome.error).toMatchObject({
      code: 'ERR_OUT_OF_MEMORY',
      message: expect.stringMatching(/on emulated: asked for 16777216 bytes, \d{1,8} bytes are free/),
    });
    expect(outcome.held).toBeGreaterThanOrEqual(3);
    expect(outcome.afterwards).toBe(outcome.held);
  });

  it('a model that does not fit is ERR_OUT_OF_MEMORY', async () => {
    const outcome = await run('modelTooLarge', { DIFFQKV_EMULATED_MEMORY_MB: '1' });
    expect(outcome.error).toMatchObject({ code: 'ERR_OUT_OF_MEMORY' });
    expect(outcome.read).toEqual([1, 2]);
  });

  it('of several mistakes in device memory the first is told, once, by the read that follows', async () => {
    const outcome = await run('findings');
    expect(outcome.first).toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringMatching(/token 77 at index 1/),
    });
    expect(outcome.second).toEqual([2, 2]);
  });

  it('copies large and small, and arrays that are changed after the call', async () => {
    expect(await run('copies')).toEqual({ wrong: [] });
  });

  it.each(['leftOpen', 'disposeWhileLoading', 'exitWhileRunning', 'workerLeftOpen'])(
    'the process ends well: %s',
    async (name) => {
      const script = require.resolve('./children/lifetimes.cjs');
      const outcome = await runNode(['--expose-gc', script, name, tldrDirectory], {
        env: { DIFFQKV_TEST_DEVICE: 'emulated' },
        timeoutMs: 170_000,
      });
      expect({ status: outcome.status, signal: outcome.signal, stderr: outcome.stderr }).toEqual({
        status: 0,
        signal: null,
        stderr: '',
      });
    },
  );
});
