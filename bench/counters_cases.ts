// The cases of bench/counters.ts: each operator at a few shapes, with the least that it reads, writes and multiplies.
import { kernels } from '../lib/index';
import type { CountedCase } from './counters_case';
import { type HeadShape, headsName } from './shapes';

const BF16 = 2; // bytes
const I8_SCALE = 2; // bytes, for each row of i8

const rowBytes = (dim: number, i8: boolean): number => (i8 ? dim + I8_SCALE : dim * BF16);

function heads(numQHeads: number, numKHeads: number, numVHeads: number, headDim: number): HeadShape {
  return { numQHeads, numKHeads, numVHeads, headDimQk: headDim, headDimVo: headDim };
}

type CacheTypes = 'bf16' | 'V i8' | 'K and V i8';

function decode(
  h: HeadShape,
  kvLen: number,
  types: CacheTypes,
  { topK, window }: { topK?: number; window?: number } = {},
): CountedCase {
  const { numQHeads, numKHeads, numVHeads, headDimQk, headDimVo } = h;
  const seen = Math.min(kvLen, window ?? kvLen);
  const [kI8, vI8] = [types === 'K and V i8', types !== 'bf16'];
  // Selective V reads a row for each query head and key that it selects, as if heads that share V selected no key twice.
  const vRows = topK === undefined ? seen * numVHeads : Math.min(topK * numQHeads, seen * numVHeads);
  const more = topK !== undefined ? `, top ${topK} of V` : window !== undefined ? `, window ${window}` : '';
  return {
    kernel: 'attentionDecode',
    shape: `${headsName(h)} x ${headDimQk}, ${kvLen} keys, ${types}${more}`,
    work: {
      bytesRead:
        numQHeads * headDimQk * BF16 + seen * numKHeads * rowBytes(headDimQk, kI8) + vRows * rowBytes(headDimVo, vI8),
      bytesWritten: numQHeads * headDimVo * BF16,
      flops: 2 * numQHeads * seen * (headDimQk + (topK === undefined ? headDimVo : 0)), // selected rows are few: no tiles
    },
    prepare(tensors) {
      const q = tensors.bf16(1, numQHeads, headDimQk);
      const k = tensors[kI8 ? 'i8' : 'bf16'](1, kvLen, numKHeads, headDimQk);
      const v = tensors[vI8 ? 'i8' : 'bf16'](1, kvLen, numVHeads, headDimVo);
      const kScales = kI8 ? tensors.scales(1, kvLen, numKHeads) : undefined;
      const vScales = vI8 ? tensors.scales(1, kvLen, numVHeads) : undefined;
      const out = tensors.bf16(1, numQHeads, headDimVo);
      const selectiveV = topK === undefined ? undefined : { topK };
      return () => kernels.attentionDecode({ q, k, v, kScales, vScales, selectiveV, window, out });
    },
  };
}

function prefill(h: HeadShape, length: number): CountedCase {
  const { numQHeads, numKHeads, numVHeads, headDimQk, headDimVo } = h;
  return {
    kernel: 'attentionPrefill',
    shape: `${headsName(h)} x ${headDimQk}, ${length} tokens, causal`,
    work: {
      bytesRead: length * ((numQHeads + numKHeads) * headDimQk + numVHeads * headDimVo) * BF16,
      bytesWritten: length * numQHeads * headDimVo * BF16,
      flops: 2 * numQHeads * (headDimQk + headDimVo) * ((length * (length + 1)) / 2),
    },
    prepare(tensors) {
      const q = tensors.bf16(1, length, numQHeads, headDimQk);
      const k = tensors.bf16(1, length, numKHeads, headDimQk);
      const v = tensors.bf16(1, length, numVHeads, headDimVo);
      const out = tensors.bf16(1, length, numQHeads, headDimVo);
      return () => kernels.attentionPrefill({ q, k, v, out, causal: true });
    },
  };
}

const tokensName = (tokens: number): string => `${tokens} token${tokens === 1 ? '' : 's'}`;

