// Attention with K and V of every pair of types, i8 and f8e4m3 with scales.

import { kernels, type Tensor } from '../../lib/index';
import { expectClose, tolerances } from '../support/compare';
import { onEveryDevice, reduced, type Tensors, withTensors } from '../support/devices';
import { type Anything, expectCode, invalid } from '../support/misuse';
import { fromF8e4m3Bits, Random, roundTo } from '../support/numbers';
import { attention, dequantizeRows, type QuantizedRows, quantizeRows } from '../support/reference';
import { type AttentionCase, attentionInput, caseName, kvTypeDecodeCases, kvTypePrefillCases } from './attention_cases';
import { checkAttention } from './attention_runner';

const quantized = ['i8', 'f8e4m3'] as const;
const floats = ['f32', 'bf16', 'f16'] as const;
const both = floats.flatMap((type) => quantized.map((kind) => [type, kind] as const));

onEveryDevice((device) => {
  describe('attentionPrefill', () => {
    it.each(kvTypePrefillCases(reduced).map((c) => [caseName(c), c] as const))('%s', async (_, c) => {
      await checkAttention(device(), c, 'prefill');
    });
  });

  describe('attentionDecode', () => {
    it.each(kvTypeDecodeCases(reduced).map((c) => [caseName(c), c] as const))('%s', async (_, c) => {
      await checkAttention(device(), c, 'decode');
    });
  });

  const small: AttentionCase = {
    heads: [8, 2, 4],
    dims: [64, 64],
    types: ['bf16', 'i8', 'i8'],
    inputs: 'normal',
    batchSize: 2,
    qLen: 3,
    kvLen: 90,
    kvLens: [90, 41],
    causal: true,
  };

  /** Runs an operator on stored rows. Returns out and lse. */
  async function run(
    tensors: Tensors,
    c: AttentionCase,
    input: { q: Float32Array; kRows: QuantizedRows; vRows: QuantizedRows },
    selectiveV?: { topK: number },
  ): Promise<{ out: Float32Array; lse: Float32Array }> {
    const [qType, kType, vType] = c.types;
    const [numQHeads, numKHeads, numVHeads] = c.heads;
    const { batchSize, kvLen, qLen } = c;
    const decode = qLen === 1;
    const cache = (type: typeof kType, heads: number, dim: number, { values, scales }: QuantizedRows) => [
      tensors.keep(device().tensor(type, [batchSize, kvLen, heads, dim], values)),
      tensors.make('bf16', [batchSize, kvLen, heads], scales),
    ];
    const [k, kScales] = cache(kType, numKHeads, c.dims[0], input.kRows) as [Tensor, Tensor];
    const [v, vScales] = cache(vType, numVHeads, c.dims[1], input.vRows) as [Tensor, Tensor];
    const perQuery = decode ? [batchSize] : [batchSize, qLen];
    const q = tensors.make(qType, [...perQuery, numQHeads, c.dims[0]], input.q);
    const out = tensors.out(qType, [...perQuery, numQHeads, c.dims[1]]);
    const lse = tensors.out('f32', decode ? [batchSize, numQHeads] : [batchSize, numQHeads, qLen]);
    const kvLens = tensors.make('i32', [batchSize], Int32Array.from(c.kvLens ?? new Array(batchSize).fill(kvLen)));
    const args = { q, k, v, kScales, vScales, kvLens, out, lse };
    if (decode) await kernels.attentionDecode({ ...args, selectiveV });
    else await kernels.attentionPrefill({ ...args, causal: c.causal });
    return { out: await out.read(), lse: await lse.read() };
  }

  const rowsOf = (c: AttentionCase) => {
    const input = attentionInput(c);
    return { ...input, kRows: input.kRows as QuantizedRows, vRows: input.vRows as QuantizedRows };
  };

  it.each(both.flatMap(([type, kind]) => [1, 3].map((qLen) => [type, kind, qLen] as const)))(
    '%s on %s, %i queries: propagates a NaN scale or code only where its row is seen, and never past the keys',
    async (type, kind, qLen) => {
      const c = { ...small, types: [type, kind, kind] as const, qLen, causal: qLen > 1 };
      const input = rowsOf(c);
      const { kRows, vRows } = input;
      await withTensors(device(), async (tensors) => {
        const clean = await run(tensors, c, input);
        expect(clean.out.every(Number.isFinite)).toBe(true);
        // Memory past kvLens may contain anything.
        kRows.scales.fill(Number.NaN, (90 + 41) * 2);
        vRows.scales.fill(Number.NaN, (90 + 41) * 4);
        kRows.values.fill(127, (90 + 41) * 2 * 64);
        vRows.values.fill(127, (90 + 41) * 4 * 64);
        expect(await run(tensors, c, input)).toEqual(clean);
        // One K head of the last key of sequence 0, and a V head of one key in each sequence.
        kRows.scales[89 * 2 + 1] = Number.NaN;
        vRows.scales[5 * 4 + 1] = Number.NaN;
        vRows.scales[(90 + 40) * 4 + 2] = Number.NaN;
        if (kind === 'f8e4m3') vRows.values[((90 + 3) * 4 + 3) * 64 + 17] = 0xff;
        const expected = attention({ ...input, causal: c.causal, k: dequantizeRows(kRows), v: dequantizeRows(vRows) });
        expect(expected.out.some(Number.isNaN)).toBe(true);
        const { out, lse } = await run(tensors, c, input);
        expectClose(out, expected.out, tolerances[type], 64);
        expectClose(lse, expected.lse, tolerances.lse, 1);
      });
    },
  );

  it.each(both.flatMap(([type, kind]) => [1, 3].map((qLen) => [type, kind, qLen] as const)))(
    '%s on %s, %i queries: keeps other rows of V exact next to a row with a large scale and zeros',
    async (type, kind, qLen) => {
      const c: AttentionCase = { ...small, types: [type, kind, kind], inputs: 'equal', qLen, causal: qLen > 1 };
      for (const factor of type === 'bf16' ? [100, 1e3, 1e6, 1e30] : [100, 1e3]) {
        const input = rowsOf(c);
        const { kRows, vRows } = input;
        for (let head = 0; head < 4; head++) {
          const row = 7 * 4 + head; // in sequence 0
          vRows.scales[row] = roundTo('bf16', factor * (vRows.scales[row] as number));
          vRows.values.fill(0, row * 64 + 1, (row + 1) * 64);
        }
        const expected = attention({ ...input, causal: c.causal, k: dequantizeRows(kRows), v: dequantizeRows(vRows) });
        await withTensors(device(), async (tensors) => {
          const { out } = await run(tensors, c, input);
          expectClose(out, expected.out, tolerances[type], 64);
        });
      }
    },
  );

  it.each(both)('%s on %s: reads no scale of a row that selectiveV drops', async (type, kind) => {
    const c: AttentionCase = { ...small, types: [type, kind, kind], inputs: 'equal', qLen: 1, causal: false };
    const input = rowsOf(c);
    await withTensors(device(), async (tensors) => {
      const clean = await run(tensors, c, input, { topK: 3 });
      for (let b = 0; b < 2; b++) {
        // All scores are equal, so the first three rows are kept.
        input.vRows.scales.fill(Number.NaN, (b * 90 + 3) * 4, (b + 1) * 90 * 4);
        input.vRows.values.fill(127, (b * 90 + 3) * 4 * 64, (b + 1) * 90 * 4 * 64);
      }
      expect(clean.out.every(Number.isFinite)).toBe(true);
      expect(await run(tensors, c, input, { topK: 3 })).toEqual(clean);
    });
  });

  it.each(both.flatMap(([type, kind]) => [1, 2].map((qLen) => [type, kind, qLen] as const)))(
    '%s on %s, %i queries: decodes every code',
    async (type, kind, qLen) => {
      const codes = Uint8Array.from({ length: 256 }, (_, i) => i);
      const value = (code: number): number => (kind === 'i8' ? (code << 24) >> 24 : fromF8e4m3Bits(code));
      await withTensors(device(), async (tensors) => {
        // Sequence b has one key: code b in dim 3 of K, which q selects, and V contains every code.
        const q = new Float32Array(256 * qLen * 64);
        const k = new Uint8Array(256 * 64);
        const v = new Uint8Array(256 * 256);
        for (let b = 0; b < 256; b++) {
          for (let i = 0; i < qLen; i++) q[(b * qLen + i) * 64 + 3] = 1;
          k[b * 64 + 3] = b;
          if (!Number.isNaN(value(b))) v.set(codes, b * 256);
        }
        const typed = (array: Uint8Array) => (kind === 'i8' ? new Int8Array(array.buffer) : array);
        const kRows = { values: typed(k), scales: new Float32Array(256).fill(0.25) };
        const vRows = { values: typed(v), scales: new Float32Array(256).fill(0.5) };
        const { out, lse } = await run(
          tensors,
          {
            ...small,
            heads: [1, 1, 1],
            dims: [64, 256],
            types: [type, kind, kind],
            batchSize: 256,
            qLen,
            kvLen: 1,
            kvLens: undefined,
            causal: false,
          },
          { q, kRows, vRows },
        );
        for (let b = 0; b < 256; b++) {
          const seen = value(b);
          for (let i = 0; i < qLen; i++) {
            const row = out.subarray((b * qLen + i) * 256, (b * qLen + i + 1) * 256);
            const expected = Float64Array.from(codes, (code) => (Number.isNaN(seen) ? Number.NaN : value(code) / 2));
            expectClose(row, expected, type === 'f32' ? tolerances.f32Elementwise : tolerances.exact, 1);
            expectClose(lse.subarray(b * qLen + i, b * qLen + i + 1), Float64Array.of(seen / 4 / 8), tolerances.lse, 1);
          }
        }
      });
    },
  );

  it('accepts the output of kernels.quantize unchanged', async () => {
    const random = new Random(8);
    const q = random.normals(2 * 8 * 64, 0.1, 'bf16');
    const k = random.normals(2 * 70 * 2 * 64, 0.1, 'bf16');
    const v = random.normals(2 * 70 * 4 * 32, 0.1, 'bf16');
    await withTensors(device(), async (tensors) => {
      const quantize = async (x: Float32Array, shape: number[], dtype: 'i8' | 'f8e4m3') => {
        const { values, scales } = await kernels.quantize({ x: tensors.make('bf16', shape, x), dtype });
        return [tensors.keep(values), tensors.keep(scales)] as const;
      };
      const [kValues, kScales] = await quantize(k, [2, 70, 2, 64], 'i8');
      const [vValues, vScales] = await quantize(v, [2, 70, 4, 32], 'f8e4m3');
      const args = { q: tensors.make('bf16', [2, 8, 64], q), k: kValues, v: vValues, kScales, vScales };
      const out = tensors.keep(await kernels.attentionDecode(args));
      const expected = attention({
        q,
        k: dequantizeRows(quantizeRows(k, 64, 'i8')),
        v: dequantizeRows(quantizeRows(v, 32, 'f8e4m3')),
        batchSize: 2,
        qLen: 1,
        kvLen: 70,
        numQHeads: 8,
        numKHeads: 2,
        numVHeads: 4,
        headDimQk: 64,
        headDimVo: 32,
      });
      expectClose(await out.read(), expected.out, tolerances.bf16, 32);
    });
  });

  describe.each(['attentionPrefill', 'attentionDecode'] as const)('%s rejects', (operator) => {
    const make = (tensors: Tensors, shape: number[], dtype: Anything): Anything =>
      tensors.keep(device().tensor(dtype, shape));
    const arguments_ = (tensors: Tensors): Anything => ({
      q: make(tensors, operator === 'attentionPrefill' ? [2, 3, 4, 8] : [2, 4, 8], 'f32'),
      k: make(tensors, [2, 5, 2, 8], 'i8'),
      v: make(tensors, [2, 5, 4, 16], 'f8e4m3'),
      kScales: make(tensors, [2, 5, 2], 'bf16'),
      vScales: make(tensors, [2, 5, 4], 'bf16'),
    });

    it.each<[string, (a: Anything, t: Tensors) => void, ...RegExp[]]>([
      ['i8 K without scales', (a) => Object.assign(a, { kScales: undefined }), /kScales is missing/, /i8/, /quantize/],
      ['f8e4m3 V without scales', (a) => Object.assign(a, { vScales: undefined }), /vScales is missing/, /f8e4m3/],
      ['kScales null', (a) => Object.assign(a, { kScales: null }), /kScales/, /null/],
      ['kScales an array', (a) => Object.assign(a, { kScales: new Uint16Array(20) }), /kScales must be a tensor/],
      ['kScales of f32', (a, t) => Object.assign(a, { kScales: make(t, [2, 5, 2], 'f32') }), /f32/, /must be bf16/],
      ['vScales of f16', (a, t) => Object.assign(a, { vScales: make(t, [2, 5, 4], 'f16') }), /f16/, /must be bf16/],
      [
        'kScales by V heads',
        (a, t) => Object.assign(a, { kScales: make(t, [2, 5, 4], 'bf16') }),
        /\[2, 5, 4\]/,
        /numKHeads\], \[2, 5, 2\]/,
      ],
      ['vScales of four axes', (a, t) => Object.assign(a, { vScales: make(t, [2, 5, 4, 1], 'bf16') }), /\[2, 5, 4\]/],
      ['scales of another length', (a, t) => Object.assign(a, { kScales: make(t, [2, 6, 2], 'bf16') }), /\[2, 5, 2\]/],
      ['scales for bf16', (a, t) => Object.assign(a, { k: make(t, [2, 5, 2, 8], 'bf16') }), /kScales is given/, /bf16/],
      ['scales for f32', (a, t) => Object.assign(a, { v: make(t, [2, 5, 4, 16], 'f32') }), /vScales is given/, /f32/],
      [
        'K of i32',
        (a, t) => Object.assign(a, { k: make(t, [2, 5, 2, 8], 'i32'), kScales: undefined }),
        /k has type i32/,
        /f32, f16, bf16, i8 or f8e4m3/,
      ],
      ['V of i32, with scales', (a, t) => Object.assign(a, { v: make(t, [2, 5, 4, 16], 'i32') }), /v has type i32/],
      [
        'Q of f8e4m3',
        (a, t) => Object.assign(a, { q: make(t, a.q.shape, 'f8e4m3') }),
        /q has type f8e4m3/,
        /f32, f16 or bf16/,
      ],
      [
        'out of i8',
        (a, t) => Object.assign(a, { out: make(t, [...a.q.shape.slice(0, -1), 16], 'i8') }),
        /out has type i8/,
      ],
      ['K of i8 in another shape', (a, t) => Object.assign(a, { k: make(t, [2, 5, 2, 9], 'i8') }), /\[2, 5, 2, 8\]/],
    ])('%s', async (_, change, ...inMessage) => {
      await withTensors(device(), async (tensors) => {
        const args = arguments_(tensors);
        change(args, tensors);
        await expectCode(() => kernels[operator](args), invalid, ...inMessage);
        const out = tensors.keep(await kernels[operator](arguments_(tensors)));
        expect((await out.read()).every((x) => x === 0)).toBe(true);
      });
    });
  });
});
