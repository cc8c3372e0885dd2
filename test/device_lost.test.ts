// A GPU that fails in the midst of its work, on the emulated one: every kind of call of the CUDA runtime that can meet the
// failure, at places all over the life of a model. The faults are set by test/emulation/module.cc, in processes of
// their own; without the tests' module this is skipped. TRIALS_OF_FAULTS tries more places.

import { join } from 'node:path';
import { listDevices } from '../lib/index';
import { runScript } from './children';

const there = listDevices().some(({ id }) => id === 'emulated');
const directory = join(__dirname, 'fixtures', 'sigma-8-2-4-top5');
const trials = process.env.TRIALS_OF_FAULTS ?? '2';
const run = (name: string): Promise<{ tried: number; refused?: number }> =>
  runScript('device_lost.cjs', [name, directory, trials], { timeoutMs: 900_000 });

(there ? describe : describe.skip)('the emulated device', () => {
  it('a fault that stays: the device is lost and says to start the process again, from then on; others go on', async () => {
    const { tried } = await run('lost');
    expect(tried).toBeGreaterThan(12);
  }, 900_000);

  it('a device that a reset does not bring back: the error says to start the process again', async () => {
    expect(await run('notBack')).toEqual({ tried: 2 });
  });

  it('a launch that is refused: the error of that call, and the device stays usable', async () => {
    const { tried } = await run('refused');
    expect(tried).toBeGreaterThan(1);
  }, 900_000);

  it('no memory: ERR_OUT_OF_MEMORY, and the device stays usable', async () => {
    const { tried, refused } = await run('outOfMemory');
    expect(tried).toBeGreaterThan(10);
    expect(refused).toBeGreaterThan(tried / 3);
  }, 900_000);

  it('worker threads hear of the loss and open the device again, all at once', async () => {
    expect(await run('workers')).toEqual({ tried: 3 });
  }, 900_000);
});