function matmul(tokens: number, inSize: number, outSize: number): CountedCase {
  return {
    kernel: 'matmul',
    shape: `${tokensName(tokens)}, ${inSize} -> ${outSize}`,
    work: {
      bytesRead: (tokens + outSize) * inSize * BF16,
      bytesWritten: tokens * outSize * BF16,
      flops: 2 * tokens * inSize * outSize,
    },
    prepare(tensors) {
      const [x, weight, out] = [
        tensors.bf16(tokens, inSize),
        tensors.bf16(outSize, inSize),
        tensors.bf16(tokens, outSize),
      ];
      return () => kernels.matmul({ x, weight, out });
    },
  };
}

/** With weights quantized in groups of 32. */
function quantizedMatmul(tokens: number, inSize: number, outSize: number, type: 'i8' | 'i4'): CountedCase {
  return {
    kernel: 'matmul',
    shape: `${tokensName(tokens)}, ${inSize} -> ${outSize}, ${type}`,
    work: {
      bytesRead: tokens * inSize * BF16 + outSize * inSize * ((type === 'i8' ? 1 : 1 / 2) + I8_SCALE / 32),
      bytesWritten: tokens * outSize * BF16,
      flops: 2 * tokens * inSize * outSize,
    },
    prepare(tensors) {
      const x = tensors.bf16(tokens, inSize);
      const weight = type === 'i8' ? tensors.i8(outSize, inSize) : tensors.i4(outSize, inSize);
      const weightScales = tensors.scales(outSize, inSize / 32);
      const out = tensors.bf16(tokens, outSize);
      return () => kernels.matmul({ x, weight, weightScales, out });
    },
  };
}

function augmentedQ(tokens: number, qSize: number, augQSize: number): CountedCase {
  return {
    kernel: 'augmentedQ',
    shape: `${tokensName(tokens)}, ${qSize} -> ${augQSize} -> ${qSize}`,
    work: {
      bytesRead: (tokens + 3 * augQSize) * qSize * BF16,
      bytesWritten: tokens * qSize * BF16,
      flops: 6 * tokens * qSize * augQSize,
    },
    prepare(tensors) {
      const [x, out] = [tensors.bf16(tokens, qSize), tensors.bf16(tokens, qSize)];
      const [gate, up] = [tensors.bf16(augQSize, qSize), tensors.bf16(augQSize, qSize)];
      const down = tensors.bf16(qSize, augQSize);
      return () => kernels.augmentedQ({ x, gate, up, down, out });
    },
  };
}

/** A case that is bound by memory. `read` and `written` are bytes for each token. */
function byToken(
  kernel: CountedCase['kernel'],
  tokens: number,
  what: string,
  { read, written, once = 0 }: { read: number; written: number; once?: number },
  prepare: CountedCase['prepare'],
): CountedCase {
  const work = { bytesRead: tokens * read + once, bytesWritten: tokens * written, flops: 0 };
  return { kernel, shape: `${tokensName(tokens)}, ${what}`, work, prepare };
}

const positions = (tokens: number): number[] => Array.from({ length: tokens }, (_, t) => t * 37);

