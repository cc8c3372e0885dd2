// Misuse of devices and tensors returns a coded error and leaves the objects usable.

import { kernels, listDevices, Model, openDevice } from '../../lib/index';
import { randomCheckpoint } from '../support/checkpoints';
import { onEveryDevice } from '../support/devices';
import { tldrDirectory } from '../support/fixtures';
import { type Anything, expectCode, invalid, show } from '../support/misuse';

describe('openDevice', () => {
  it.each(
    ['cuda:-1', 'cuda:x', 'gpu', '', 'CPU', 'cpu ', 'cuda:1e9', 'cuda:99999999999999999999', 5, null, {}].map((id) => [
      show(id),
      id,
    ]),
  )('rejects %s', async (_, id) => {
    await expectCode(() => openDevice(id as Anything), typeof id === 'string' ? 'ERR_DEVICE_UNAVAILABLE' : invalid);
  });

  it('rejects a missing device with ERR_DEVICE_UNAVAILABLE and the reason', async () => {
    await expectCode(() => openDevice('cuda:97'), 'ERR_DEVICE_UNAVAILABLE', /./);
    const cuda = listDevices().find((info) => info.kind === 'cuda');
    if (!cuda?.usable)
      await expectCode(
        () => openDevice('cuda'),
        'ERR_DEVICE_UNAVAILABLE',
        cuda?.reason ? cuda.reason.slice(0, 10) : /cuda/i,
      );
  });

  it('opens an available device with auto, and says why it is not a GPU', async () => {
    const device = await openDevice();
    const gpu = listDevices().some((info) => info.kind === 'cuda' && info.usable);
    expect(device.info.kind).toBe(gpu ? 'cuda' : 'cpu');
    if (gpu) expect(device.fallbackReason).toBeNull();
    else expect(device.fallbackReason).toMatch(/\S/);
    const cpu = await openDevice('cpu');
    expect(cpu.fallbackReason).toBeNull();
    expect([cpu.id, cpu.info.kind, cpu.info.usable]).toEqual(['cpu', 'cpu', true]);
    expect(cpu.info.totalMemory).toBeGreaterThan(2 ** 28);
    device.dispose();
    cpu.dispose();
  });
});

