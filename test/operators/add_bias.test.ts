import { kernels } from '../../lib/index';
import { expectClose, tolerances } from '../support/compare';
import { onEveryDevice, withTensors } from '../support/devices';
import { Random } from '../support/numbers';
import { testCalls } from '../support/operator_calls';
import { addBias } from '../support/reference';

onEveryDevice((device) => {
  describe.each(['f32', 'bf16', 'f16'] as const)('%s', (type) => {
    const tolerance = type === 'f32' ? tolerances.f32Elementwise : tolerances[type];

    it.each([
      [1, 1],
      [1, 7],
      [2, 16],
      [3, 33],
      [5, 1000],
      [4, 2052],
    ])('%i x %i', async (rows, columns) => {
      const random = new Random(columns);
      const x = random.normals(rows * columns, 1, type);
      const bias = random.normals(columns, 1, 'f32');
      const expected = addBias(x, bias);
      await withTensors(device(), async (tensors) => {
        const tensor = tensors.make(type, [rows, columns], x);
        const added = tensors.make('f32', [columns], bias);
        const out = tensors.out(type, [rows, columns]);
        expect(await kernels.addBias({ x: tensor, bias: added, out })).toBe(out);
        expectClose(await out.read(), expected, tolerance, columns);
        expect(await kernels.addBias({ x: tensor, bias: added, out: tensor })).toBe(tensor);
        expectClose(await tensor.read(), expected, tolerance, columns);
      });
    });

    it('keeps NaN and infinities', async () => {
      const x = Float32Array.of(Number.NaN, Number.POSITIVE_INFINITY, 1, Number.NEGATIVE_INFINITY, 0);
      const bias = Float32Array.of(1, 1, Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY);
      await withTensors(device(), async (tensors) => {
        const out = await kernels.addBias({
          x: tensors.make(type, [1, 5], x),
          bias: tensors.make('f32', [5], bias),
        });
        expectClose(await tensors.keep(out).read(), addBias(x, bias), tolerance, 5);
      });
    });
  });

  testCalls(device, kernels.addBias, {
    args: (make, n, type) => ({ x: make([n, 8], type), bias: make([8]) }),
    wrong: (make) => [
      ['x of rank 1', () => ({ x: make([8]) })],
      ['bias of another size', () => ({ bias: make([7]) })],
      ['bias of bf16', () => ({ x: make([2, 8], 'bf16'), bias: make([8], 'bf16') })],
      ['out of another type', () => ({ out: make([2, 8], 'bf16') })],
    ],
  });
});
