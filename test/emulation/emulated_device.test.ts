// GPU problems that the emulated device can produce: a failing kernel, too little memory, and
// invalid values in device memory that are detected late. Each runs in a separate process, because
// the emulation reads its settings only once. Skipped without the tests' module.

import { listDevices } from '../../lib/index';
import { runNode, runScript } from '../support/children';
import { tolerances } from '../support/compare';
import { tldrDirectory } from '../support/fixtures';

const there = listDevices().some(({ id }) => id === 'emulated');
const run = (name: string, env: Record<string, string> = {}): Promise<Record<string, unknown>> =>
  runScript('emulation/gpu_trouble.cjs', [name, tldrDirectory], { env });

(there ? describe : describe.skip)('the emulated device', () => {
  it('is listed last, and neither auto nor cuda selects it', async () => {
    const devices = listDevices();
    expect(devices.filter(({ id }) => id === 'emulated').map(({ id, usable }) => [id, usable])).toEqual([
      ['emulated', true],
    ]);
    expect(devices.at(-1)?.computeCapability).toMatch(/^\d+\.\d$/);
    const outcome = await run('choose');
    expect(outcome.auto).toMatch(/^c(pu|uda)/);
    expect(outcome.cuda).not.toBe('emulated');
  });

  it.each([3, 4, 6])('loses the device if launch %i fails, names the kernel, and can be opened again', async (n) => {
    const outcome = await run('lost', { DIFFQKV_EMULATED_FAIL_LAUNCH: String(n) });
    expect(outcome.first).toMatchObject({
      code: 'ERR_DEVICE_UNAVAILABLE',
      message: expect.stringMatching(/gated_activation/),
    });
    const later = outcome.later as { code: string; message: string }[];
    expect(later.length).toBe(8);
    for (const error of later)
      expect(error).toMatchObject({
        code: 'ERR_DEVICE_UNAVAILABLE',
        message: expect.stringMatching(/lost.*: start the process again$/),
      });
    expect(outcome.difference).toBeLessThan(1e-6);
  });

  it('launches a kernel with different amounts of shared memory on two devices at once', async () => {
    const { differences, errors, attributeCalls } = await run('twoDevices');
    expect(differences).toEqual([0, 0]);
    for (const error of errors as number[]) expect(error).toBeLessThan(tolerances.bf16.abs); // from the CPU's result
    expect(attributeCalls).toBe(1);
  });

  it('ends only the generation whose launch fails', async () => {
    const outcome = await run('lostModel', { DIFFQKV_EMULATED_FAIL_LAUNCH: '200' });
    expect(outcome.error).toMatchObject({ code: 'ERR_DEVICE_UNAVAILABLE' });
    expect(outcome.again).toEqual(outcome.expected);
  });

  it('fails with ERR_OUT_OF_MEMORY if memory runs out, and reuses freed memory', async () => {
    const outcome = await run('outOfMemory', { DIFFQKV_EMULATED_MEMORY_MB: '64' });
    expect(outcome.error).toMatchObject({
      code: 'ERR_OUT_OF_MEMORY',
      message: expect.stringMatching(/on emulated: asked for 16777216 bytes, \d{1,8} bytes are free/),
    });
    expect(outcome.held).toBeGreaterThanOrEqual(3);
    expect(outcome.afterwards).toBe(outcome.held);
  });

  it('rejects a model that does not fit with ERR_OUT_OF_MEMORY', async () => {
    const outcome = await run('modelTooLarge', { DIFFQKV_EMULATED_MEMORY_MB: '1' });
    expect(outcome.error).toMatchObject({ code: 'ERR_OUT_OF_MEMORY' });
    expect(outcome.read).toEqual([1, 2]);
  });

  it('reports the first of several invalid values in device memory, once, in the next read', async () => {
    const outcome = await run('findings');
    expect(outcome.first).toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringMatching(/token 77 at index 1/),
    });
    expect(outcome.second).toEqual([2, 2]);
  });

  it('copies large and small arrays, and copies at the call', async () => {
    expect(await run('copies')).toEqual({ wrong: [] });
  });

  it.each(['leftOpen', 'disposeWhileLoading', 'exitWhileRunning', 'workerLeftOpen'])(
    'exits cleanly: %s',
    async (name) => {
      const script = require.resolve('../support/lifetimes.cjs');
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
