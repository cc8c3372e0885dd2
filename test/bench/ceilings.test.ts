// The limits of the CPU that the native module measures for the benchmarks.

import { Ceilings, READ_PATTERNS } from '../../bench/ceilings';
import { measureCeiling } from '../../lib/ceilings';
import { type Device, type DeviceId, listDevices, openDevice } from '../../lib/index';

const emulated = listDevices().find(({ id, usable }) => id === 'emulated' && usable);

describe('ceilings', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice('cpu');
  });
  afterAll(() => device.dispose());

  const wrong = (request: object) => measureCeiling(device, request as Parameters<typeof measureCeiling>[1]);

  it('are rates of the device, which uses its own threads', async () => {
    const ceilings = new Ceilings(device);
    for (const pattern of READ_PATTERNS) expect(await ceilings.read(pattern)).toBeGreaterThan(0);
    expect(await ceilings.copy()).toBeGreaterThan(0);
    expect(await ceilings.multiply()).toBeGreaterThan(0);
    if (!ceilings.usesOnednn) return;
    const matrices = [
      { m: 4, k: 64, n: 32, out: 'bf16' },
      { m: 1, k: 32, n: 64, out: 'f32' },
    ] as const;
    const times = await ceilings.linear(matrices, 3);
    expect(times.map(({ packedMs, plainMs }) => [packedMs.length, plainMs.length])).toEqual([
      [3, 3],
      [3, 3],
    ]);
    for (const { packedMs, plainMs } of times) expect(Math.min(...packedMs, ...plainMs)).toBeGreaterThan(0);
  });

  it('reject what they cannot measure', async () => {
    const invalid = { code: 'ERR_INVALID_ARGUMENT' };
    await expect(wrong({ what: 'write' })).rejects.toMatchObject(invalid);
    for (const streams of [0, 3, 5])
      await expect(wrong({ what: 'read', streams, prefetchBytes: 0 })).rejects.toMatchObject(invalid);
    await expect(wrong({ what: 'read', streams: 1, prefetchBytes: -1 })).rejects.toMatchObject(invalid);
    const matrix = { m: 1, k: 1, n: 1, out: 'f32' };
    const request = { what: 'matrices', matrices: [matrix], numWeights: 1, layout: 'plain' };
    for (const change of [{ m: 0 }, { out: 'f16' }])
      await expect(wrong({ ...request, matrices: [{ ...matrix, ...change }] })).rejects.toMatchObject(invalid);
    for (const change of [{ matrices: 1 }, { numWeights: 0 }, { layout: 'other' }])
      await expect(wrong({ ...request, ...change })).rejects.toMatchObject(invalid);
    const closed = await openDevice('cpu');
    closed.dispose();
    await expect(measureCeiling(closed, { what: 'copy' })).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
  });

  (emulated === undefined ? it.skip : it)(
    'are those of the CPU only (SKIPPED without the emulated device)',
    async () => {
      const other = await openDevice('emulated' as DeviceId);
      await expect(measureCeiling(other, { what: 'copy' })).rejects.toMatchObject({ code: 'ERR_DEVICE_UNAVAILABLE' });
      other.dispose();
    },
  );
});