function smallOperators(tokens: number): CountedCase[] {
  const [hidden, inner, vocab, numHeads, headDim] = [2048, 6144, 512, 32, 64];
  const row = hidden * BF16;
  return [
    byToken('rmsNorm', tokens, `${hidden}`, { read: row, written: row, once: row }, (tensors) => {
      const [x, weight, out] = [tensors.bf16(tokens, hidden), tensors.bf16(hidden), tensors.bf16(tokens, hidden)];
      return () => kernels.rmsNorm({ x, weight, out, eps: 1e-5 });
    }),
    byToken('rmsNorm', tokens, `${hidden}, residual`, { read: 2 * row, written: 2 * row, once: row }, (tensors) => {
      const [x, residual, out] = [
        tensors.bf16(tokens, hidden),
        tensors.bf16(tokens, hidden),
        tensors.bf16(tokens, hidden),
      ];
      const weight = tensors.bf16(hidden);
      return () => kernels.rmsNorm({ x, weight, residual, out, eps: 1e-5 });
    }),
    byToken('rope', tokens, `${numHeads} x ${headDim}`, { read: row + 4, written: row }, (tensors) => {
      const [x, out, at] = [
        tensors.bf16(tokens, numHeads, headDim),
        tensors.bf16(tokens, numHeads, headDim),
        tensors.i32(positions(tokens)),
      ];
      return () => kernels.rope({ x, out, positions: at, theta: 50000 });
    }),
    byToken('addBias', tokens, `${hidden}`, { read: row, written: row, once: hidden * 4 }, (tensors) => {
      const [x, bias, out] = [tensors.bf16(tokens, hidden), tensors.f32(hidden), tensors.bf16(tokens, hidden)];
      return () => kernels.addBias({ x, bias, out });
    }),
    byToken('gatedActivation', tokens, `${inner}`, { read: 2 * inner * BF16, written: inner * BF16 }, (tensors) => {
      const [gate, up, out] = [tensors.bf16(tokens, inner), tensors.bf16(tokens, inner), tensors.bf16(tokens, inner)];
      return () => kernels.gatedActivation({ gate, up, out });
    }),
    byToken('softcap', tokens, `${hidden}`, { read: hidden * 4, written: hidden * 4 }, (tensors) => {
      const [x, out] = [tensors.f32(tokens, hidden), tensors.f32(tokens, hidden)];
      return () => kernels.softcap({ x, cap: 30, out });
    }),
    byToken('embed', tokens, `${vocab} x ${hidden}`, { read: row + 4, written: row }, (tensors) => {
      const [table, out, ids] = [
        tensors.bf16(vocab, hidden),
        tensors.bf16(tokens, hidden),
        tensors.i32(positions(tokens).map((id) => id % vocab)),
      ];
      return () => kernels.embed({ table, tokens: ids, out });
    }),
    ...(['i8', 'f8e4m3'] as const).map((dtype) =>
      byToken(
        'quantize',
        tokens,
        `${numHeads} x ${headDim} -> ${dtype}`,
        { read: row, written: numHeads * rowBytes(headDim, true) },
        (tensors) => {
          const x = tensors.bf16(tokens, numHeads, headDim);
          return async () => {
            const { values, scales } = await kernels.quantize({ x, dtype });
            tensors.keep(values);
            tensors.keep(scales);
          };
        },
      ),
    ),
  ];
}

/** All cases. They are small because the emulation needs microseconds for each access of a thread. */
export function countedCases(): CountedCase[] {
  const sizes = [64, 128];
  return [
    ...sizes.flatMap((dim) =>
      [heads(32, 4, 16, dim), heads(32, 16, 16, dim), heads(8, 8, 8, dim)].flatMap((h) =>
        (['bf16', 'V i8', 'K and V i8'] as const).map((types) => decode(h, 1024, types)),
      ),
    ),
    ...sizes.flatMap((dim) =>
      [heads(32, 4, 16, dim), heads(32, 16, 16, dim)].map((h) => decode(h, 1024, 'bf16', { topK: 100 })),
    ),
    decode(heads(32, 4, 16, 64), 1024, 'V i8', { topK: 100 }),
    decode(heads(32, 4, 16, 64), 32768, 'bf16', { window: 1024 }),
    ...sizes.flatMap((dim) =>
      [heads(32, 4, 16, dim), heads(32, 16, 16, dim), heads(8, 8, 8, dim)].map((h) => prefill(h, 256)),
    ),
    ...[1, 8].map((tokens) => matmul(tokens, 1024, 1024)),
    ...[64, 256].map((tokens) => matmul(tokens, 512, 1024)),
    ...(['i8', 'i4'] as const).flatMap((type) =>
      [1, 8, 16, 64].map((tokens) => quantizedMatmul(tokens, 1024, 1024, type)),
    ),
    ...[1, 8, 64].map((tokens) => augmentedQ(tokens, 512, 768)),
    ...smallOperators(8),
  ];
}
