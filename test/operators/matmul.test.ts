import { kernels } from '../../lib/index';
import { coarsest, expectClose, tolerances } from '../support/compare';
import { onEveryDevice, reduced, withTensors } from '../support/devices';
import { Random } from '../support/numbers';
import { floatTypeTriples, testCalls } from '../support/operator_calls';
import { matmul } from '../support/reference';

// [numTokens, inFeatures, outFeatures]: up to 16 tokens use gemv, more use gemm. Odd sizes leave
// remainders.
const shapes: [number, number, number][] = [
  [1, 1, 1],
  [1, 64, 64],
  [1, 256, 1000],
  [1, 100, 37],
  [1, 2048, 33],
  [2, 64, 96],
  [3, 65, 31],
  [4, 512, 129],
  [5, 31, 7],
  [7, 96, 40],
  [8, 128, 256],
  [8, 33, 17],
  [9, 64, 64],
  [16, 100, 50],
  [17, 257, 65],
  [33, 64, 130],
  [33, 63, 5], // with AMX, oneDNN 2.6.3 would end the process here, so odd widths use gemm
  [70, 63, 64],
  [64, 128, 96],
  [65, 320, 33],
  [129, 65, 70],
];
// The longest weight rows of a Sigma model, and the largest number of rows. The other sizes are
// small.
const modelShapes: [inFeatures: number, outFeatures: number][] = [
  [14336, 72],
  [16, 128256],
];
const smallShapes = shapes.filter(([tokens, inFeatures]) => tokens < 64 && inFeatures < 512);

onEveryDevice((device) => {
  describe.each(['f32', 'bf16', 'f16'] as const)('%s', (type) => {
    it.each(reduced ? smallShapes : shapes)('%i x %i -> %i', async (numTokens, inFeatures, outFeatures) => {
      const random = new Random(numTokens * 1000 + inFeatures);
      const x = random.normals(numTokens * inFeatures, 0.1, type);
      const weight = random.normals(outFeatures * inFeatures, 0.1, type);
      await withTensors(device(), async (tensors) => {
        const out = tensors.out(type, [numTokens, outFeatures]);
        const result = await kernels.matmul({
          x: tensors.make(type, [numTokens, inFeatures], x),
          weight: tensors.make(type, [outFeatures, inFeatures], weight),
          out,
        });
        expect(result).toBe(out);
        expectClose(
          await out.read(),
          matmul(x, weight, numTokens, inFeatures, outFeatures),
          tolerances[type],
          outFeatures,
        );
      });
    });

    it('computes exact sums of small integers', async () => {
      const random = new Random(3);
      for (const numTokens of [1, 4, 20]) {
        const x = random.integers(numTokens * 48, -3, 3);
        const weight = random.integers(40 * 48, -2, 2);
        const exact = matmul(x, weight, numTokens, 48, 40);
        // Integers up to this limit are exact in the output's type.
        const limit = type === 'bf16' ? 256 : 2048;
        expect(exact.every((value) => Math.abs(value) <= limit)).toBe(true);
        await withTensors(device(), async (tensors) => {
          const out = tensors.keep(
            await kernels.matmul({
              x: tensors.make(type, [numTokens, 48], x),
              weight: tensors.make(type, [40, 48], weight),
            }),
          );
          expect(out.dtype).toBe(type);
          expect(out.shape).toEqual([numTokens, 40]);
          expectClose(await out.read(), exact, tolerances.exact, 40);
        });
      }
    });

    it('propagates NaN and infinity only to their rows and columns', async () => {
      for (const numTokens of [1, 3, 12]) {
        const x = new Float32Array(numTokens * 40).fill(0.5);
        const weight = new Float32Array(20 * 40).fill(0.25);
        x[39] = Number.NaN; // token 0
        weight[7 * 40 + 1] = Number.POSITIVE_INFINITY; // output 7
        await withTensors(device(), async (tensors) => {
          const out = tensors.keep(
            await kernels.matmul({
              x: tensors.make(type, [numTokens, 40], x),
              weight: tensors.make(type, [20, 40], weight),
            }),
          );
          expectClose(await out.read(), matmul(x, weight, numTokens, 40, 20), tolerances[type], 20);
        });
      }
    });
  });

  it.each(modelShapes)('computes bf16 at the sizes of a model: %i -> %i', async (inFeatures, outFeatures) => {
    const random = new Random(inFeatures);
    const weight = random.normals(outFeatures * inFeatures, 0.1, 'bf16');
    await withTensors(device(), async (tensors) => {
      const deviceWeight = tensors.make('bf16', [outFeatures, inFeatures], weight);
      for (const numTokens of [1, 8, 9]) {
        const x = random.normals(numTokens * inFeatures, 0.1, 'bf16');
        const out = tensors.out('bf16', [numTokens, outFeatures]);
        await kernels.matmul({ x: tensors.make('bf16', [numTokens, inFeatures], x), weight: deviceWeight, out });
        const expected = matmul(x, weight, numTokens, inFeatures, outFeatures);
        expectClose(await out.read(), expected, tolerances.bf16, outFeatures);
      }
    });
  });

  describe.each([1, 3, 40])('mixed types, %i tokens', (numTokens) => {
    it.each(floatTypeTriples)('x %s, weight %s, out %s', async (xType, weightType, outType) => {
      const random = new Random(numTokens);
      const x = random.normals(numTokens * 70, 0.1, xType);
      const weight = random.normals(50 * 70, 0.1, weightType);
      await withTensors(device(), async (tensors) => {
        const out = tensors.out(outType, [numTokens, 50]);
        await kernels.matmul({
          x: tensors.make(xType, [numTokens, 70], x),
          weight: tensors.make(weightType, [50, 70], weight),
          out,
        });
        const tolerance = tolerances[coarsest(xType, weightType, outType)];
        expectClose(await out.read(), matmul(x, weight, numTokens, 70, 50), tolerance, 50);
      });
    });
  });

  testCalls(device, kernels.matmul, {
    args: (make, n, type) => ({ x: make([n, 8], type), weight: make([3, 8], type) }),
    optional: ['weightScales'],
    wrong: (make) => [
      ['other in', () => ({ weight: make([3, 9]) })],
      ['rank', () => ({ x: make([8]) })],
      ['out shape', () => ({ out: make([3, 2]) })],
      ['integers', () => ({ x: make([2, 8], 'i32') })],
      [
        'in place',
        () => {
          const x = make([8, 8]);
          return { x, weight: make([8, 8]), out: x };
        },
      ],
    ],
  });
});
