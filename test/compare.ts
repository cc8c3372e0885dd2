// The one comparator and the one table of tolerances. Every operator test on every device comes through here; a test that
// needs a wider tolerance has found a defect.
//
// A comparison passes only on what it has shown to be close: a NaN difference is close to nothing, so NaN fails by itself
// (a comparator that takes the max() of differences lets NaN through). NaN and infinities must stand where the reference
// has them, infinities with the same sign.

import type { FloatType, KvType, Numbers } from './numbers';

/** An element is close when |actual - expected| <= abs, or <= rel * |scale|. */
export interface Tolerance {
  abs: number;
  rel: number;
  /** What rel refers to: the expected element, or the largest expected magnitude in its row (the last axis). */
  of: 'element' | 'row';
  /** Upper limit of 1 - 2 a.e / (a.a + e.e) over the whole tensor: 1 - cos for vectors of one length, and it sees a wrong scale too. */
  cosine: number;
}

/**
 * Of outputs by type, at inputs of randn / 10.
 *
 * - bf16 keeps 8 significant bits: 2 / 128 is two units in the last place, for P and the output are each rounded once.
 * - f16 keeps 11, three more: all of bf16's limits by 8, the cosine, which is quadratic, by 64.
 * - f32: 1e-5 of the largest magnitude of the row, since a sum that cancels keeps the absolute error of its terms; the
 *   absolute floor only covers results below the smallest normal number times a few.
 * - lse is f32 on any input type: 8 / 65536 of its value; where it passes through zero, 1e-6, as its two parts
 *   (the maximum and the logarithm of the sum) cancel there.
 */
export const tolerances = {
  bf16: { abs: 8e-4, rel: 2 / 128, of: 'element', cosine: 5e-6 },
  f16: { abs: 1e-4, rel: 2 / 1024, of: 'element', cosine: 5e-6 / 64 },
  f32: { abs: 1e-36, rel: 1e-5, of: 'row', cosine: 1e-10 },
  f32Elementwise: { abs: 1e-36, rel: 1e-5, of: 'element', cosine: 1e-10 },
  lse: { abs: 1e-6, rel: 8 / 65536, of: 'element', cosine: 5e-6 },
  exact: { abs: 0, rel: 0, of: 'element', cosine: 1e-12 },
} as const satisfies Record<string, Tolerance>;

/** Whole models: largest logit difference relative to the largest reference logit. */
export const modelTolerances = { f32: 2e-4, f16: 3e-2, bf16: 3e-2 } as const satisfies Record<FloatType, number>;

/**
 * An operator is as precise as the coarsest type that goes in or comes out; i8 and f8e4m3 go in with their scales, exactly.
 */
export function coarsest(...types: KvType[]): FloatType {
  return types.includes('bf16') ? 'bf16' : types.includes('f16') ? 'f16' : 'f32';
}

/** Null where `actual` is close to `expected`, else what is wrong, with the first and the worst element. */
export function difference(actual: Numbers, expected: Numbers, tolerance: Tolerance, rowLength: number): string | null {
  if (actual.length !== expected.length) return `${actual.length} elements, expected ${expected.length}`;
  if (expected.length % rowLength !== 0)
    return `${expected.length} elements are no multiple of the row length ${rowLength}`;
  let numWrong = 0;
  let first = -1;
  let worst = -1;
  let worstError = 0;
  let dot = 0;
  let actualSquares = 0;
  let expectedSquares = 0;
  for (let row = 0; row < expected.length; row += rowLength) {
    let rowMax = 0;
    for (let i = row; i < row + rowLength; i++) {
      const magnitude = Math.abs(expected[i] as number);
      if (Number.isFinite(magnitude) && magnitude > rowMax) rowMax = magnitude;
    }
    for (let i = row; i < row + rowLength; i++) {
      const a = actual[i] as number;
      const e = expected[i] as number;
      let close: boolean;
      if (Number.isFinite(e)) {
        const error = Math.abs(a - e); // NaN where a is NaN, which no limit admits
        close = error <= tolerance.abs || error <= tolerance.rel * (tolerance.of === 'row' ? rowMax : Math.abs(e));
        if (error > worstError) [worst, worstError] = [i, error];
        dot += a * e;
        actualSquares += a * a;
        expectedSquares += e * e;
      } else {
        close = Object.is(a, e); // NaN for NaN, an infinity for the same infinity
      }
      if (!close) {
        numWrong++;
        if (first < 0) first = i;
      }
    }
  }
  const at = (i: number): string => (i < 0 ? 'none' : `[${i}] = ${actual[i]}, expected ${expected[i]}`);
  if (numWrong > 0) return `${numWrong} of ${expected.length} elements differ; first ${at(first)}; worst ${at(worst)}`;
  const squares = actualSquares + expectedSquares;
  const cosine = squares <= tolerance.abs ** 2 ? 0 : 1 - (2 * dot) / squares;
  return cosine <= tolerance.cosine
    ? null
    : `cosine difference ${cosine}, limit ${tolerance.cosine}; worst ${at(worst)}`;
}

/** Fails the test with what is wrong, unless `actual` is close to `expected`. */
export function expectClose(actual: Numbers, expected: Numbers, tolerance: Tolerance, rowLength: number): void {
  const wrong = difference(actual, expected, tolerance, rowLength);
  if (wrong !== null) throw new Error(wrong);
}

/** Largest difference of two logit vectors over the largest magnitude of the second; NaN where either has one. */
export function logitError(actual: Numbers, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) return Number.NaN;
  let error = 0;
  let largest = 0;
  for (let i = 0; i < actual.length; i++) {
    error = Math.max(error, Math.abs((actual[i] as number) - (expected[i] as number))); // Math.max passes NaN on
    largest = Math.max(largest, Math.abs(expected[i] as number));
  }
  return error / largest;
}

/** The first index at which two arrays differ bit for bit, or -1. */
export function firstBitDifference(a: Float32Array, b: Float32Array): number {
  if (a.length !== b.length) return Math.min(a.length, b.length);
  const x = new Uint32Array(a.buffer, a.byteOffset, a.length);
  const y = new Uint32Array(b.buffer, b.byteOffset, b.length);
  return x.findIndex((bits, i) => bits !== y[i]);
}

export function argmax(values: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if ((values[i] as number) > (values[best] as number)) best = i;
  return best;
}
