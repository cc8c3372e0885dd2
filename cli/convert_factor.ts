// Smaller K heads: a low-rank factorization of q . k, of which one factor is absorbed into Q (arXiv
// 2603.04427), for models with RoPE.
//
// The score of a query and a key D positions before it is q^T R(D) k. R(D) rotates pair p, the
// dimensions p and p + size / 2, by the angle -f_p D. With q' = A^T q and k' = B^T k of `rank` dimensions, the new
// score is q'^T R'(D) k'. Pair j of R' has the frequency of pair j * size / rank. A and B minimize
// the expected square of the difference,
//
//   E (q^T (R(D) - A R'(D) B^T) k)^2 = sum_D w_D |L_q^T (R(D) - A R'(D) B^T) L_k|^2,
//
// where L_q L_q^T = E q q^T and L_k L_k^T = E k k^T come from the weights, and w_D is proportional to
// 1 / (1 + D), so that each order of magnitude of the distance counts the same. Without RoPE the
// minimum is the truncated SVD of L_q^T L_k. RoPE commutes only with rotations and scalings of a
// pair, so the factorization is not exact for any rank below `size`, but pairs that turn slowly over
// most distances are merged at a small error. A is optimal for a given B and reverse, by linear least
// squares; each is computed in turn.

export interface KeyFactors {
  /** [size, rank], row-major: q' = A^T q. */
  q: Float64Array;
  /** [size, rank], row-major: k' = B^T k. */
  k: Float64Array;
}

const MAX_ROUNDS = 100;
const SMALLEST_GAIN = 1e-5; // of the error, relative, in one round

/** Sums over the distances for each pair of R and of R', for one rank. */
export class DistanceSums {
  readonly size: number;
  readonly rank: number;
  /** For L_q^T R L_k B R'^T, and for R' B^T B R'^T. */
  readonly #outer: PairSums;
  readonly #inner: PairSums;
  readonly #full: PairSums;

  /** `frequencies`: the angle per position of each pair. `numDistances`: distances below it count. */
  constructor(frequencies: readonly number[], rank: number, numDistances: number) {
    this.size = 2 * frequencies.length;
    this.rank = rank;
    const step = this.size / rank;
    const kept = frequencies.filter((_, p) => p % step === 0);
    const bins = distanceBins(numDistances);
    this.#outer = pairSums(frequencies, kept, bins);
    this.#inner = pairSums(kept, kept, bins);
    this.#full = pairSums(frequencies, frequencies, bins);
  }

