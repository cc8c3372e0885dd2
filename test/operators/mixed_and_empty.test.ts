// Common to all operators: inputs of different types, tensors without elements, and unsupported
// types.

import { kernels, type Tensor } from '../../lib/index';
import { coarsest, expectClose, tolerances } from '../support/compare';
import { onEveryDevice, type Tensors, withTensors } from '../support/devices';
import { expectCode, invalid } from '../support/misuse';
import { type FloatType, Random } from '../support/numbers';
import { augmentedQ, matmul, rmsNorm } from '../support/reference';

const types = ['f32', 'bf16', 'f16'] as const;
const triples = types.flatMap((a) => types.flatMap((b) => types.map((c) => [a, b, c] as const)));

onEveryDevice((device) => {
  describe.each([1, 3, 40])('mixed types, %i tokens', (numTokens) => {
    it.each(triples)('matmul: x %s, weight %s, out %s', async (xType, weightType, outType) => {
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

    it.each(triples)('augmentedQ: x %s, weights %s, out %s', async (xType, weightType, outType) => {
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

    it.each(triples)('rmsNorm: x %s, residual %s, out and weight %s', async (xType, residualType, outType) => {
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

  const calls = (tensors: Tensors, type: FloatType | 'f8e4m3', n: number): [string, () => Promise<Tensor>][] => {
    const make = (shape: number[], dtype: FloatType | 'f8e4m3' | 'i32' = type): Tensor =>
      tensors.keep(device().tensor(dtype, shape));
    return [
      [
        'prefill',
        () => kernels.attentionPrefill({ q: make([n, 2, 4, 8]), k: make([n, 3, 2, 8]), v: make([n, 3, 4, 8]) }),
      ],
      ['decode', () => kernels.attentionDecode({ q: make([n, 4, 8]), k: make([n, 3, 2, 8]), v: make([n, 3, 4, 8]) })],
      ['matmul', () => kernels.matmul({ x: make([n, 8]), weight: make([3, 8]) })],
      [
        'augmentedQ',
        () => kernels.augmentedQ({ x: make([n, 8]), gate: make([3, 8]), up: make([3, 8]), down: make([8, 3]) }),
      ],
      ['rmsNorm', () => kernels.rmsNorm({ x: make([n, 8]), weight: make([8]), eps: 1e-5 })],
      ['rope', () => kernels.rope({ x: make([n, 1, 8]), positions: make([n], 'i32'), theta: 1e4 })],
      ['gatedActivation', () => kernels.gatedActivation({ gate: make([n, 8]), up: make([n, 8]) })],
      ['addBias', () => kernels.addBias({ x: make([n, 8]), bias: make([8], 'f32') })],
      ['embed', () => kernels.embed({ table: make([2, 8]), tokens: make([n], 'i32') })],
    ];
  };

  it.each(types)('returns no tokens for no tokens: %s', async (type) => {
    await withTensors(device(), async (tensors) => {
      for (const [name, call] of calls(tensors, type, 0)) {
        const out = tensors.keep(await call());
        expect([name, out.byteLength, await out.read()]).toEqual([name, 0, new Float32Array(0)]);
      }
    });
  });

  it('returns zeros, and -Infinity in lse, without keys', async () => {
    await withTensors(device(), async (tensors) => {
      const [k, v] = [device().tensor('f32', [2, 0, 2, 8]), device().tensor('f32', [2, 0, 4, 8])].map((tensor) =>
        tensors.keep(tensor),
      ) as [Tensor, Tensor];
      for (const selectiveV of [undefined, { topK: 3, renormalize: true }]) {
        const lse = tensors.out('f32', [2, 4]);
        const out = tensors.out('f32', [2, 4, 8]);
        await kernels.attentionDecode({
          q: tensors.make('f32', [2, 4, 8], new Float32Array(64).fill(1)),
          k,
          v,
          lse,
          out,
          selectiveV,
        });
        expect([...(await out.read())]).toEqual(new Array(64).fill(0));
        expect([...(await lse.read())]).toEqual(new Array(8).fill(Number.NEGATIVE_INFINITY));
      }
      const lse = tensors.out('f32', [2, 4, 3]);
      const out = tensors.out('f32', [2, 3, 4, 8]);
      await kernels.attentionPrefill({
        q: tensors.make('f32', [2, 3, 4, 8], new Float32Array(192).fill(1)),
        k,
        v,
        lse,
        out,
        causal: true,
      });
      expect([...(await out.read())]).toEqual(new Array(192).fill(0));
      expect([...(await lse.read())]).toEqual(new Array(24).fill(Number.NEGATIVE_INFINITY));
    });
  });

  it('names the supported types when it rejects f8e4m3, which is only a storage type', async () => {
    await withTensors(device(), async (tensors) => {
      for (const [, call] of calls(tensors, 'f8e4m3', 2)) await expectCode(call, invalid, 'f8e4m3', 'bf16');
    });
  });
});
