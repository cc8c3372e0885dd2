// The one comparator and the one table of tolerances. Every operator test on every device uses
// them. A test that needs a wider tolerance has found a defect.
//
// A comparison passes only on values that it has shown to be close. A NaN difference is never
// close, so NaN always fails (the max() of the differences would let NaN pass). NaN and infinities
// must be where the reference has them, infinities with the same sign.

import type { FloatType, KvType, Numbers } from './numbers';

/** An element is close when |actual - expected| <= abs, or <= rel * |scale|. */
export interface Tolerance {
  abs: number;
  rel: number;
  /**
   * What rel is relative to: the expected element, or the largest expected magnitude in its row
   * (the last axis).
   */
  of: 'element' | 'row';
  /**
   * Upper limit of 1 - 2 a.e / (a.a + e.e) over the whole tensor. For vectors of equal length it is
   * 1 - cos; it also detects a wrong scale.
   */
  cosine: number;
}

/**
 * Tolerances of outputs by type, at inputs of randn / 10.
 *
 * - bf16 has 8 significant bits: 2 / 128 is two units in the last place, because P and the output
 *   are each rounded once.
 * - f16 has 11, three more: bf16's limits divided by 8, and the cosine, which is quadratic, by 64.
 * - f32: 1e-5 of the row's largest magnitude, because a sum that cancels keeps the absolute error
 *   of its terms. The absolute limit only covers results near the smallest normal number.
 * - lse is f32 for any input type: 8 / 65536 of its value, or 1e-6 near zero, because its two parts
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

/** Whole models: the largest logit difference relative to the largest reference logit. */
export const modelTolerances = { f32: 2e-4, f16: 3e-2, bf16: 3e-2 } as const satisfies Record<FloatType, number>;

/**
 * An operator is as precise as its coarsest input or output type. i8 and f8e4m3 inputs are exact
 * with their scales.
 */
export function coarsest(...types: KvType[]): FloatType {
  return types.includes('bf16') ? 'bf16' : types.includes('f16') ? 'f16' : 'f32';
}

/**
 * Returns null if `actual` is close to `expected`, else a description with the first and worst
 * element.
 */
export function difference(actual: Numbers, expected: Numbers, tolerance: Tolerance, rowLength: number): string | null {
  if (actual.length !== expected.length) return `${actual.length} elements, expected ${expected.length}`;
  if (expected.length % rowLength !== 0)
    return `${expected.length} elements are not a multiple of the row length ${rowLength}`;
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
        const error = Math.abs(a - e); // NaN if a is NaN, which exceeds every limit
        close = error <= tolerance.abs || error <= tolerance.rel * (tolerance.of === 'row' ? rowMax : Math.abs(e));
        if (error > worstError) [worst, worstError] = [i, error];
        dot += a * e;
        actualSquares += a * a;
        expectedSquares += e * e;
      } else {
        close = Object.is(a, e); // NaN matches NaN, an infinity matches the same infinity
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

/** Fails the test with a description unless `actual` is close to `expected`. */
export function expectClose(actual: Numbers, expected: Numbers, tolerance: Tolerance, rowLength: number): void {
  const wrong = difference(actual, expected, tolerance, rowLength);
  if (wrong !== null) throw new Error(wrong);
}

/**
 * The largest difference of two logit vectors divided by the largest magnitude of the second. NaN
 * if either contains NaN.
 */
export function logitError(actual: Numbers, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) return Number.NaN;
  let error = 0;
  let largest = 0;
  for (let i = 0; i < actual.length; i++) {
    // Math.max propagates NaN.
    error = Math.max(error, Math.abs((actual[i] as number) - (expected[i] as number)));
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
