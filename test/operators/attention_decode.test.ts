import { kernels } from '../../lib/index';
import { expectClose, tolerances } from '../support/compare';
import { onEveryDevice, reduced, withTensors } from '../support/devices';
import { testCalls } from '../support/operator_calls';
import { attention } from '../support/reference';
import { attentionInput, caseName, decodeCases } from './attention_cases';
import { checkAttention } from './attention_runner';

onEveryDevice((device) => {
  it.each(decodeCases(reduced).map((c) => [caseName(c), c] as const))('%s', async (_, c) => {
    await checkAttention(device(), c, 'decode');
  });

  it.each(['f32', 'bf16', 'f16'] as const)('reads only the kept rows of V with selectiveV: %s', async (type) => {
    const input = attentionInput({
      heads: [4, 1, 2],
      dims: [32, 32],
      types: [type, type, type],
      inputs: 'equal',
      batchSize: 1,
      qLen: 1,
      kvLen: 50,
      causal: false,
    });
    await withTensors(device(), async (tensors) => {
      // All scores are equal, so the first three rows are kept. The NaN in all other rows must not
      // be read.
      const out = tensors.out(type, [1, 4, 32]);
      await kernels.attentionDecode({
        q: tensors.make(type, [1, 4, 32], input.q),
        k: tensors.make(type, [1, 50, 1, 32], input.k),
        v: tensors.make(type, [1, 50, 2, 32], input.v.slice().fill(Number.NaN, 3 * 2 * 32)),
        selectiveV: { topK: 3, renormalize: true },
        out,
      });
      const values = await out.read();
      for (let head = 0; head < 4; head++) {
        for (let d = 0; d < 32; d++) {
          const row = (key: number): number => input.v[(key * 2 + (head >> 1)) * 32 + d] as number;
          expect(Math.abs((values[head * 32 + d] as number) - (row(0) + row(1) + row(2)) / 3)).toBeLessThan(2e-3);
        }
      }
    });
  });

  it('never reads NaN past kvLens', async () => {
    const input = attentionInput({
      heads: [8, 2, 4],
      dims: [64, 64],
      types: ['bf16', 'bf16', 'bf16'],
      inputs: 'normal',
      batchSize: 1,
      qLen: 1,
      kvLen: 100,
      causal: false,
    });
    await withTensors(device(), async (tensors) => {
      const run = async (poison: boolean, selective: boolean, length: number): Promise<Float32Array> => {
        const out = tensors.out('bf16', [1, 8, 64]);
        await kernels.attentionDecode({
          q: tensors.make('bf16', [1, 8, 64], input.q),
          k: tensors.make(
            'bf16',
            [1, 100, 2, 64],
            poison ? input.k.slice().fill(Number.NaN, length * 2 * 64) : input.k,
          ),
          v: tensors.make(
            'bf16',
            [1, 100, 4, 64],
            poison ? input.v.slice().fill(Number.NaN, length * 4 * 64) : input.v,
          ),
          kvLens: tensors.make('i32', [1], Int32Array.of(length)),
          selectiveV: selective ? { topK: 10 } : undefined,
          out,
        });
        return out.read();
      };
      for (const selective of [false, true]) {
        for (const length of [0, 1, 15, 33, 64, 99]) {
          const clean = await run(false, selective, length);
          expect(clean.every(Number.isFinite)).toBe(true);
          expect(await run(true, selective, length)).toEqual(clean);
        }
      }
    });
  });

  it.each(['f32', 'bf16', 'f16'] as const)(
    'keeps NaN and infinities of V in their own dimensions: %s',
    async (type) => {
      const input = attentionInput({
        heads: [8, 2, 4],
        dims: [64, 64],
        types: [type, type, type],
        inputs: 'normal',
        batchSize: 2,
        qLen: 1,
        kvLen: 90,
        kvLens: [90, 41],
        causal: false,
      });
      const at = (batch: number, key: number, head: number, d: number): number =>
        ((batch * 90 + key) * 4 + head) * 64 + d;
      input.v[at(0, 40, 0, 6)] = Number.POSITIVE_INFINITY;
      input.v[at(0, 89, 1, 33)] = Number.NEGATIVE_INFINITY;
      input.v[at(1, 17, 3, 62)] = Number.NaN;
      input.v[at(1, 41, 2, 5)] = Number.NaN; // past its kvLens
      await withTensors(device(), async (tensors) => {
        const out = tensors.out(type, [2, 8, 64]);
        await kernels.attentionDecode({
          q: tensors.make(type, [2, 8, 64], input.q),
          k: tensors.make(type, [2, 90, 2, 64], input.k),
          v: tensors.make(type, [2, 90, 4, 64], input.v),
          kvLens: tensors.make('i32', [2], Int32Array.of(90, 41)),
          out,
        });
        const expected = attention(input).out;
        expect(expected.filter((x) => !Number.isFinite(x))).toHaveLength(6);
        expectClose(await out.read(), expected, tolerances[type], 64);
      });
    },
  );

  // The default, one split, and splits of which most lack the special key.
  const splits = reduced ? [undefined, 7] : [undefined, 1, 2, 7];
  const selections = [undefined, { topK: 5 }, { topK: 5, renormalize: true }, { topK: 299 }, { topK: 300 }];
  if (reduced) selections.length = 3;

  it.each(['f32', 'bf16', 'f16'] as const)(
    'propagates a NaN score to its own heads, whichever split and block has it: %s',
    async (type) => {
      const input = attentionInput({
        heads: [8, 2, 4],
        dims: [32, 32],
        types: [type, type, type],
        inputs: 'normal',
        batchSize: 2,
        qLen: 1,
        kvLen: 300,
        causal: false,
      });
      await withTensors(device(), async (tensors) => {
        const q = tensors.make(type, [2, 8, 32], input.q);
        const v = tensors.make(type, [2, 300, 4, 32], input.v);
        // One key, or all keys of the first or last split.
        const ranges = [
          [0, 1],
          [0, 128],
          [256, 300],
          ...(reduced
            ? []
            : [
                [63, 64],
                [64, 65],
                [130, 131],
                [299, 300],
              ]),
        ] as [number, number][];
        for (const [first, last] of ranges) {
          const special = input.k.slice();
          // Batch 1, K head 1.
          for (let key = first; key < last; key++) special[((300 + key) * 2 + 1) * 32 + 5] = Number.NaN;
          const k = tensors.make(type, [2, 300, 2, 32], special);
          for (const numSplits of splits) {
            for (const selectiveV of selections) {
              const out = tensors.out(type, [2, 8, 32]);
              const lse = tensors.out('f32', [2, 8]);
              await kernels.attentionDecode({ q, k, v, numSplits, selectiveV, out, lse });
              const expected = attention({ ...input, selectiveV });
              expected.out.fill(Number.NaN, 12 * 32);
              expected.lse.fill(Number.NaN, 12);
              expectClose(await out.read(), expected.out, tolerances[type], 32);
              expectClose(await lse.read(), expected.lse, tolerances.lse, 1);
            }
          }
        }
      });
    },
  );

  it.each(['f32', 'bf16', 'f16'] as const)('gives keys with a score of -Infinity no weight: %s', async (type) => {
    const input = attentionInput({
      heads: [8, 2, 4],
      dims: [32, 32],
      types: [type, type, type],
      inputs: 'normal',
      batchSize: 1,
      qLen: 1,
      kvLen: 300,
      causal: false,
    });
    for (let head = 0; head < 8; head++) input.q[head * 32] = 1;
    await withTensors(device(), async (tensors) => {
      // The last case leaves one key.
      for (const [first, last] of [
        [0, 170],
        [100, 300],
        [1, 300],
      ] as const) {
        const special = input.k.slice();
        for (let row = first * 2; row < last * 2; row++) special[row * 32] = Number.NEGATIVE_INFINITY;
        const q = tensors.make(type, [1, 8, 32], input.q);
        const k = tensors.make(type, [1, 300, 2, 32], special);
        const v = tensors.make(type, [1, 300, 4, 32], input.v);
        for (const numSplits of splits) {
          for (const selectiveV of selections) {
            const out = tensors.out(type, [1, 8, 32]);
            const lse = tensors.out('f32', [1, 8]);
            await kernels.attentionDecode({ q, k, v, numSplits, selectiveV, out, lse });
            const expected = attention({ ...input, k: special, selectiveV });
            expectClose(await out.read(), expected.out, tolerances[type], 32);
            expectClose(await lse.read(), expected.lse, tolerances.lse, 1);
          }
        }
      }
    });
  });

  it.each(['f32', 'bf16'] as const)('treats scores of -0 and 0 as equal with selectiveV: %s', async (type) => {
    await withTensors(device(), async (tensors) => {
      // Products of 2^-200, which float32 rounds to 0 with their sign: -0 for even keys.
      const k = new Float32Array(300 * 32).map((_, i) => (Math.floor(i / 32) % 2 === 0 ? -1 : 1) * 2 ** -100);
      const v = new Float32Array(300 * 32).map((_, i) => (Math.floor(i / 32) < 7 ? 1 : -1));
      for (const topK of [7, 8]) {
        const out = tensors.out(type, [1, 4, 32]);
        await kernels.attentionDecode({
          q: tensors.make(type, [1, 4, 32], new Float32Array(4 * 32).fill(2 ** -100)),
          k: tensors.make(type, [1, 300, 1, 32], k),
          v: tensors.make(type, [1, 300, 1, 32], v),
          selectiveV: { topK, renormalize: true },
          out,
        });
        const mean = topK === 7 ? 1 : 6 / 8;
        expectClose(await out.read(), new Float64Array(4 * 32).fill(mean), tolerances[type], 32);
      }
    });
  });

  it.each([
    [32, 4, 16],
    [12, 2, 3],
    [16, 16, 1],
    [6, 6, 6],
  ] as const)(
    'gives a sequence the same bits alone and in a batch: %i query, %i K and %i V heads',
    async (...heads) => {
      const [qHeads, kHeads, vHeads] = heads;
      for (const type of ['f32', 'bf16'] as const) {
        const input = attentionInput({
          heads: [...heads],
          dims: [64, 64],
          types: [type, type, type],
          inputs: 'normal',
          batchSize: 3,
          qLen: 1,
          kvLen: 300,
          causal: false,
        });
        await withTensors(device(), async (tensors) => {
          for (const selectiveV of [undefined, { topK: 20 }]) {
            const run = async (from: number, to: number): Promise<Float32Array> => {
              const rows = (x: Float32Array): Float32Array => x.slice((x.length / 3) * from, (x.length / 3) * to);
              const batch = to - from;
              const out = tensors.out(type, [batch, qHeads, 64]);
              const q = tensors.make(type, [batch, qHeads, 64], rows(input.q));
              const k = tensors.make(type, [batch, 300, kHeads, 64], rows(input.k));
              const v = tensors.make(type, [batch, 300, vHeads, 64], rows(input.v));
              await kernels.attentionDecode({ q, k, v, numSplits: 1, selectiveV, out });
              return out.read();
            };
            const alone = [await run(0, 1), await run(1, 2), await run(2, 3)];
            expect(await run(0, 3)).toEqual(Float32Array.from(alone.flatMap((values) => [...values])));
          }
        });
      }
    },
  );

  it('differs only by rounding between numbers of splits, and chooses a number by default', async () => {
    const input = attentionInput({
      heads: [8, 2, 4],
      dims: [64, 64],
      types: ['f32', 'f32', 'f32'],
      inputs: 'normal',
      batchSize: 1,
      qLen: 1,
      kvLen: 700,
      causal: false,
    });
    await withTensors(device(), async (tensors) => {
      const q = tensors.make('f32', [1, 8, 64], input.q);
      const k = tensors.make('f32', [1, 700, 2, 64], input.k);
      const v = tensors.make('f32', [1, 700, 4, 64], input.v);
      const results: Float32Array[] = [];
      for (const numSplits of [undefined, 1, 2, 5, 16, 700, 10_000]) {
        results.push(await tensors.keep(await kernels.attentionDecode({ q, k, v, numSplits })).read());
      }
      for (const result of results) {
        result.forEach((x, i) => {
          expect(Math.abs(x - (results[1]?.[i] as number))).toBeLessThan(1e-7);
        });
      }
    });
  });

  it('returns zeros, and -Infinity in lse, without keys', async () => {
    await withTensors(device(), async (tensors) => {
      const [k, v] = [
        tensors.keep(device().tensor('f32', [2, 0, 2, 8])),
        tensors.keep(device().tensor('f32', [2, 0, 4, 8])),
      ];
      for (const selectiveV of [undefined, { topK: 3, renormalize: true }]) {
        const lse = tensors.out('f32', [2, 4]);
        const out = tensors.out('f32', [2, 4, 8]);
        const q = tensors.make('f32', [2, 4, 8], new Float32Array(64).fill(1));
        await kernels.attentionDecode({ q, k, v, lse, out, selectiveV });
        expect([...(await out.read())]).toEqual(new Array(64).fill(0));
        expect([...(await lse.read())]).toEqual(new Array(8).fill(Number.NEGATIVE_INFINITY));
      }
    });
  });

  testCalls(device, kernels.attentionDecode, {
    args: (make, n, type) => ({ q: make([n, 4, 8], type), k: make([n, 5, 2, 8], type), v: make([n, 5, 4, 16], type) }),
    optional: ['kScales', 'vScales', 'lse', 'kvLens'],
    wrong: (make) => [
      ['q of rank 4', () => ({ q: make([2, 1, 4, 8]) })],
      ['K heads that do not divide', () => ({ k: make([2, 5, 3, 8]) })],
      ['another batch', () => ({ q: make([3, 4, 8]) })],
      ['out of wrong shape', () => ({ out: make([2, 4, 8]) })],
      ['lse of wrong shape', () => ({ lse: make([2, 4, 1]) })],
      ['selectiveV true', () => ({ selectiveV: true })],
      ['selectiveV without topK', () => ({ selectiveV: {} })],
      ['renormalize a string', () => ({ selectiveV: { topK: 1, renormalize: 'yes' } })],
      ['numSplits a string', () => ({ numSplits: '2' })],
      ['numSplits NaN', () => ({ numSplits: Number.NaN })],
      ['topK 0', () => ({ selectiveV: { topK: 0 } })],
      ['topK -1', () => ({ selectiveV: { topK: -1 } })],
      ['topK 1.5', () => ({ selectiveV: { topK: 1.5 } })],
      ['topK NaN', () => ({ selectiveV: { topK: Number.NaN } })],
      ['numSplits -1', () => ({ numSplits: -1 })],
      ['numSplits 1.5', () => ({ numSplits: 1.5 })],
      ['smScale NaN', () => ({ smScale: Number.NaN })],
      ['smScale is a string', () => ({ smScale: '1' })],
    ],
  });
});
