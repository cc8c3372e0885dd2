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

    it.each<[string, (a: Anything) => void]>([
      [
        'q of rank 3',
        (a) => {
          a.q = make([3, 4, 8]);
        },
      ],
      [
        'k of rank 2',
        (a) => {
          a.k = make([5, 16]);
        },
      ],
      [
        'v of rank 5',
        (a) => {
          a.v = make([1, 5, 4, 16, 1]);
        },
      ],
      [
        'different batch in k',
        (a) => {
          a.k = make([2, 5, 2, 8]);
        },
      ],
      [
        'different batch in v',
        (a) => {
          a.v = make([2, 5, 4, 16]);
        },
      ],
      [
        'different kvLen in v',
        (a) => {
          a.v = make([1, 6, 4, 16]);
        },
      ],
      [
        'different head size in k',
        (a) => {
          a.k = make([1, 5, 2, 16]);
        },
      ],
      [
        'K heads that do not divide',
        (a) => {
          a.k = make([1, 5, 3, 8]);
        },
      ],
      [
        'V heads that do not divide',
        (a) => {
          a.v = make([1, 5, 3, 16]);
        },
      ],
      [
        'more K heads than Q heads',
        (a) => {
          a.k = make([1, 5, 8, 8]);
        },
      ],
      [
        'no K heads',
        (a) => {
          a.k = make([1, 5, 0, 8]);
        },
      ],
      [
        'no V heads',
        (a) => {
          a.v = make([1, 5, 0, 16]);
        },
      ],
      [
        'out of wrong shape',
        (a) => {
          a.out = make([1, 3, 4, 8]);
        },
      ],
      [
        'out of integers',
        (a) => {
          a.out = make([1, 3, 4, 16], 'i32');
        },
      ],
      [
        'q of integers',
        (a) => {
          a.q = make([1, 3, 4, 8], 'i32');
        },
      ],
      [
        'k of i8',
        (a) => {
          a.k = make([1, 5, 2, 8], 'i8');
        },
      ],
      [
        'lse of wrong shape',
        (a) => {
          a.lse = make([1, 3, 4]);
        },
      ],
      [
        'lse in bf16',
        (a) => {
          a.lse = make([1, 4, 3], 'bf16');
        },
      ],
      [
        'kvLens of f32',
        (a) => {
          a.kvLens = make([1]);
        },
      ],
      [
        'kvLens too long',
        (a) => {
          a.kvLens = make([2], 'i32');
        },
      ],
      [
        'kvLens an array',
        (a) => {
          a.kvLens = [5];
        },
      ],
      [
        'smScale NaN',
        (a) => {
          a.smScale = Number.NaN;
        },
      ],
      [
        'smScale infinite',
        (a) => {
          a.smScale = Number.POSITIVE_INFINITY;
        },
      ],
      [
        'smScale a string',
        (a) => {
          a.smScale = '1';
        },
      ],
      [
        'causal a number',
        (a) => {
          a.causal = 1;
        },
      ],
      [
        'q missing',
        (a) => {
          a.q = undefined;
        },
      ],
      [
        'k an array',
        (a) => {
          a.k = new Float32Array(80);
        },
      ],
      [
        'v null',
        (a) => {
          a.v = null;
        },
      ],
      [
        'out as q',
        (a) => {
          a.v = make([1, 5, 4, 8]);
          a.out = a.q;
        },
      ],
    ])('attentionPrefill rejects %s', async (_, change) => {
      const args = prefill();
      change(args);
      await expectCode(() => kernels.attentionPrefill(args), invalid, /./);
      made.push(await kernels.attentionPrefill(prefill()));
    });

    it.each<[string, (a: Anything) => void]>([
      [
        'q of rank 4',
        (a) => {
          a.q = make([2, 1, 4, 8]);
        },
      ],
      [
        'K heads that do not divide',
        (a) => {
          a.k = make([2, 5, 3, 8]);
        },
      ],
      [
        'another batch',
        (a) => {
          a.q = make([3, 4, 8]);
        },
      ],
      [
        'out of wrong shape',
        (a) => {
          a.out = make([2, 4, 8]);
        },
      ],
      [
        'lse of wrong shape',
        (a) => {
          a.lse = make([2, 4, 1]);
        },
      ],
      [
        'selectiveV true',
        (a) => {
          a.selectiveV = true;
        },
      ],
      [
        'selectiveV without topK',
        (a) => {
          a.selectiveV = {};
        },
      ],
      [
        'renormalize a string',
        (a) => {
          a.selectiveV = { topK: 1, renormalize: 'yes' };
        },
      ],
      [
        'numSplits a string',
        (a) => {
          a.numSplits = '2';
        },
      ],
      [
        'numSplits NaN',
        (a) => {
          a.numSplits = Number.NaN;
        },
      ],
    ])('attentionDecode rejects %s', async (_, change) => {
      const args = decode();
      change(args);
      await expectCode(() => kernels.attentionDecode(args), invalid, /./);
    });

    it.each<[string, () => unknown]>([
      ['matmul: other in', () => kernels.matmul({ x: make([2, 8]), weight: make([3, 9]) })],
      ['matmul: rank', () => kernels.matmul({ x: make([8]), weight: make([3, 8]) })],
      ['matmul: out shape', () => kernels.matmul({ x: make([2, 8]), weight: make([3, 8]), out: make([3, 2]) })],
      ['matmul: integers', () => kernels.matmul({ x: make([2, 8], 'i32'), weight: make([3, 8]) })],
      [
        'matmul: in place',
        () => {
          const x = make([8, 8]);
          return kernels.matmul({ x, weight: make([8, 8]), out: x });
        },
      ],
      [
        'augmentedQ: up of different size',
        () => kernels.augmentedQ({ x: make([2, 8]), gate: make([6, 8]), up: make([7, 8]), down: make([8, 6]) }),
      ],
      [
        'augmentedQ: down transposed',
        () => kernels.augmentedQ({ x: make([2, 8]), gate: make([6, 8]), up: make([6, 8]), down: make([6, 8]) }),
      ],
      [
        'augmentedQ: mixed weights',
        () => kernels.augmentedQ({ x: make([2, 8]), gate: make([6, 8]), up: make([6, 8], 'bf16'), down: make([8, 6]) }),
      ],
      ['rmsNorm: weight size', () => kernels.rmsNorm({ x: make([2, 8]), weight: make([9]), eps: 1e-5 })],
      ['rmsNorm: eps NaN', () => kernels.rmsNorm({ x: make([2, 8]), weight: make([8]), eps: Number.NaN })],
      ['rmsNorm: eps negative', () => kernels.rmsNorm({ x: make([2, 8]), weight: make([8]), eps: -1 })],
      ['rmsNorm: eps missing', () => kernels.rmsNorm({ x: make([2, 8]), weight: make([8]) } as Anything)],
      [
        'rmsNorm: residual shape',
        () => kernels.rmsNorm({ x: make([2, 8]), weight: make([8]), eps: 1e-5, residual: make([1, 8]) }),
      ],
      [
        'rmsNorm: accumulate into bf16',
        () =>
          kernels.rmsNorm({
            x: make([2, 8]),
            weight: make([8]),
            eps: 1e-5,
            out: make([2, 8], 'bf16'),
            accumulate: true,
          }),
      ],
      [
        'rmsNorm: accumulate with a residual',
        () =>
          kernels.rmsNorm({
            x: make([2, 8]),
            weight: make([8]),
            eps: 1e-5,
            residual: make([2, 8]),
            out: make([2, 8]),
            accumulate: true,
          }),
      ],
      [
        'rmsNorm: accumulate without out',
        () => kernels.rmsNorm({ x: make([2, 8]), weight: make([8]), eps: 1e-5, accumulate: true }),
      ],
      [
        'rmsNorm: accumulate a number',
        () =>
          kernels.rmsNorm({
            x: make([2, 8]),
            weight: make([8]),
            eps: 1e-5,
            out: make([2, 8]),
            accumulate: 1 as Anything,
          }),
      ],
      ['rope: odd head', () => kernels.rope({ x: make([2, 1, 7]), positions: make([2], 'i32'), theta: 1e4 })],
      ['rope: positions of f32', () => kernels.rope({ x: make([2, 1, 8]), positions: make([2]), theta: 1e4 })],
      ['rope: too few positions', () => kernels.rope({ x: make([2, 1, 8]), positions: make([1], 'i32'), theta: 1e4 })],
      ['rope: theta 0', () => kernels.rope({ x: make([2, 1, 8]), positions: make([2], 'i32'), theta: 0 })],
      ['rope: theta NaN', () => kernels.rope({ x: make([2, 1, 8]), positions: make([2], 'i32'), theta: Number.NaN })],
      ['gatedActivation: other shapes', () => kernels.gatedActivation({ gate: make([2, 8]), up: make([8, 2]) })],
      [
        'gatedActivation: different types',
        () => kernels.gatedActivation({ gate: make([2, 8]), up: make([2, 8], 'bf16') }),
      ],
      [
        'gatedActivation: unknown activation',
        () => kernels.gatedActivation({ up: make([2, 8]), activation: 'tanh' as Anything }),
      ],
      [
        'gatedActivation: activation null',
        () => kernels.gatedActivation({ up: make([2, 8]), activation: null as Anything }),
      ],
      ['gatedActivation: no up', () => kernels.gatedActivation({ gate: make([2, 8]) } as Anything)],
      ['gatedActivation: gate null', () => kernels.gatedActivation({ gate: null as Anything, up: make([2, 8]) })],
      [
        'augmentedQ: unknown activation',
        () =>
          kernels.augmentedQ({
            x: make([2, 8]),
            gate: make([6, 8]),
            up: make([6, 8]),
            down: make([8, 6]),
            activation: 'swish' as Anything,
          }),
      ],
      [
        'augmentedQ: gate of different size',
        () => kernels.augmentedQ({ x: make([2, 8]), gate: make([7, 8]), up: make([6, 8]), down: make([8, 6]) }),
      ],
      [
        'augmentedQ: gate of another type',
        () => kernels.augmentedQ({ x: make([2, 8]), gate: make([6, 8], 'bf16'), up: make([6, 8]), down: make([8, 6]) }),
      ],
      ['addBias: x of rank 1', () => kernels.addBias({ x: make([8]), bias: make([8]) })],
      ['addBias: bias of another size', () => kernels.addBias({ x: make([2, 8]), bias: make([7]) })],
      ['addBias: bias of bf16', () => kernels.addBias({ x: make([2, 8], 'bf16'), bias: make([8], 'bf16') })],
      [
        'addBias: out of another type',
        () => kernels.addBias({ x: make([2, 8]), bias: make([8]), out: make([2, 8], 'bf16') }),
      ],
      ['softcap: x of bf16', () => kernels.softcap({ x: make([2, 8], 'bf16'), cap: 30 })],
      ['softcap: out of another shape', () => kernels.softcap({ x: make([2, 8]), cap: 30, out: make([8, 2]) })],
      ['softcap: out of bf16', () => kernels.softcap({ x: make([2, 8]), cap: 30, out: make([2, 8], 'bf16') })],
      ['softcap: cap 0', () => kernels.softcap({ x: make([2, 8]), cap: 0 })],
      ['softcap: cap negative', () => kernels.softcap({ x: make([2, 8]), cap: -1 })],
      ['softcap: cap NaN', () => kernels.softcap({ x: make([2, 8]), cap: Number.NaN })],
      ['softcap: cap infinite', () => kernels.softcap({ x: make([2, 8]), cap: Number.POSITIVE_INFINITY })],
      ['softcap: cap 0 in f32', () => kernels.softcap({ x: make([2, 8]), cap: 1e-60 })],
      ['softcap: cap missing', () => kernels.softcap({ x: make([2, 8]) } as Anything)],
      ['embed: tokens of f32', () => kernels.embed({ table: make([4, 8]), tokens: make([2]) })],
      ['embed: scale NaN', () => kernels.embed({ table: make([4, 8]), tokens: make([2], 'i32'), scale: Number.NaN })],
      ['embed: scale beyond f32', () => kernels.embed({ table: make([4, 8]), tokens: make([2], 'i32'), scale: 1e39 })],
      [
        'embed: scale null',
        () => kernels.embed({ table: make([4, 8]), tokens: make([2], 'i32'), scale: null as Anything }),
      ],
      ['embed: table of rank 1', () => kernels.embed({ table: make([8]), tokens: make([2], 'i32') })],
    ])('rejects %s', async (_, call) => {
      await expectCode(call, invalid, /./);
    });

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
