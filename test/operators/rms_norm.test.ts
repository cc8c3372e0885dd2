import { kernels } from '../../lib/index';
import { coarsest, expectClose, tolerances } from '../support/compare';
import { onEveryDevice, withTensors } from '../support/devices';
import { Random } from '../support/numbers';
import { floatTypeTriples, testCalls } from '../support/operator_calls';
import { rmsNorm } from '../support/reference';

const sizes: [number, number][] = [
  [1, 1],
  [1, 8],
  [3, 33],
  [2, 64],
  [5, 100],
  [1, 256],
  [4, 2048],
  [3, 4096],
  [2, 1027],
];

onEveryDevice((device) => {
  describe.each(['f32', 'bf16', 'f16'] as const)('%s', (type) => {
    it.each(sizes)('%i tokens of %i', async (numTokens, hiddenSize) => {
      const random = new Random(hiddenSize);
      const x = random.normals(numTokens * hiddenSize, 0.1, type);
      const weight = random.normals(hiddenSize, 0.1, type);
      await withTensors(device(), async (tensors) => {
        const xs = tensors.make(type, [numTokens, hiddenSize], x);
        const out = tensors.out(type, [numTokens, hiddenSize]);
        expect(await kernels.rmsNorm({ x: xs, weight: tensors.make(type, [hiddenSize], weight), eps: 1e-5, out })).toBe(
          out,
        );
        expectClose(await out.read(), rmsNorm(x, weight, 1e-5).out, tolerances[type], hiddenSize);
        expect(await xs.read()).toEqual(x);
      });
    });

    it.each(sizes)('adds the residual and stores the sum in it: %i tokens of %i', async (numTokens, hiddenSize) => {
      const random = new Random(hiddenSize + 1);
      const x = random.normals(numTokens * hiddenSize, 0.1, type);
      const residual = random.normals(numTokens * hiddenSize, 0.1, type);
      const weight = random.normals(hiddenSize, 0.1, type);
      await withTensors(device(), async (tensors) => {
        const sum = tensors.make(type, [numTokens, hiddenSize], residual);
        const out = tensors.out(type, [numTokens, hiddenSize]);
        await kernels.rmsNorm({
          x: tensors.make(type, [numTokens, hiddenSize], x),
          weight: tensors.make(type, [hiddenSize], weight),
          eps: 1e-5,
          residual: sum,
          out,
        });
        const expected = rmsNorm(x, weight, 1e-5, residual);
        expectClose(await sum.read(), expected.residual, tolerances[type], hiddenSize);
        expectClose(await out.read(), expected.out, tolerances[type], hiddenSize);
      });
    });

    it.each(sizes)('adds to out: %i tokens of %i', async (numTokens, hiddenSize) => {
      const random = new Random(hiddenSize + 2);
      const x = random.normals(numTokens * hiddenSize, 0.1, type);
      const weight = random.normals(hiddenSize, 1, type);
      const before = random.normals(numTokens * hiddenSize, 1, 'f32');
      const expected = rmsNorm(x, weight, 1e-5).out.map((value, i) => value + (before[i] as number));
      await withTensors(device(), async (tensors) => {
        const out = tensors.make('f32', [numTokens, hiddenSize], before);
        const result = await kernels.rmsNorm({
          x: tensors.make(type, [numTokens, hiddenSize], x),
          weight: tensors.make(type, [hiddenSize], weight),
          eps: 1e-5,
          out,
          accumulate: true,
        });
        expect(result).toBe(out);
        expectClose(await out.read(), expected, tolerances.f32, hiddenSize);
      });
    });

    it.each([1, 64, 1027, 5000])('handles %i elements whose squares leave the range of float32', async (hiddenSize) => {
      const powers = type === 'f16' ? [15, -14] : [120, 100, 64, -64, -100, -120];
      const random = new Random(hiddenSize);
      const x = new Float32Array(powers.length * hiddenSize);
      for (const [row, power] of powers.entries())
        x.set(
          random.integers(hiddenSize, 1, 3).map((value) => value * 2 ** (power - 1)),
          row * hiddenSize,
        );
      const weight = random.integers(hiddenSize, -4, 4);
      const zeros = new Float32Array(x.length);
      await withTensors(device(), async (tensors) => {
        const shape = [powers.length, hiddenSize];
        const weights = tensors.make(type, [hiddenSize], weight);
        const expected = rmsNorm(x, weight, 0).out;
        const xs = tensors.make(type, shape, x);
        const out = tensors.keep(await kernels.rmsNorm({ x: xs, weight: weights, eps: 0 }));
        expectClose(await out.read(), expected, tolerances[type], hiddenSize);
        const sum = tensors.make(type, shape, zeros);
        const added = await kernels.rmsNorm({ x: xs, weight: weights, eps: 0, residual: sum });
        expectClose(await tensors.keep(added).read(), expected, tolerances[type], hiddenSize);
        expect(await sum.read()).toEqual(x);
      });
    });

    it('handles zeros, tiny and large values, and keeps NaN in its row', async () => {
      const weight = new Float32Array(64).fill(1);
      const x = new Float32Array(4 * 64);
      x.fill(2 ** -20, 64, 128);
      x.fill(2 ** 12, 128, 192);
      x.fill(1, 192);
      x[200] = Number.NaN;
      await withTensors(device(), async (tensors) => {
        const out = tensors.keep(
          await kernels.rmsNorm({
            x: tensors.make(type, [4, 64], x),
            weight: tensors.make(type, [64], weight),
            eps: 1e-5,
          }),
        );
        expectClose(await out.read(), rmsNorm(x, weight, 1e-5).out, tolerances[type], 64);
      });
    });
  });

  describe.each([1, 3, 40])('mixed types, %i tokens', (numTokens) => {
    it.each(floatTypeTriples)('x %s, residual %s, out and weight %s', async (xType, residualType, outType) => {
      const random = new Random(numTokens + 2);
      const x = random.normals(numTokens * 70, 0.1, xType);
      const residual = random.normals(numTokens * 70, 0.1, residualType);
      const weight = random.normals(70, 0.1, outType);
      await withTensors(device(), async (tensors) => {
        const sum = tensors.make(residualType, [numTokens, 70], residual);
        const out = tensors.out(outType, [numTokens, 70]);
        await kernels.rmsNorm({
          x: tensors.make(xType, [numTokens, 70], x),
          weight: tensors.make(outType, [70], weight),
          eps: 1e-5,
          residual: sum,
          out,
        });
        const expected = rmsNorm(x, weight, 1e-5, residual);
        expectClose(await sum.read(), expected.residual, tolerances[coarsest(xType, residualType)], 70);
        expectClose(await out.read(), expected.out, tolerances[coarsest(xType, residualType, outType)], 70);
      });
    });
  });

  testCalls(device, kernels.rmsNorm, {
    args: (make, n, type) => ({ x: make([n, 8], type), weight: make([8], type), eps: 1e-5 }),
    optional: ['residual'],
    wrong: (make) => [
      ['weight size', () => ({ weight: make([9]) })],
      ['eps NaN', () => ({ eps: Number.NaN })],
      ['eps negative', () => ({ eps: -1 })],
      ['eps missing', () => ({ eps: undefined })],
      ['residual shape', () => ({ residual: make([1, 8]) })],
      ['accumulate into bf16', () => ({ out: make([2, 8], 'bf16'), accumulate: true })],
      ['accumulate with a residual', () => ({ residual: make([2, 8]), out: make([2, 8]), accumulate: true })],
      ['accumulate without out', () => ({ accumulate: true })],
      ['accumulate a number', () => ({ out: make([2, 8]), accumulate: 1 })],
    ],
  });
});
