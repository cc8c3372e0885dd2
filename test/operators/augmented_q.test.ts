import { kernels } from '../../lib/index';
import { coarsest, expectClose, tolerances } from '../support/compare';
import { onEveryDevice, reduced, withTensors } from '../support/devices';
import { Random } from '../support/numbers';
import { floatTypeTriples, testCalls } from '../support/operator_calls';
import { augmentedQ } from '../support/reference';

// [tokens, qDim, augQ]
const shapes: [number, number, number][] = [
  [1, 64, 96],
  [1, 256, 384],
  [1, 40, 24],
  [2, 512, 192],
  [3, 65, 33],
  [8, 128, 96],
  [9, 128, 100],
  [33, 96, 144],
  [70, 256, 384],
];

onEveryDevice((device) => {
  describe.each(['f32', 'bf16', 'f16'] as const)('%s', (type) => {
    it.each(reduced ? shapes.slice(0, -1) : shapes)('%i tokens, q %i, augmented %i', async (numTokens, qDim, augQ) => {
      const random = new Random(qDim + augQ);
      // Scales gate and up so that silu works in its curved part and the table's tolerances fit
      // both factors and the result.
      const x = random.normals(numTokens * qDim, 0.1, type);
      const gate = random.normals(augQ * qDim, 10 / Math.sqrt(qDim), type);
      const up = random.normals(augQ * qDim, 1 / Math.sqrt(qDim), type);
      const down = random.normals(qDim * augQ, 0.5 / Math.sqrt(augQ), type);
      await withTensors(device(), async (tensors) => {
        const out = tensors.out(type, [numTokens, qDim]);
        const result = await kernels.augmentedQ({
          x: tensors.make(type, [numTokens, qDim], x),
          gate: tensors.make(type, [augQ, qDim], gate),
          up: tensors.make(type, [augQ, qDim], up),
          down: tensors.make(type, [qDim, augQ], down),
          out,
        });
        expect(result).toBe(out);
        const expected = augmentedQ({
          x,
          gate,
          up,
          down,
          numTokens,
          inFeatures: qDim,
          innerSize: augQ,
          outFeatures: qDim,
        });
        expectClose(await out.read(), expected, tolerances[type], qDim);
      });
    });

    const variants = (['gelu', 'gelu_tanh', 'relu', 'relu2', 'silu'] as const).flatMap((activation) =>
      [1, 7, 33].flatMap((tokens) => [
        [activation, tokens, 'a gate'] as const,
        [activation, tokens, 'no gate'] as const,
      ]),
    );
    it.each(variants)('%s, %i tokens, %s', async (activation, numTokens, gated) => {
      for (const [qDim, augQ] of [
        [128, 96],
        [65, 99],
      ] as const) {
        const random = new Random(qDim + numTokens);
        const x = random.normals(numTokens * qDim, 0.1, type);
        const gate = gated === 'a gate' ? random.normals(augQ * qDim, 10 / Math.sqrt(qDim), type) : null;
        const up = random.normals(augQ * qDim, (gate ? 1 : 10) / Math.sqrt(qDim), type);
        const down = random.normals(qDim * augQ, (gate ? 0.5 : 0.05) / Math.sqrt(augQ), type);
        await withTensors(device(), async (tensors) => {
          const out = await kernels.augmentedQ({
            x: tensors.make(type, [numTokens, qDim], x),
            gate: gate ? tensors.make(type, [augQ, qDim], gate) : undefined,
            up: tensors.make(type, [augQ, qDim], up),
            down: tensors.make(type, [qDim, augQ], down),
            activation,
          });
          const sizes = { numTokens, inFeatures: qDim, innerSize: augQ, outFeatures: qDim };
          const expected = augmentedQ({ x, gate, up, down, activation, ...sizes });
          expectClose(await tensors.keep(out).read(), expected, tolerances[type], qDim);
        });
      }
    });
  });

  describe.each([1, 3, 40])('mixed types, %i tokens', (numTokens) => {
    it.each(floatTypeTriples)('x %s, weights %s, out %s', async (xType, weightType, outType) => {
      const random = new Random(numTokens + 1);
      const x = random.normals(numTokens * 64, 0.1, xType);
      const [gate, up, down] = [0, 1, 2].map(() => random.normals(64 * 48, 0.1, weightType)) as [
        Float32Array,
        Float32Array,
        Float32Array,
      ];
      await withTensors(device(), async (tensors) => {
        const out = tensors.out(outType, [numTokens, 64]);
        await kernels.augmentedQ({
          x: tensors.make(xType, [numTokens, 64], x),
          gate: tensors.make(weightType, [48, 64], gate),
          up: tensors.make(weightType, [48, 64], up),
          down: tensors.make(weightType, [64, 48], down),
          out,
        });
        const sizes = { numTokens, inFeatures: 64, innerSize: 48, outFeatures: 64 };
        const tolerance = tolerances[coarsest(xType, weightType, outType)];
        expectClose(await out.read(), augmentedQ({ x, gate, up, down, ...sizes }), tolerance, 64);
      });
    });
  });

  testCalls(device, kernels.augmentedQ, {
    args: (make, n, type) => ({
      x: make([n, 8], type),
      gate: make([6, 8], type),
      up: make([6, 8], type),
      down: make([8, 6], type),
    }),
    optional: ['gate', 'gateScales', 'upScales', 'downScales'],
    wrong: (make) => [
      ['up of different size', () => ({ up: make([7, 8]) })],
      ['down transposed', () => ({ down: make([6, 8]) })],
      ['mixed weights', () => ({ up: make([6, 8], 'bf16') })],
      ['unknown activation', () => ({ activation: 'swish' })],
      ['gate of different size', () => ({ gate: make([7, 8]) })],
      ['gate of another type', () => ({ gate: make([6, 8], 'bf16') })],
    ],
  });
});
