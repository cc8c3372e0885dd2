import { kernels } from '../../lib/index';
import { errorOfRead, onEveryDevice, reduced, withTensors } from '../support/devices';
import { Random } from '../support/numbers';
import { testCalls } from '../support/operator_calls';
import { attentionInput, caseName, prefillCases } from './attention_cases';
import { checkAttention } from './attention_runner';

onEveryDevice((device) => {
  it.each(prefillCases(reduced).map((c) => [caseName(c), c] as const))('%s', async (_, c) => {
    await checkAttention(device(), c, 'prefill');
  });

  it('allocates its output if none is given', async () => {
    await withTensors(device(), async (tensors) => {
      const random = new Random(1);
      const q = tensors.make('bf16', [2, 3, 8, 32], random.normals(2 * 3 * 8 * 32, 0.1, 'bf16'));
      const k = tensors.make('bf16', [2, 5, 2, 32], random.normals(2 * 5 * 2 * 32, 0.1, 'bf16'));
      const v = tensors.make('bf16', [2, 5, 4, 64], random.normals(2 * 5 * 4 * 64, 0.1, 'bf16'));
      const out = tensors.keep(await kernels.attentionPrefill({ q, k, v, causal: true }));
      expect([out.dtype, out.shape]).toEqual(['bf16', [2, 3, 8, 64]]);
      const again = tensors.keep(await kernels.attentionPrefill({ q, k, v, causal: true }));
      expect(await again.read()).toEqual(await out.read()); // the same call gives the same bits
    });
  });

  it.each(['f32', 'bf16', 'f16'] as const)(
    'never reads NaN past kvLens or in the future, and propagates NaN in sight: %s',
    async (type) => {
      const input = attentionInput({
        heads: [4, 2, 4],
        dims: [32, 32],
        types: [type, type, type],
        inputs: 'normal',
        batchSize: 1,
        qLen: 8,
        kvLen: 40,
        causal: true,
      });
      await withTensors(device(), async (tensors) => {
        const run = async (k: Float32Array, v: Float32Array): Promise<Float32Array> => {
          const out = tensors.out(type, [1, 8, 4, 32]);
          await kernels.attentionPrefill({
            q: tensors.make(type, [1, 8, 4, 32], input.q),
            k: tensors.make(type, [1, 40, 2, 32], k),
            v: tensors.make(type, [1, 40, 4, 32], v),
            kvLens: tensors.make('i32', [1], Int32Array.of(20)),
            causal: true,
            out,
          });
          return out.read();
        };
        const clean = await run(input.k, input.v);
        expect(clean.every(Number.isFinite)).toBe(true);
        const poisonedK = input.k.slice().fill(Number.NaN, 20 * 2 * 32);
        const poisonedV = input.v.slice().fill(Number.NaN, 20 * 4 * 32);
        expect(await run(poisonedK, poisonedV)).toEqual(clean);
        poisonedV.fill(Number.POSITIVE_INFINITY, 20 * 4 * 32);
        expect(await run(poisonedK, poisonedV)).toEqual(clean);

        // Only the last query sees key 19, and only Q head 1 reads V head 1.
        const oneV = input.v.slice();
        oneV[(19 * 4 + 1) * 32 + 5] = Number.NaN;
        const seen = await run(input.k, oneV);
        seen.forEach((x, i) => {
          if (i === (7 * 4 + 1) * 32 + 5) expect(x).toBeNaN();
          else if (x !== clean[i]) throw new Error(`element ${i} changed`);
        });
        // A NaN in K makes the scores of both Q heads that read it NaN, and so the whole rows of
        // the last query.
        const oneK = input.k.slice();
        oneK[(19 * 2 + 1) * 32 + 3] = Number.NaN;
        const rows = await run(oneK, input.v);
        rows.forEach((x, i) => {
          if (i >= (7 * 4 + 2) * 32) expect(x).toBeNaN();
          else if (x !== clean[i]) throw new Error(`element ${i} changed`);
        });
      });
    },
  );

  it('rejects kvLens outside [0, kvLen] and leaves the device usable', async () => {
    await withTensors(device(), async (tensors) => {
      const q = tensors.make('f32', [1, 2, 2, 8], new Float32Array(32));
      const k = tensors.make('f32', [1, 4, 2, 8], new Float32Array(64));
      for (const length of [-1, 5, 2 ** 31 - 1]) {
        const error = await errorOfRead(device(), () =>
          kernels.attentionPrefill({ q, k, v: k, kvLens: tensors.make('i32', [1], Int32Array.of(length)) }),
        );
        expect(error.code).toBe('ERR_INVALID_ARGUMENT');
        expect(error.message).toContain(String(length));
      }
      const out = tensors.keep(
        await kernels.attentionPrefill({ q, k, v: k, kvLens: tensors.make('i32', [1], Int32Array.of(4)) }),
      );
      expect([...(await out.read())]).toEqual(new Array(32).fill(0));
    });
  });

  it('returns zeros, and -Infinity in lse, without keys', async () => {
    await withTensors(device(), async (tensors) => {
      const [k, v] = [
        tensors.keep(device().tensor('f32', [2, 0, 2, 8])),
        tensors.keep(device().tensor('f32', [2, 0, 4, 8])),
      ];
      const lse = tensors.out('f32', [2, 4, 3]);
      const out = tensors.out('f32', [2, 3, 4, 8]);
      const q = tensors.make('f32', [2, 3, 4, 8], new Float32Array(192).fill(1));
      await kernels.attentionPrefill({ q, k, v, lse, out, causal: true });
      expect([...(await out.read())]).toEqual(new Array(192).fill(0));
      expect([...(await lse.read())]).toEqual(new Array(24).fill(Number.NEGATIVE_INFINITY));
    });
  });

  testCalls(device, kernels.attentionPrefill, {
    args: (make, n, type) => ({
      q: make([n, 3, 4, 8], type),
      k: make([n, 5, 2, 8], type),
      v: make([n, 5, 4, 16], type),
    }),
    optional: ['kScales', 'vScales', 'lse', 'kvLens'],
    wrong: (make) => [
      ['q of rank 3', () => ({ q: make([3, 4, 8]) })],
      ['k of rank 2', () => ({ k: make([5, 16]) })],
      ['v of rank 5', () => ({ v: make([2, 5, 4, 16, 1]) })],
      ['different batch in k', () => ({ k: make([3, 5, 2, 8]) })],
      ['different batch in v', () => ({ v: make([3, 5, 4, 16]) })],
      ['different kvLen in v', () => ({ v: make([2, 6, 4, 16]) })],
      ['different head size in k', () => ({ k: make([2, 5, 2, 16]) })],
      ['K heads that do not divide', () => ({ k: make([2, 5, 3, 8]) })],
      ['V heads that do not divide', () => ({ v: make([2, 5, 3, 16]) })],
      ['more K heads than Q heads', () => ({ k: make([2, 5, 8, 8]) })],
      ['no K heads', () => ({ k: make([2, 5, 0, 8]) })],
      ['no V heads', () => ({ v: make([2, 5, 0, 16]) })],
      ['out of wrong shape', () => ({ out: make([2, 3, 4, 8]) })],
      ['out of integers', () => ({ out: make([2, 3, 4, 16], 'i32') })],
      ['q of integers', () => ({ q: make([2, 3, 4, 8], 'i32') })],
      ['k of i8', () => ({ k: make([2, 5, 2, 8], 'i8') })],
      ['lse of wrong shape', () => ({ lse: make([2, 3, 4]) })],
      ['lse in bf16', () => ({ lse: make([2, 4, 3], 'bf16') })],
      ['kvLens of f32', () => ({ kvLens: make([2]) })],
      ['kvLens too long', () => ({ kvLens: make([3], 'i32') })],
      ['kvLens an array', () => ({ kvLens: [5, 5] })],
      ['smScale NaN', () => ({ smScale: Number.NaN })],
      ['smScale infinite', () => ({ smScale: Number.POSITIVE_INFINITY })],
      ['smScale a string', () => ({ smScale: '1' })],
      ['causal a number', () => ({ causal: 1 })],
      ['q missing', () => ({ q: undefined })],
      ['k an array', () => ({ k: new Float32Array(80) })],
      ['v null', () => ({ v: null })],
      [
        'out as q',
        () => {
          const q = make([2, 3, 4, 8]);
          return { q, v: make([2, 5, 4, 8]), out: q };
        },
      ],
    ],
  });
});
