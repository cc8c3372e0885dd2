// Misuse of kernel calls returns a coded error and leaves the objects usable.

import { kernels, openDevice, type Tensor } from '../../lib/index';
import { onEveryDevice } from '../support/devices';
import { type Anything, expectCode, invalid, notAnything } from '../support/misuse';

onEveryDevice((device) => {
  describe('kernels', () => {
    const made: Tensor[] = [];
    const make = (shape: number[], dtype: Anything = 'f32'): Tensor => {
      const tensor = device().tensor(dtype, shape);
      made.push(tensor);
      return tensor;
    };
    afterEach(() => {
      for (const tensor of made.splice(0)) tensor.dispose();
    });

    const prefill = (): Anything => ({ q: make([1, 3, 4, 8]), k: make([1, 5, 2, 8]), v: make([1, 5, 4, 16]) });
    const decode = (): Anything => ({ q: make([2, 4, 8]), k: make([2, 5, 2, 8]), v: make([2, 5, 4, 16]) });

    it.each(Object.keys(kernels) as (keyof typeof kernels)[])(
      '%s rejects an argument that is not an object of tensors',
      async (name) => {
        for (const value of notAnything) await expectCode(() => (kernels[name] as Anything)(value), invalid);
      },
    );

    it.each<[string, () => unknown]>([
      ...(['smScale', 'kvLens', 'out', 'lse', 'causal'] as const).map((name): [string, () => unknown] => [
        `attentionPrefill: ${name}`,
        () => kernels.attentionPrefill({ ...prefill(), [name]: null }),
      ]),
      ...(['smScale', 'kvLens', 'out', 'lse', 'numSplits', 'selectiveV'] as const).map(
        (name): [string, () => unknown] => [
          `attentionDecode: ${name}`,
          () => kernels.attentionDecode({ ...decode(), [name]: null }),
        ],
      ),
      ['matmul: out', () => kernels.matmul({ x: make([2, 8]), weight: make([3, 8]), out: null as Anything })],
      [
        'rmsNorm: residual',
        () => kernels.rmsNorm({ x: make([2, 8]), weight: make([8]), eps: 1, residual: null as Anything }),
      ],
    ])('rejects null: %s', async (_, call) => {
      await expectCode(call, invalid, /null/);
    });

    const cache = (dtype: string): Anything => ({
      k: make([2, 5, 2, 8], dtype),
      v: make([2, 5, 4, 16], dtype),
      ...(dtype === 'i8' ? { kScales: make([2, 5, 2], 'bf16'), vScales: make([2, 5, 4], 'bf16') } : {}),
      kvLens: make([2], 'i32'),
    });
    // Every tensor of every kernel, in a call that is right.
    const calls: Record<string, { kernel: keyof typeof kernels; args: () => Anything; free?: string[] }> = {
      ...Object.fromEntries(
        ['f32', 'i8'].flatMap((dtype) => [
          [
            `attentionPrefill, ${dtype}`,
            {
              kernel: 'attentionPrefill',
              args: () => ({
                ...{ q: make([2, 3, 4, 8]), ...cache(dtype) },
                ...{ out: make([2, 3, 4, 16]), lse: make([2, 4, 3]) },
              }),
            },
          ],
          [
            `attentionDecode, ${dtype}`,
            {
              kernel: 'attentionDecode',
              args: () => ({ q: make([2, 4, 8]), ...cache(dtype), out: make([2, 4, 16]), lse: make([2, 4]) }),
            },
          ],
        ]),
      ),
      quantize: {
        kernel: 'quantize',
        args: () => ({ x: make([3, 8]), dtype: 'i8', out: make([3, 8], 'i8'), scales: make([3], 'bf16') }),
      },
      quantizeWeight: {
        kernel: 'quantizeWeight',
        args: () => ({ weight: make([3, 8]), type: 'i8' }),
        free: ['weight 0', 'weight 1'],
      },
      augmentedQ: {
        kernel: 'augmentedQ',
        args: () => ({
          ...{ x: make([2, 8]), gate: make([6, 8]), up: make([6, 8]), down: make([8, 6]) },
          out: make([2, 8]),
        }),
      },
      matmul: { kernel: 'matmul', args: () => ({ x: make([2, 8]), weight: make([3, 8]), out: make([2, 3]) }) },
      'matmul, i8': {
        kernel: 'matmul',
        args: () => ({
          ...{ x: make([2, 32]), weight: make([3, 32], 'i8'), weightScales: make([3, 1], 'bf16') },
          ...{ groupSize: 32, out: make([2, 3]) },
        }),
      },
      rmsNorm: {
        kernel: 'rmsNorm',
        args: () => ({ x: make([2, 8]), weight: make([8]), eps: 1, residual: make([2, 8]), out: make([2, 8]) }),
      },
      rope: {
        kernel: 'rope',
        args: () => ({ x: make([3, 2, 8]), positions: make([3], 'i32'), theta: 1e4, out: make([3, 2, 8]) }),
      },
      addBias: { kernel: 'addBias', args: () => ({ x: make([2, 8]), bias: make([8]), out: make([2, 8]) }) },
      gatedActivation: {
        kernel: 'gatedActivation',
        args: () => ({ gate: make([2, 8]), up: make([2, 8]), out: make([2, 8]) }),
      },
      softcap: { kernel: 'softcap', args: () => ({ x: make([2, 8]), cap: 3, out: make([2, 8]) }) },
      embed: {
        kernel: 'embed',
        args: () => ({ table: make([9, 8]), tokens: make([3], 'i32'), out: make([3, 8]) }),
        free: ['table 0'],
      },
    };

    it('has a right call of every kernel', async () => {
      const named = new Set(Object.values(calls).map(({ kernel }) => kernel));
      expect([...named].sort()).toEqual(Object.keys(kernels).sort());
      for (const { kernel, args } of Object.values(calls)) await (kernels[kernel] as Anything)(args());
    });

    it.each(Object.keys(calls))('%s rejects a tensor of any other shape or an impossible type', async (name) => {
      const { kernel, args, free = [] } = calls[name] as (typeof calls)[string];
      const right = args();
      const rejects = (tensor: string, shape: number[], dtype: string) =>
        expectCode(() => (kernels[kernel] as Anything)({ ...right, [tensor]: make(shape, dtype) }), invalid);
      for (const [tensor, { shape, dtype }] of Object.entries<Anything>(right)) {
        if (shape === undefined) continue;
        await rejects(tensor, [1, ...shape], dtype);
        await rejects(tensor, [...shape, 1], dtype);
        for (let axis = 0; axis < shape.length; axis++) {
          if (free.includes(`${tensor} ${axis}`)) continue;
          const other = [...shape];
          other[axis]++;
          await rejects(tensor, other, dtype);
        }
        await rejects(tensor, shape, dtype === 'i32' ? 'f32' : 'i32');
      }
    });

    it('rejects tensors of another device', async () => {
      const other = await openDevice('cpu');
      const foreign = other.tensor('f32', [2, 8]);
      await expectCode(() => kernels.gatedActivation({ gate: make([2, 8]), up: foreign }), invalid, /device/);
      await expectCode(
        () => kernels.gatedActivation({ gate: make([2, 8]), up: make([2, 8]), out: foreign }),
        invalid,
        /device/,
      );
      await expectCode(
        () => kernels.rmsNorm({ x: make([2, 8]), weight: make([8]), eps: 1, residual: foreign }),
        invalid,
        /device/,
      );
      other.dispose();
    });
  });
});
