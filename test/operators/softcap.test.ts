import { kernels } from '../../lib/index';
import { expectClose, tolerances } from '../support/compare';
import { onEveryDevice, withTensors } from '../support/devices';
import { Random } from '../support/numbers';
import { testCalls } from '../support/operator_calls';
import { softcap } from '../support/reference';

onEveryDevice((device) => {
  it.each([1, 7, 16, 33, 1003, 4096])('%i elements, also in place', async (count) => {
    const random = new Random(count);
    for (const [cap, size] of [
      [30, 40],
      [50, 1],
      [0.01, 0.02],
    ] as const) {
      const x = random.normals(count, size, 'f32');
      const expected = softcap(x, Math.fround(cap));
      await withTensors(device(), async (tensors) => {
        const tensor = tensors.make('f32', [count], x);
        const out = tensors.out('f32', [count]);
        expect(await kernels.softcap({ x: tensor, cap, out })).toBe(out);
        expectClose(await out.read(), expected, tolerances.f32Elementwise, count);
        expect(await tensor.read()).toEqual(x);
        expect(await kernels.softcap({ x: tensor, cap, out: tensor })).toBe(tensor);
        expectClose(await tensor.read(), expected, tolerances.f32Elementwise, count);
      });
    }
  });

  it('is exact to the last bits in its whole range', async () => {
    const count = 4096;
    const x = Float32Array.from({ length: count }, (_, i) => ((i - count / 2) / count) * 20);
    await withTensors(device(), async (tensors) => {
      const out = await kernels.softcap({ x: tensors.make('f32', [count], x), cap: 1 });
      const actual = await tensors.keep(out).read();
      const wrong = [...softcap(x, 1).entries()].filter(
        ([i, y]) => !(Math.abs((actual[i] as number) - y) <= 6 * 2 ** -24 * Math.abs(y)),
      );
      expect(wrong.map(([i, y]) => [x[i], actual[i], y])).toEqual([]);
    });
  });

  it('handles zero, denormals, large values, infinities and NaN', async () => {
    const values = [0, -0, 1e-40, -1e-40, 1e-10, 0.3, 18.7, 18.8, 300, -300, 1e30, -3e38];
    const x = Float32Array.from([...values, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.NaN]);
    await withTensors(device(), async (tensors) => {
      const shape = [3, x.length / 3];
      const out = tensors.keep(await kernels.softcap({ x: tensors.make('f32', shape, x), cap: 30 }));
      expect(out.shape).toEqual(shape);
      const actual = await out.read();
      expectClose(actual, softcap(x, 30), tolerances.f32Elementwise, 1);
      expect(Object.is(actual[1], -0)).toBe(true);
    });
  });

  testCalls(device, kernels.softcap, {
    args: (make, n, type) => ({ x: make([n, 8], type), cap: 1 }),
    types: ['f32'],
    wrong: (make) => [
      ['x of bf16', () => ({ x: make([2, 8], 'bf16') })],
      ['out of another shape', () => ({ out: make([8, 2]) })],
      ['out of bf16', () => ({ out: make([2, 8], 'bf16') })],
      ['cap 0', () => ({ cap: 0 })],
      ['cap negative', () => ({ cap: -1 })],
      ['cap NaN', () => ({ cap: Number.NaN })],
      ['cap infinite', () => ({ cap: Number.POSITIVE_INFINITY })],
      ['cap 0 in f32', () => ({ cap: 1e-60 })],
      ['cap missing', () => ({ cap: undefined })],
    ],
  });
});
