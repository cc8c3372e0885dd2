// A GPU that fails while it works, on the emulated device: every kind of CUDA runtime call that can
// report the failure, at places throughout the life of a model. test/emulation/module.cc
// injects the faults in separate processes. Skipped without the tests' module. TRIALS_OF_FAULTS
// tries more places.

import { join } from 'node:path';
import { listDevices } from '../../lib/index';
import { runScript } from '../support/children';
import { fixturesDirectory } from '../support/fixtures';

const there = listDevices().some(({ id }) => id === 'emulated');
const directory = join(fixturesDirectory, 'sigma-8-2-4-top5');
const trials = process.env.TRIALS_OF_FAULTS ?? '2';
const run = (name: string): Promise<{ tried: number; refused?: number }> =>
  runScript('faults/device_lost.cjs', [name, directory, trials], { timeoutMs: 900_000 });

(there ? describe : describe.skip)('the emulated device', () => {
  it('loses the device for good after a permanent fault, says to restart the process, and keeps other devices', async () => {
    const { tried } = await run('lost');
    expect(tried).toBeGreaterThan(12);
  }, 900_000);

  it('says to restart the process if a reset does not recover the device', async () => {
    expect(await run('notBack')).toEqual({ tried: 2 });
  });

  it('fails only the call whose launch is rejected, and keeps the device usable', async () => {
    const { tried } = await run('refused');
    expect(tried).toBeGreaterThan(1);
  }, 900_000);

  it('fails with ERR_OUT_OF_MEMORY if memory runs out, and keeps the device usable', async () => {
    const { tried, refused } = await run('outOfMemory');
    expect(tried).toBeGreaterThan(10);
    expect(refused).toBeGreaterThan(tried / 3);
  }, 900_000);

  it('reports the loss to worker threads, which open the device again concurrently', async () => {
    expect(await run('workers')).toEqual({ tried: 3 });
  }, 900_000);
});