  /**
   * The factors for the second moments E q q^T and E k k^T, [size, size]. Pairs of k' have the mean
   * energy of the pairs of k.
   */
  factor(qMoments: Float64Array, kMoments: Float64Array): KeyFactors {
    const { size, rank } = this;
    const selection = selectionMatrix(size, rank);
    const [qTrace, kTrace] = [trace(qMoments, size), trace(kMoments, size)];
    if (qTrace === 0 || kTrace === 0) return { q: selection, k: selection.slice() };
    const lq = cholesky(qMoments, size);
    const lk = cholesky(kMoments, size);
    const total = dot(qMoments, turned(kMoments, size, size, this.#full, 'forward'), size * size);
    // Both are in coordinates in which q and k are uncorrelated: a = L_q^T A, b = L_k^T B.
    let b = multiplyTransposed(lk, selection, size, size, rank);
    let a = b;
    let error = 1;
    for (let round = 0; round < MAX_ROUNDS; round++) {
      const forA = this.#target(lq, lk, b, 'forward');
      const gramOfB = turned(gram(b, size, rank), rank, rank, this.#inner, 'forward');
      a = solveRight(gramOfB, forA, rank, size);
      const last = error;
      error = 1 - dot(a, forA, size * rank) / total;
      const forB = this.#target(lk, lq, a, 'back');
      const gramOfA = turned(gram(a, size, rank), rank, rank, this.#inner, 'back');
      b = solveRight(gramOfA, forB, rank, size);
      if (last - error <= SMALLEST_GAIN * last) break;
    }
    const factors = {
      q: solveTransposed(lq, a, size, rank),
      k: solveTransposed(lk, b, size, rank),
    };
    balance(factors, kMoments, kTrace, size, rank);
    return factors;
  }

  /** The mean over D of left^T R(D) right x R'(D)^T, or with both rotations backward. */
  #target(
    left: Float64Array,
    right: Float64Array,
    x: Float64Array,
    direction: Direction,
  ): Float64Array {
    const { size, rank } = this;
    const inner = turned(multiply(right, x, size, size, rank), size, rank, this.#outer, direction);
    return multiplyTransposed(left, inner, size, size, rank);
  }
}

/**
 * The [size, rank] matrix that keeps dimension i * size / rank as dimension i: the pairs whose
 * frequencies remain.
 */
function selectionMatrix(size: number, rank: number): Float64Array {
  const matrix = new Float64Array(size * rank);
  for (let i = 0; i < rank; i++) matrix[i * size + i] = 1;
  return matrix;
}

interface Bin {
  first: number;
  count: number;
  weight: number; // of all its distances
}

/** Distances 0 to count - 1 in bins: of one up to 256, then wider. The weights add up to 1. */
function distanceBins(count: number): Bin[] {
  const bins: Bin[] = [];
  let total = 0;
  for (let first = 0; first < count; ) {
    const width = Math.min(count - first, first < 256 ? 1 : Math.floor(first / 8));
    const weight = Math.log((first + width + 0.5) / (first + 0.5)); // the integral of 1 / (1 + D)
    bins.push({ first, count: width, weight });
    total += weight;
    first += width;
  }
  for (const bin of bins) bin.weight /= total;
  return bins;
}

/**
 * For pair p of R and pair j of R' at p * numKept + j: the mean of exp(i (f_p - f_j) D) and of
 * exp(i (f_p + f_j) D) over the distances.
 */
interface PairSums {
  differenceCos: Float64Array;
  differenceSin: Float64Array;
  sumCos: Float64Array;
  sumSin: Float64Array;
}

function pairSums(rows: readonly number[], columns: readonly number[], bins: Bin[]): PairSums {
  const make = () => new Float64Array(rows.length * columns.length);
  const sums = { differenceCos: make(), differenceSin: make(), sumCos: make(), sumSin: make() };
  rows.forEach((f, p) => {
    columns.forEach((g, j) => {
      const at = p * columns.length + j;
      [sums.differenceCos[at], sums.differenceSin[at]] = meanRotation(f - g, bins);
      [sums.sumCos[at], sums.sumSin[at]] = meanRotation(f + g, bins);
    });
  });
  return sums;
}

/** The weighted mean of cos(angle D) and of sin(angle D). */
function meanRotation(angle: number, bins: Bin[]): [number, number] {
  const half = Math.sin(angle / 2);
  let cos = 0;
  let sin = 0;
  for (const { first, count, weight } of bins) {
    // The sum of a geometric series. It is `count` for a multiple of the full turn.
    const length = Math.abs(half) < 1e-12 ? 1 : Math.sin((count * angle) / 2) / (count * half);
    const middle = angle * (first + (count - 1) / 2);
    cos += weight * length * Math.cos(middle);
    sin += weight * length * Math.sin(middle);
  }
  return [cos, sin];
}

/** `forward`: R(D), which turns by -f_p D. `back`: its transpose. */
type Direction = 'forward' | 'back';

/**
 * The mean over D of R_1 x R_2^T, where R_1 and R_2 have the frequencies of `sums`. A 2 x 2 block of
 * x, of pairs p and j, is the sum of a scaled rotation, which turns by the difference of the angles,
 * and a scaled reflection, which turns by their sum.
 */
function turned(
  x: Float64Array,
  numRows: number,
  numColumns: number,
  { differenceCos, differenceSin, sumCos, sumSin }: PairSums,
  direction: Direction,
): Float64Array {
  const out = new Float64Array(x.length);
  const sign = direction === 'forward' ? -1 : 1;
  const [rows, columns] = [numRows / 2, numColumns / 2];
  for (let p = 0; p < rows; p++) {
    for (let j = 0; j < columns; j++) {
      const at = p * columns + j;
      const top = p * numColumns + j;
      const bottom = (p + rows) * numColumns + j;
      const [x00, x01] = [x[top] as number, x[top + columns] as number];
      const [x10, x11] = [x[bottom] as number, x[bottom + columns] as number];
      const [c, s] = [differenceCos[at] as number, sign * (differenceSin[at] as number)];
      const [u, v] = [sumCos[at] as number, sign * (sumSin[at] as number)];
      const [re, im] = [(x00 + x11) / 2, (x10 - x01) / 2];
      const [reflectedRe, reflectedIm] = [(x00 - x11) / 2, (x10 + x01) / 2];
      const [a, b] = [re * c - im * s, re * s + im * c];
      const [d, e] = [reflectedRe * u - reflectedIm * v, reflectedRe * v + reflectedIm * u];
      out[top] = a + d;
      out[top + columns] = e - b;
      out[bottom] = b + e;
      out[bottom + columns] = a - d;
    }
  }
  return out;
}

/** Scales each pair of k' to the mean energy of the pairs of k, and q' inversely. */
function balance(
  { q, k }: KeyFactors,
  kMoments: Float64Array,
  kTrace: number,
  size: number,
  rank: number,
): void {
  const moved = multiply(kMoments, k, size, size, rank);
  const half = rank / 2;
  const energy = (column: number) => {
    let sum = 0;
    for (let i = column; i < moved.length; i += rank)
      sum += (moved[i] as number) * (k[i] as number);
    return sum;
  };
  for (let j = 0; j < half; j++) {
    const scale = Math.sqrt((2 * kTrace) / size / (energy(j) + energy(j + half)));
    if (!Number.isFinite(scale) || scale === 0) continue;
    for (let row = 0; row < size; row++) {
      for (const at of [row * rank + j, row * rank + j + half]) {
        (k[at] as number) *= scale;
        (q[at] as number) /= scale;
      }
    }
  }
}

// Dense matrices, row-major.

function trace(x: Float64Array, size: number): number {
  let sum = 0;
  for (let i = 0; i < size; i++) sum += x[i * size + i] as number;
  return sum;
}

function dot(a: Float64Array, b: Float64Array, count: number): number {
  let sum = 0;
  for (let i = 0; i < count; i++) sum += (a[i] as number) * (b[i] as number);
  return sum;
}

function transpose(x: Float64Array, rows: number, columns: number): Float64Array {
  const out = new Float64Array(x.length);
  for (let i = 0; i < rows; i++)
    for (let j = 0; j < columns; j++) out[j * rows + i] = x[i * columns + j] as number;
  return out;
}

/** a^T b of a [inner, rows] and b [inner, columns]. */
export function multiplyTransposed(
  a: Float64Array,
  b: Float64Array,
  rows: number,
  inner: number,
  columns: number,
): Float64Array {
  return multiply(transpose(a, inner, rows), b, rows, inner, columns);
}

/** W S^2 W^T of a weight [rows, columns], where S has the scales, or 1, on its diagonal. */
export function secondMoments(
  weight: Float64Array,
  rows: number,
  columns: number,
  scales?: Float64Array,
): Float64Array {
  const scaled = scales ? weight.map((w, i) => w * (scales[i % columns] as number)) : weight;
  const out = new Float64Array(rows * rows);
  for (let i = 0; i < rows; i++) {
    const a = scaled.subarray(i * columns, (i + 1) * columns);
    for (let j = 0; j <= i; j++) {
      const value = dot(a, scaled.subarray(j * columns, (j + 1) * columns), columns);
      out[i * rows + j] = value;
      out[j * rows + i] = value;
    }
  }
  return out;
}

/** a [rows, inner] times b [inner, columns]. */
function multiply(
  a: Float64Array,
  b: Float64Array,
  rows: number,
  inner: number,
  columns: number,
): Float64Array {
  const out = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    for (let k = 0; k < inner; k++) {
      const factor = a[i * inner + k] as number;
      if (factor === 0) continue;
      for (let j = 0; j < columns; j++)
        (out[i * columns + j] as number) += factor * (b[k * columns + j] as number);
    }
  }
  return out;
}

/** x^T x of x [rows, columns]. */
function gram(x: Float64Array, rows: number, columns: number): Float64Array {
  return multiplyTransposed(x, x, columns, rows, columns);
}

/**
 * L with L L^T = x, lower triangular, of a positive semidefinite x. A small multiple of the
 * identity is added to x, so that L has an inverse.
 */
function cholesky(x: Float64Array, size: number): Float64Array {
  const ridge = (1e-10 * trace(x, size)) / size;
  const l = new Float64Array(size * size);
  for (let i = 0; i < size; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = x[i * size + j] as number;
      for (let k = 0; k < j; k++) sum -= (l[i * size + k] as number) * (l[j * size + k] as number);
      if (i === j) l[i * size + i] = Math.sqrt(Math.max(sum, 0) + ridge);
      else l[i * size + j] = sum / (l[j * size + j] as number);
    }
  }
  return l;
}

/** y with y x = right, for x [size, size], positive semidefinite, and right [rows, size]. */
function solveRight(
  x: Float64Array,
  right: Float64Array,
  size: number,
  rows: number,
): Float64Array {
  const l = cholesky(x, size);
  const out = right.slice();
  for (let row = 0; row < rows; row++) {
    const y = out.subarray(row * size, (row + 1) * size);
    for (let i = 0; i < size; i++) {
      for (let k = 0; k < i; k++)
        (y[i] as number) -= (l[i * size + k] as number) * (y[k] as number);
      (y[i] as number) /= l[i * size + i] as number;
    }
    for (let i = size - 1; i >= 0; i--) {
      for (let k = i + 1; k < size; k++)
        (y[i] as number) -= (l[k * size + i] as number) * (y[k] as number);
      (y[i] as number) /= l[i * size + i] as number;
    }
  }
  return out;
}

/** y with L^T y = right, for right [size, columns]. */
function solveTransposed(
  l: Float64Array,
  right: Float64Array,
  size: number,
  columns: number,
): Float64Array {
  const out = right.slice();
  for (let i = size - 1; i >= 0; i--) {
    for (let k = i + 1; k < size; k++) {
      const factor = l[k * size + i] as number;
      for (let j = 0; j < columns; j++)
        (out[i * columns + j] as number) -= factor * (out[k * columns + j] as number);
    }
    for (let j = 0; j < columns; j++) (out[i * columns + j] as number) /= l[i * size + i] as number;
  }
  return out;
}
