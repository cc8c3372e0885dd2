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