onEveryDevice((device) => {
  describe('tensors', () => {
    it.each([
      ['dtype f64', 'f64', [2], undefined],
      ['no dtype', undefined, [2], undefined],
      ['dtype a number', 3, [2], undefined],
      ['negative size', 'f32', [-1], undefined],
      ['fractional size', 'f32', [1.5], undefined],
      ['NaN size', 'f32', [Number.NaN], undefined],
      ['infinite size', 'f32', [Number.POSITIVE_INFINITY], undefined],
      ['string size', 'f32', ['2'], undefined],
      ['shape a number', 'f32', 4, undefined],
      ['no shape', 'f32', undefined, undefined],
      ['overflowing shape', 'f32', [2 ** 31, 2 ** 31, 2 ** 31], undefined],
      ['size 2^53', 'f32', [2 ** 53, 2], undefined],
      ['too few elements', 'f32', [3], new Float32Array(2)],
      ['too many elements', 'f32', [1], new Float32Array(2)],
      ['a plain array', 'f32', [2], [1, 2]],
      ['a Float64Array', 'f32', [2], new Float64Array(2)],
      ['an Int32Array in f32', 'f32', [2], new Int32Array(2)],
      ['a Float32Array in i32', 'i32', [2], new Float32Array(2)],
      ['a string', 'f32', [2], 'ab'],
      ['an ArrayBuffer', 'f32', [2], new ArrayBuffer(8)],
      ['a DataView', 'f32', [2], new DataView(new ArrayBuffer(8))],
    ])('rejects %s', async (_, dtype, shape, data) => {
      await expectCode(() => device().tensor(dtype as Anything, shape as Anything, data as Anything), invalid);
    });

    it('reports ERR_OUT_OF_MEMORY with the requested and the free bytes, and keeps the device usable', async () => {
      const elements = 2 ** 46;
      const free = /, \d+ bytes are free/;
      await expectCode(() => device().tensor('f32', [elements]), 'ERR_OUT_OF_MEMORY', String(elements * 4), free);
      const asked = String(2 * 2 ** 46);
      await expectCode(() => device().tensor('bf16', [2 ** 23, 2 ** 23]), 'ERR_OUT_OF_MEMORY', asked, free);
      const tensor = device().tensor('f32', [2], Float32Array.of(1, 2));
      expect([...(await tensor.read())]).toEqual([1, 2]);
      tensor.dispose();
    });

    it('rejects a read or a write of the wrong type or size', async () => {
      const tensor = device().tensor('f32', [3], Float32Array.of(1, 2, 3));
      for (const array of [
        new Float32Array(2),
        new Float32Array(4),
        new Int32Array(3),
        new Float64Array(3),
        [1, 2, 3],
        null,
        undefined,
        'abc',
        new ArrayBuffer(12),
      ]) {
        await expectCode(() => tensor.readInto(array as Anything), invalid);
        await expectCode(() => tensor.write(array as Anything), invalid);
      }
      expect([...(await tensor.read())]).toEqual([1, 2, 3]);
      tensor.dispose();
    });

    it('can be disposed repeatedly, and cannot be used afterwards', async () => {
      const tensor = device().tensor('f32', [3]);
      const other = device().tensor('f32', [3]);
      tensor.dispose();
      tensor.dispose();
      tensor[Symbol.dispose]();
      await expectCode(() => tensor.read(), 'ERR_DISPOSED', /tensor/i);
      await expectCode(() => tensor.readInto(new Float32Array(3)), 'ERR_DISPOSED');
      await expectCode(() => tensor.write(new Float32Array(3)), 'ERR_DISPOSED');
      await expectCode(() => kernels.gatedActivation({ gate: tensor, up: other }), 'ERR_DISPOSED');
      await expectCode(() => kernels.gatedActivation({ gate: other, up: other, out: tensor }), 'ERR_DISPOSED');
      other.dispose();
    });
  });

  describe('devices', () => {
    it('can be disposed repeatedly, and cannot be used afterwards, nor can their objects', async () => {
      const id = device().id as Parameters<typeof openDevice>[0];
      const opened = await openDevice(id);
      const tensor = opened.tensor('f32', [8, 8]);
      const model = await Model.random(randomCheckpoint({}).config, { device: opened });
      const session = await model.createSession();
      opened.dispose();
      opened.dispose();
      await expectCode(() => opened.tensor('f32', [1]), 'ERR_DISPOSED', /device/i);
      await expectCode(() => opened.synchronize(), 'ERR_DISPOSED');
      await expectCode(() => opened.time(() => {}), 'ERR_DISPOSED');
      await expectCode(() => tensor.read(), 'ERR_DISPOSED');
      await expectCode(() => session.prefill([1]), 'ERR_DISPOSED');
      await expectCode(() => model.createSession(), 'ERR_DISPOSED');
      await expectCode(() => Model.random(randomCheckpoint({}).config, { device: opened }), 'ERR_DISPOSED');
      await expectCode(() => Model.load(tldrDirectory, { device: opened }), 'ERR_DISPOSED');
      tensor.dispose();
      session.dispose();
      model.dispose();
    });

    it('measures time in milliseconds, and rethrows the error of the work', async () => {
      const x = device().tensor('f32', [256, 512], new Float32Array(256 * 512).fill(1));
      const start = performance.now();
      const ms = await device().time(async () => {
        for (let i = 0; i < 5; i++) (await kernels.matmul({ x, weight: x })).dispose();
      });
      expect(ms).toBeGreaterThan(0);
      // No more than the time that passed here.
      expect(ms).toBeLessThan(performance.now() - start + 50);
      await expect(device().time(() => Promise.reject(new Error('mine')))).rejects.toThrow('mine');
      await expectCode(() => device().time(5 as Anything), invalid);
      x.dispose();
    });
  });
});
