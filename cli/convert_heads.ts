// Computes new heads of k_proj and v_proj from the rows of the old ones, in pieces of bounded size.
// A tensor is [heads * rows of a head, hidden size].

/** How the heads of one tensor are computed. */
export interface HeadPlan {
  /** For each new head, the old heads that it is the mean of. A single one is copied exactly. */
  sources: number[][];
  /** Rows of one old head, a multiple of rowStep. */
  headRows: number;
  /** Keep the first row of a head and every `rowStep`-th row after it. */
  rowStep: number;
}

/** Fills the buffer with the old tensor's bytes from `offset`. */
export type ReadBytes = (buffer: Uint8Array, offset: number) => Promise<void>;

const PIECE_ELEMENTS = 1 << 20; // at least one row: the limit of hidden sizes is 2^20
const scratch = new ArrayBuffer(2 * 4 * PIECE_ELEMENTS);
const sums = new Float64Array(PIECE_ELEMENTS);

/**
 * Divides the `from` old heads into `groups` groups of adjacent heads; `from` is a multiple of
 * `groups`. New head g of `count` is the mean of group floor(g * groups / count), the same formula
 * by which a query head finds its K or V head.
 */
export function headSources(from: number, groups: number, count: number): number[][] {
  const size = from / groups;
  return Array.from({ length: count }, (_, g) => {
    const first = Math.floor((g * groups) / count) * size;
    return Array.from({ length: size }, (_, i) => first + i);
  });
}

/** Yields the bytes of the new tensor. A piece is valid until the next one is requested. */
export async function* convertedHeads(
  { sources, headRows, rowStep }: HeadPlan,
  dtype: WeightType,
  hiddenSize: number,
  read: ReadBytes,
): AsyncGenerator<Uint8Array> {
  const { Words, decode, encode } = weightTypes[dtype];
  const rowBytes = hiddenSize * Words.BYTES_PER_ELEMENT;
  const pieceRows = Math.floor(PIECE_ELEMENTS / hiddenSize) * rowStep;
  const words = new Words(scratch);
  const bytes = new Uint8Array(scratch);
  for (const heads of sources) {
    for (let row = 0; row < headRows; row += pieceRows) {
      const rows = Math.min(pieceRows, headRows - row);
      const keptRows = rows / rowStep;
      const size = keptRows * hiddenSize;
      for (const [i, head] of heads.entries()) {
        await read(bytes.subarray(0, rows * rowBytes), (head * headRows + row) * rowBytes);
        for (let kept = 1; rowStep > 1 && kept < keptRows; kept++)
          bytes.copyWithin(
            kept * rowBytes,
            kept * rowStep * rowBytes,
            (kept * rowStep + 1) * rowBytes,
          );
        if (heads.length === 1) break;
        // The first is stored, not added to 0, so that the mean of -0 and -0 is -0.
        if (i === 0) for (let j = 0; j < size; j++) sums[j] = decode(words[j] as number);
        else for (let j = 0; j < size; j++) (sums[j] as number) += decode(words[j] as number);
      }
      if (heads.length > 1)
        for (let j = 0; j < size; j++) words[j] = encode((sums[j] as number) / heads.length);
      yield bytes.subarray(0, keptRows * rowBytes);
    }
  }
}

/**
 * The lift [headRows, headRows / rowStep] that moves the kept rows of a head to their old places and
 * sets the others to 0. Training starts from it.
 */
export function liftMatrix(
  dtype: WeightType,
  { headRows, rowStep }: Pick<HeadPlan, 'headRows' | 'rowStep'>,
): Uint8Array {
  const { Words, encode } = weightTypes[dtype];
  const columns = headRows / rowStep;
  const words = new Words(headRows * columns);
  for (let i = 0; i < columns; i++) words[i * rowStep * columns + i] = encode(1);
  return new Uint8Array(words.buffer);
}

/** The mean of some heads of a tensor with `columns` columns, [headRows, columns], in float64. */
export async function meanHead(
  heads: readonly number[],
  headRows: number,
  columns: number,
  dtype: WeightType,
  read: ReadBytes,
): Promise<Float64Array> {
  const { Words, decode } = weightTypes[dtype];
  const words = new Words(headRows * columns);
  const sum = new Float64Array(words.length);
  for (const head of heads) {
    await read(new Uint8Array(words.buffer), head * words.byteLength);
    for (let i = 0; i < sum.length; i++) (sum[i] as number) += decode(words[i] as number);
  }
  for (let i = 0; i < sum.length; i++) (sum[i] as number) /= heads.length;
  return sum;
}

/** Rounds each value once. */
export function encodeWeights(dtype: WeightType, values: Float64Array): Uint8Array {
  const { Words, encode } = weightTypes[dtype];
  const words = new Words(values.length);
  for (let i = 0; i < values.length; i++) words[i] = encode(values[i] as number);
  return new Uint8Array(words.buffer);
}

export type WeightType = keyof typeof weightTypes;

export function isWeightType(dtype: string): dtype is WeightType {
  return Object.hasOwn(weightTypes, dtype);
}

// Conversion to float64 and back. Decoding is exact. Encoding rounds once, to nearest, ties to
// even.
const weightTypes = {
  // The store into a Float32Array rounds.
  F32: { Words: Float32Array, decode: (value: number) => value, encode: (value: number) => value },
  BF16: { Words: Uint16Array, decode: (bits: number) => floatOf(bits << 16), encode: encodeBf16 },
  F16: { Words: Uint16Array, decode: decodeF16, encode: encodeF16 },
};

const float = new Float32Array(1);
const word = new Uint32Array(float.buffer);

function floatOf(bits: number): number {
  word[0] = bits;
  return float[0] as number;
}

/**
 * Returns the bits of a float64 rounded to f32 by "round to odd": toward 0, with the last bit set
 * if the result is inexact. Rounding the result to a type with at least two bits less is the same
 * as rounding the float64 directly.
 */
function oddFloatBits(value: number): number {
  float[0] = value;
  const rounded = float[0] as number;
  if (rounded === value) return word[0] as number;
  if (Math.abs(rounded) > Math.abs(value)) (word[0] as number) -= 1;
  return ((word[0] as number) | 1) >>> 0;
}

function encodeBf16(value: number): number {
  if (Number.isNaN(value)) return 0x7fc0;
  const bits = oddFloatBits(value);
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

function encodeF16(value: number): number {
  if (Number.isNaN(value)) return 0x7e00;
  const bits = oddFloatBits(value);
  const sign = (bits >>> 16) & 0x8000;
  const exponent = ((bits >>> 23) & 0xff) - 112; // of the f16
  if (exponent >= 31) return sign | 0x7c00;
  if (exponent < -10) return sign; // below half of the smallest f16
  const mantissa = bits & 0x7fffff;
  const significand = exponent > 0 ? (exponent << 23) | mantissa : mantissa | 0x800000;
  const shift = exponent > 0 ? 13 : 14 - exponent;
  const kept = significand >>> shift;
  const rest = significand & ((1 << shift) - 1);
  const half = 1 << (shift - 1);
  // A carry into the exponent is correct, including one to infinity.
  return sign | (kept + (rest > half || (rest === half && (kept & 1) === 1) ? 1 : 0));
}

function decodeF16(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 31;
  const mantissa = bits & 0x3ff;
  if (exponent === 31) return mantissa ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return exponent === 0
    ? sign * mantissa * 2 ** -24
    : sign * (1024 + mantissa) * 2 ** (exponent - 25);
}
