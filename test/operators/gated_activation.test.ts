import { type Activation, kernels } from '../../lib/index';
import { expectClose, tolerances } from '../support/compare';
import { onEveryDevice, withTensors } from '../support/devices';
import { Random, roundTo } from '../support/numbers';
import { testCalls } from '../support/operator_calls';
import { activations, gatedActivation } from '../support/reference';

const names = Object.keys(activations) as Activation[];

// Of scipy.stats.norm.cdf and math.tanh, times x.
it.each([
  ['gelu', 1, 0.8413447460685429],
  ['gelu', -2.4, -2.4 * 0.008197535924596128],
  ['gelu', -5, -5 * 2.866515718791939e-7],
  ['gelu', -10, -10 * 7.619853024160527e-24],
  ['gelu_tanh', 1, 0.8411919906082768],
  ['silu', 1, 0.7310585786300049],
  ['relu2', 3, 9],
] as const)('the definition of %s at %f', (name, x, y) => {
  expect(Math.abs(activations[name](x) / y - 1)).toBeLessThan(1e-14);
});

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
          await kernels.gatedActivation({
            gate: tensors.make(type, [rows, columns], gate),
            up: tensors.make(type, [rows, columns], up),
            out,
          }),
        ).toBe(out);
        expectClose(await out.read(), gatedActivation(gate, up), tolerance, columns);
      });
    });

    it.each(names)('%s, with and without a gate', async (activation) => {
      for (const count of [1, 7, 33, 1003]) {
        const random = new Random(count);
        const gate = random.normals(count, 3, type);
        const up = random.normals(count, 1, type);
        await withTensors(device(), async (tensors) => {
          const inputs = { gate: tensors.make(type, [count], gate), up: tensors.make(type, [count], up) };
          const gated = tensors.keep(await kernels.gatedActivation({ ...inputs, activation }));
          expectClose(await gated.read(), gatedActivation(gate, up, activation), tolerance, count);
          const plain = tensors.keep(await kernels.gatedActivation({ up: inputs.gate, activation }));
          expectClose(await plain.read(), gatedActivation(null, gate, activation), tolerance, count);
        });
      }
    });

    it.each(names)('%s is exact to the last bits in its whole range', async (activation) => {
      // Of float32 results, a few units in the last place; others are rounded to their type.
      const limit = type === 'f32' ? 8 * 2 ** -24 : tolerance.rel;
      const count = 4096;
      const x = Float32Array.from({ length: count }, (_, i) => roundTo(type, ((i - count / 2) / count) * 30));
      await withTensors(device(), async (tensors) => {
        const out = tensors.keep(await kernels.gatedActivation({ up: tensors.make(type, [count], x), activation }));
        const actual = await out.read();
        const expected = gatedActivation(null, x, activation);
        const least = type === 'f16' ? 2 ** -14 : 2 ** -100;
        const wrong = [...expected.entries()].filter(
          ([i, y]) => !(Math.abs((actual[i] as number) - y) <= limit * Math.max(Math.abs(y), least)),
        );
        expect(wrong.map(([i, y]) => [x[i], actual[i], y])).toEqual([]);
      });
    });

    it.each(names)('%s handles values far from zero, zero, infinities and NaN', async (activation) => {
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
        1e-30,
        -1e-40,
        1e15,
        -1e15,
        Number.POSITIVE_INFINITY,
        Number.NEGATIVE_INFINITY,
        Number.NaN,
      ];
      const gate = Float32Array.from(values, (x) => roundTo(type, x));
      const up = new Float32Array(values.length).fill(1);
      const expected = gatedActivation(gate, up, activation).map((y) => roundTo(type, y));
      await withTensors(device(), async (tensors) => {
        const x = tensors.make(type, [1, values.length], gate);
        const ones = tensors.make(type, [1, values.length], up);
        const out = tensors.keep(await kernels.gatedActivation({ gate: x, up: ones, activation }));
        expectClose(await out.read(), expected, tolerance, 1);
        const plain = tensors.keep(await kernels.gatedActivation({ up: x, activation }));
        expectClose(await plain.read(), expected, tolerance, 1);
      });
    });

    it('may write over its inputs', async () => {
      const random = new Random(9);
      const gate = random.normals(100, 1, type);
      const up = random.normals(100, 1, type);
      const expected = gatedActivation(gate, up);
      await withTensors(device(), async (tensors) => {
        for (const over of ['gate', 'up'] as const) {
          const inputs = { gate: tensors.make(type, [100], gate), up: tensors.make(type, [100], up) };
          await kernels.gatedActivation({ ...inputs, out: inputs[over] });
          expectClose(await inputs[over].read(), expected, tolerance, 100);
        }
        const x = tensors.make(type, [100], up);
        await kernels.gatedActivation({ up: x, out: x });
        expectClose(await x.read(), gatedActivation(null, up), tolerance, 100);
      });
    });
  });

  testCalls(device, kernels.gatedActivation, {
    args: (make, n, type) => ({ gate: make([n, 8], type), up: make([n, 8], type) }),
    optional: ['gate'],
    wrong: (make) => [
      ['other shapes', () => ({ up: make([8, 2]) })],
      ['different types', () => ({ up: make([2, 8], 'bf16') })],
      ['unknown activation', () => ({ activation: 'tanh' })],
      ['activation null', () => ({ activation: null })],
      ['no up', () => ({ up: undefined })],
      ['gate null', () => ({ gate: null })],
    ],
  });
});
