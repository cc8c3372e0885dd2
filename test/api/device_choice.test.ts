// The choice of `auto` if there is a GPU, usable or not. CI has no such machine, so a replacement
// of the addon's device list simulates it. A GPU that cannot be used is never skipped silently.

import type { NativeDeviceInfo } from '../../lib/addon';
import { DiffqkvError, openDevice } from '../../lib/index';

let standIn: object;
jest.mock('../../lib/addon', () => ({ addon: () => standIn }));

const info = (id: string, more: Partial<NativeDeviceInfo> = {}): NativeDeviceInfo => ({
  id,
  kind: id === 'cpu' ? 'cpu' : 'cuda',
  name: `name of ${id}`,
  usable: true,
  totalMemory: 0,
  details: {},
  ...more,
});

/**
 * A machine with the CPU and these GPUs. Those in `failing` are listed as usable but fail to open.
 */
function machine(gpus: NativeDeviceInfo[], failing: Record<string, Error> = {}): string[] {
  const opened: string[] = [];
  const devices = [info('cpu'), ...gpus];
  standIn = {
    listDevices: () => devices,
    openDevice: async ({ id }: { id: string }) => {
      opened.push(id);
      if (failing[id]) throw failing[id];
      return { info: devices.find((device) => device.id === id) };
    },
  };
  return opened;
}

const warning = jest.spyOn(process, 'emitWarning').mockImplementation(() => {});
beforeEach(() => warning.mockClear());
afterAll(() => jest.restoreAllMocks());

it('opens the first usable GPU without a warning about the others', async () => {
  const opened = machine([info('cuda:0', { usable: false, reason: 'too old' }), info('cuda:1'), info('cuda:2')]);
  const device = await openDevice();
  expect([device.id, device.fallbackReason, opened]).toEqual(['cuda:1', null, ['cuda:1']]);
  expect(warning).not.toHaveBeenCalled();
});

it('falls back to the CPU with the reason and one warning if a GPU is too old', async () => {
  machine([info('cuda:0', { usable: false, reason: 'compute capability 7.5' })]);
  for (let i = 0; i < 2; i++) {
    const device = await openDevice();
    expect([device.id, device.fallbackReason]).toEqual(['cpu', 'cuda:0 (name of cuda:0): compute capability 7.5']);
  }
  expect(warning.mock.calls).toEqual([
    [
      'using the CPU because the GPU cannot be used: cuda:0 (name of cuda:0): compute capability 7.5',
      { type: 'DiffqkvWarning', code: 'DIFFQKV_FALLBACK' },
    ],
  ]);
});

it('warns if the driver is too old to list GPUs, but not if there is no driver', async () => {
  machine([info('cuda', { usable: false, reason: 'driver too old', details: { driver: 'CUDA 11.4' } })]);
  expect((await openDevice()).fallbackReason).toBe('driver too old');
  expect(warning).toHaveBeenCalledTimes(1);
  machine([info('cuda', { usable: false, reason: 'no NVIDIA driver' })]);
  expect((await openDevice()).fallbackReason).toBe('no NVIDIA driver');
  expect(warning).toHaveBeenCalledTimes(1);
});

it('opens the next GPU if one fails to open, else the CPU with all reasons', async () => {
  const lost = Object.assign(new Error('out of memory'), { code: 'ERR_OUT_OF_MEMORY' });
  const gpus = [info('cuda:0'), info('cuda:1', { usable: false, reason: 'too old' }), info('cuda:2')];
  machine(gpus, { 'cuda:0': lost });
  expect((await openDevice()).id).toBe('cuda:2');
  expect(warning).not.toHaveBeenCalled();
  const opened = machine(gpus, { 'cuda:0': lost, 'cuda:2': lost });
  const device = await openDevice();
  expect(opened).toEqual(['cuda:0', 'cuda:2', 'cpu']);
  expect(device.fallbackReason).toBe('cuda:1 (name of cuda:1): too old; cuda:0: out of memory; cuda:2: out of memory');
  expect(warning).toHaveBeenCalledTimes(1);
});

it('rethrows an error without an error code of this project', async () => {
  machine([info('cuda:0')], { 'cuda:0': new TypeError('a defect') });
  await expect(openDevice()).rejects.toThrow(new TypeError('a defect'));
});

it('never replaces a GPU that was requested by name with the CPU', async () => {
  const unavailable = Object.assign(new Error('too old'), { code: 'ERR_DEVICE_UNAVAILABLE' });
  const opened = machine([info('cuda:0', { usable: false, reason: 'too old' })], { 'cuda:0': unavailable });
  const error = await openDevice('cuda:0').catch((thrown) => thrown);
  expect(error).toBeInstanceOf(DiffqkvError);
  expect(error.code).toBe('ERR_DEVICE_UNAVAILABLE');
  expect(opened).toEqual(['cuda:0']);
});
