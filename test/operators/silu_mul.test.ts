import { kernels } from '../../lib/index';
import { expectClose, tolerances } from '../support/compare';
import { onEveryDevice, withTensors } from '../support/devices';
import { Random, roundTo } from '../support/numbers';
import { siluMul } from '../support/reference';

onEveryDevice((device) => {
  describe.each(['f32', 'bf16', 'f16'] as const)('%s', (type) => {
    const tolerance = type === 'f32' ? tolerances.f32Elementwise : tolerances[type];

    it.each([
      [1, 1],
      [1, 7],
      [2, 16],
      [3, 33],
      [5, 1000],
      [4, 6144],
    ])('%i x %i', async (rows, columns) => {
      const random = new Random(columns);
      const gate = random.normals(rows * columns, 3, type);
      const up = random.normals(rows * columns, 0.1, type);
      await withTensors(device(), async (tensors) => {
        const out = tensors.out(type, [rows, columns]);
        expect(
          await kernels.siluMul({
            gate: tensors.make(type, [rows, columns], gate),
            up: tensors.make(type, [rows, columns], up),
            out,
          }),
        ).toBe(out);
        expectClose(await out.read(), siluMul(gate, up), tolerance, columns);
      });
    });

    it('handles values far from zero, zero, infinities and NaN', async () => {
      const values = [
        0,
        1e-6,
        -1e-6,
        5,
        -5,
        20,
        -20,
        60,
        -60,
        88,
        -88,
        -104,
        1000,
        -1000,
        60000,
        -60000,
        Number.POSITIVE_INFINITY,
        Number.NaN,
      ];
      const gate = Float32Array.from(values, (x) => roundTo(type, x));
      const up = new Float32Array(values.length).fill(1);
      await withTensors(device(), async (tensors) => {
        const out = tensors.keep(
          await kernels.siluMul({
            gate: tensors.make(type, [1, values.length], gate),
            up: tensors.make(type, [1, values.length], up),
          }),
        );
        const actual = await out.read();
        expectClose(actual, siluMul(gate, up), tolerance, 1);
      });
    });

    it('may write over its inputs', async () => {
      const random = new Random(9);
      const gate = random.normals(100, 1, type);
      const up = random.normals(100, 1, type);
      const expected = siluMul(gate, up);
      await withTensors(device(), async (tensors) => {
        for (const over of ['gate', 'up'] as const) {
          const inputs = { gate: tensors.make(type, [100], gate), up: tensors.make(type, [100], up) };
          await kernels.siluMul({ ...inputs, out: inputs[over] });
          expectClose(await inputs[over].read(), expected, tolerance, 100);
        }
      });
    });
  });
});
