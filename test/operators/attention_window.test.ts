// Attention with a sliding window and with a soft cap of the scores.

import { addon } from '../../lib/addon';
import { kernels, type Tensor } from '../../lib/index';
import { expectClose, tolerances } from '../support/compare';
import { errorOf, onEveryDevice, reduced, withTensors } from '../support/devices';
import { Random } from '../support/numbers';
import { attention, dequantizeRows, type QuantizedRows } from '../support/reference';
import { type AttentionCase, attentionInput, caseName, windowDecodeCases, windowPrefillCases } from './attention_cases';
import { checkAttention } from './attention_runner';

onEveryDevice((device) => {
  describe('attentionPrefill', () => {
    it.each(windowPrefillCases(reduced).map((c) => [caseName(c), c] as const))('%s', async (_, c) => {
      await checkAttention(device(), c, 'prefill');
    });
  });

  describe('attentionDecode', () => {
    it.each(windowDecodeCases(reduced).map((c) => [caseName(c), c] as const))('%s', async (_, c) => {
      await checkAttention(device(), c, 'decode');
    });
  });

  const types = [
    ['f32', 'f32', 'f32'],
    ['bf16', 'bf16', 'bf16'],
    ['bf16', 'i8', 'i8'],
    ['bf16', 'f8e4m3', 'f8e4m3'],
    ['f16', 'f8e4m3', 'i8'],
  ] as const;

  describe.each(types)('%s on %s and %s', (...[qType, kType, vType]) => {
    const c: AttentionCase = {
      heads: [8, 2, 4],
      dims: [64, 64],
      types: [qType, kType, vType],
      inputs: 'normal',
      batchSize: 2,
      qLen: 1,
      kvLen: 300,
      kvLens: [300, 170],
      causal: true,
    };
    type Input = ReturnType<typeof attentionInput>;

    /** Sets the K and V rows of keys [begin, end) of a sequence to NaN, and the scales if there are any. */
    const poison = (input: Input, batch: number, begin: number, end: number): void => {
      for (const [x, rows, heads] of [
        [input.k, input.kRows, 2],
        [input.v, input.vRows, 4],
      ] as const) {
        const range = (length: number) => [(batch * 300 + begin) * length, (batch * 300 + end) * length] as const;
        x.fill(Number.NaN, ...range(heads * 64));
        rows?.scales.fill(Number.NaN, ...range(heads));
        rows?.values.fill(127, ...range(heads * 64));
      }
    };

    async function run(
      input: Input,
      options: { qLen: number; window?: number; softcap?: number; selectiveV?: { topK: number }; numSplits?: number },
    ): Promise<{ out: Float32Array; lse: Float32Array }> {
      const { qLen, ...others } = options;
      return withTensors(device(), async (tensors) => {
        const cache = (type: typeof kType, heads: number, x: Float32Array, rows?: QuantizedRows) =>
          [
            tensors.keep(device().tensor(type, [2, 300, heads, 64], rows?.values ?? x)),
            rows && tensors.make('bf16', [2, 300, heads], rows.scales),
          ] as [Tensor, Tensor | undefined];
        const [k, kScales] = cache(kType, 2, input.k, input.kRows);
        const [v, vScales] = cache(vType, 4, input.v, input.vRows);
        const kvLens = tensors.make('i32', [2], Int32Array.of(300, 170));
        const perQuery = qLen > 1 ? [2, qLen] : [2];
        const q = tensors.make(qType, [...perQuery, 8, 64], input.q);
        const lse = tensors.out('f32', qLen > 1 ? [2, 8, qLen] : [2, 8]);
        const args = { q, k, v, kScales, vScales, kvLens, lse, ...others };
        const out =
          qLen > 1
            ? await kernels.attentionPrefill({ ...args, causal: true })
            : await kernels.attentionDecode({ ...args });
        return { out: await tensors.keep(out).read(), lse: await lse.read() };
      });
    }

    it.each(reduced ? [1, 65] : [1, 33, 64, 65, 129])('decode reads no key before a window of %i', async (window) => {
      const selections = [undefined, { topK: 10 }];
      for (const selectiveV of selections) {
        for (const numSplits of [0, 3]) {
          const options = { qLen: 1, window, selectiveV, numSplits };
          const input = attentionInput(c);
          const clean = await run(input, options);
          expect(clean.out.every(Number.isFinite)).toBe(true);
          poison(input, 0, 0, 300 - window);
          poison(input, 1, 0, 170 - window);
          expect(await run(input, options)).toEqual(clean);
          // The first key of the window is read.
          poison(input, 1, 170 - window, 171 - window);
          const { out, lse } = await run(input, options);
          expect(out.subarray(0, 8 * 64)).toEqual(clean.out.subarray(0, 8 * 64));
          expect(out.subarray(8 * 64).every(Number.isNaN)).toBe(true);
          expect(lse.subarray(8).every(Number.isNaN)).toBe(true);
        }
      }
    });

    it.each(reduced ? [1, 65] : [1, 64, 129])(
      'prefill reads no key before a window of %i of any query',
      async (window) => {
        const qLen = 20;
        const input = attentionInput({ ...c, qLen });
        const clean = await run(input, { qLen, window });
        expect(clean.out.every(Number.isFinite)).toBe(true);
        const [first0, first1] = [300 - qLen + 1 - window, 170 - qLen + 1 - window];
        poison(input, 0, 0, first0);
        poison(input, 1, 0, first1);
        expect(await run(input, { qLen, window })).toEqual(clean);
        // Only the first query sees the first key.
        poison(input, 1, first1, first1 + 1);
        const { out, lse } = await run(input, { qLen, window });
        const row = qLen * 8 * 64;
        expect(out.subarray(0, row)).toEqual(clean.out.subarray(0, row));
        expect(out.subarray(row, row + 8 * 64).every(Number.isNaN)).toBe(true);
        const others = Float64Array.from(clean.out.subarray(row + 8 * 64)); // not the same bits: NaN takes another path
        expectClose(out.subarray(row + 8 * 64), others, tolerances[qType], 64);
        for (let i = 0; i < 8 * qLen; i++) {
          const value = lse[8 * qLen + i] as number;
          if (i % qLen === 0) expect(value).toBeNaN();
          else expect(value).toBe(clean.lse[8 * qLen + i]);
        }
      },
    );

    it('keeps NaN of V in its own dimension and the queries that see it', async () => {
      const qLen = 20;
      const options = { qLen, window: 40 };
      const input = attentionInput({ ...c, ...options });
      const at = (key: number, head: number): number => (300 + key) * 4 + head;
      if (input.vRows === undefined) {
        input.v[at(130, 1) * 64 + 5] = Number.NaN;
        input.v[at(169, 2) * 64 + 7] = Number.NEGATIVE_INFINITY;
      } else {
        input.vRows.scales[at(130, 1)] = Number.NaN;
        input.v = dequantizeRows(input.vRows);
      }
      const { out, lse } = await run(input, options);
      const expected = attention({ ...input, causal: true });
      expect(expected.out.some((x) => !Number.isFinite(x))).toBe(true);
      expectClose(out, expected.out, tolerances[qType], 64);
      expectClose(lse, expected.lse, tolerances.lse, 1);
    });
  });

  // Only the tests' module has this check.
  ('emulation' in addon() ? it : it.skip)('reads no page before the windows of all queries', () => {
    // Not by test/emulation/module.ts, which a GPU machine does not have.
    const module = addon() as unknown as { emulation: { checkWindowPages(device: string): string } };
    expect(module.emulation.checkWindowPages(device().info.id)).toBe('');
  });

  it('caps an infinite product, and keeps NaN', async () => {
    await withTensors(device(), async (tensors) => {
      const k = new Float32Array(3 * 32);
      k[0] = 3e38; // q.k is infinite, then -infinite, then 0
      k[32] = -3e38;
      const q = new Float32Array(32);
      q[0] = 3e38;
      const run = async (): Promise<number[]> => {
        const args = {
          q: tensors.make('f32', [1, 1, 32], q),
          k: tensors.make('f32', [1, 3, 1, 32], k),
          v: tensors.make('f32', [1, 3, 1, 1], Float32Array.of(1, 2, 4)),
          smScale: 1,
          softcap: 2,
        };
        return [...(await tensors.keep(await kernels.attentionDecode(args)).read())];
      };
      const [x = 0] = await run();
      const [a, b] = [Math.exp(2), Math.exp(-2)];
      expect(Math.abs(x - (a + 2 * b + 4) / (a + b + 1))).toBeLessThan(1e-5);
      k[64] = Number.NaN;
      expect(await run()).toEqual([Number.NaN]);
    });
  });

  it('decodes a sequence alone and in a batch to the same bits', async () => {
    if (device().info.kind !== 'cpu') return;
    const random = new Random(3);
    const lengths = [300, 128, 65];
    for (const type of ['f32', 'bf16'] as const) {
      const q = random.normals(3 * 8 * 64, 1, type);
      const k = random.normals(3 * 300 * 2 * 64, 1, type);
      const v = random.normals(3 * 300 * 4 * 64, 1, type);
      await withTensors(device(), async (tensors) => {
        const run = async (first: number, count: number, selectiveV?: { topK: number }): Promise<Float32Array> => {
          const part = (x: Float32Array): Float32Array =>
            x.subarray((first * x.length) / 3, ((first + count) * x.length) / 3);
          const args = {
            q: tensors.make(type, [count, 8, 64], part(q)),
            k: tensors.make(type, [count, 300, 2, 64], part(k)),
            v: tensors.make(type, [count, 300, 4, 64], part(v)),
            kvLens: tensors.make('i32', [count], Int32Array.from(lengths.slice(first, first + count))),
            window: 100,
            softcap: 5,
            selectiveV,
          };
          return tensors.keep(await kernels.attentionDecode(args)).read();
        };
        for (const selectiveV of [undefined, { topK: 20 }]) {
          const all = await run(0, 3, selectiveV);
          for (let b = 0; b < 3; b++)
            expect(await run(b, 1, selectiveV)).toEqual(all.slice(b * 8 * 64, (b + 1) * 8 * 64));
        }
      });
    }
  });

  it.each([
    ['window -1', { window: -1 }, 'window is -1'],
    ['window 1.5', { window: 1.5 }, 'window is 1.5'],
    ['window NaN', { window: Number.NaN }, 'window must be a number'],
    ['window is a string', { window: '8' as unknown as number }, 'window'],
    ['softcap -1', { softcap: -1 }, 'softcap is -1'],
    ['softcap Infinity', { softcap: Number.POSITIVE_INFINITY }, 'softcap is inf'],
    ['softcap 1e-50', { softcap: 1e-50 }, 'softcap is 1e-50'],
    ['softcap 1e39', { softcap: 1e39 }, 'softcap is 1e+39'],
    ['softcap NaN', { softcap: Number.NaN }, 'softcap must be a number'],
    ['softcap is null', { softcap: null as unknown as number }, 'softcap'],
  ])('rejects %s', async (_, options, message) => {
    await withTensors(device(), async (tensors) => {
      const q = tensors.make('f32', [1, 2, 8], new Float32Array(16));
      const queries = tensors.make('f32', [1, 1, 2, 8], new Float32Array(16));
      const k = tensors.make('f32', [1, 4, 2, 8], new Float32Array(64));
      for (const work of [
        () => kernels.attentionDecode({ q, k, v: k, ...options }),
        () => kernels.attentionPrefill({ q: queries, k, v: k, causal: true, ...options }),
      ]) {
        const error = await errorOf(work);
        expect(error.code).toBe('ERR_INVALID_ARGUMENT');
        expect(error.message).toContain(message);
      }
    });
  });

  it('rejects a window without causal', async () => {
    await withTensors(device(), async (tensors) => {
      const q = tensors.make('f32', [1, 1, 2, 8], new Float32Array(16));
      const k = tensors.make('f32', [1, 4, 2, 8], new Float32Array(64));
      const error = await errorOf(() => kernels.attentionPrefill({ q, k, v: k, window: 2 }));
      expect([error.code, error.message]).toEqual([
        'ERR_INVALID_ARGUMENT',
        'window is 2 and causal is false; a window needs causal: true',
      ]);
    });
  });
});
