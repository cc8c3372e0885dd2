// Number formats and seeded random numbers for the tests, implemented without the addon.
//
// Test inputs are rounded to their type here. The device then stores exactly the values that the
// reference uses, so a comparison shows only the operator's own error.

export type FloatType = 'f32' | 'f16' | 'bf16';
/** Types that store a row with its own scale: test/support/reference.ts, quantizeRows. */
export type QuantizedType = 'i8' | 'f8e4m3';
export type KvType = FloatType | QuantizedType;
export type Numbers = Float32Array | Float64Array;

// Jest runs tests in a separate context in which each access to a global takes 100 ns. That is too
// slow for millions of numbers.
const { imul, sqrt, log, cos, PI, fround, floor, abs, min, max } = Math;
const isNan = Number.isNaN;

const f32Word = new Float32Array(1);
const u32Word = new Uint32Array(f32Word.buffer);

function bitsOf(value: number): number {
  f32Word[0] = value;
  return u32Word[0] as number;
}

function floatOf(bits: number): number {
  u32Word[0] = bits;
  return f32Word[0] as number;
}

/** The bfloat16 nearest to an f32 value, ties to even, as 16 bits. */
export function toBf16Bits(value: number): number {
  const bits = bitsOf(value);
  if (isNan(value)) return ((bits >>> 16) | 0x40) & 0xffff;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

export function fromBf16Bits(bits: number): number {
  return floatOf((bits << 16) >>> 0);
}

/** The IEEE binary16 nearest to an f32 value, ties to even, as 16 bits. */
export function toF16Bits(value: number): number {
  const bits = bitsOf(value);
  const sign = (bits >>> 16) & 0x8000;
  const exponent = ((bits >>> 23) & 0xff) - 127 + 15;
  const mantissa = bits & 0x7fffff;
  if (isNan(value)) return sign | 0x7e00;
  if (exponent >= 31) return sign | 0x7c00;
  if (exponent < -10) return sign;
  const significand = exponent > 0 ? (exponent << 23) | mantissa : mantissa | 0x800000;
  const shift = exponent > 0 ? 13 : 14 - exponent;
  const kept = significand >>> shift;
  const rest = significand & ((1 << shift) - 1);
  const half = 1 << (shift - 1);
  const up = rest > half || (rest === half && (kept & 1) === 1);
  // A carry into the exponent is correct, including to infinity.
  return sign | (kept + (up ? 1 : 0));
}

export function fromF16Bits(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 31;
  const mantissa = bits & 0x3ff;
  if (exponent === 31) return mantissa ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return exponent === 0 ? sign * mantissa * 2 ** -24 : sign * (1024 + mantissa) * 2 ** (exponent - 25);
}

function f8e4m3Value(bits: number): number {
  const sign = bits & 0x80 ? -1 : 1;
  const exponent = (bits >>> 3) & 15;
  const mantissa = bits & 7;
  if (exponent === 15 && mantissa === 7) return Number.NaN;
  return exponent === 0 ? sign * mantissa * 2 ** -9 : sign * (8 + mantissa) * 2 ** (exponent - 10);
}

const f8e4m3Values = Array.from({ length: 256 }, (_, bits) => f8e4m3Value(bits));

/** OCP 8-bit float E4M3: no infinity, one NaN, largest value 448. */
export function fromF8e4m3Bits(bits: number): number {
  return f8e4m3Values[bits] as number;
}

/** The nearest integer, ties to even. */
export function roundHalfEven(value: number): number {
  const below = floor(value);
  const rest = value - below;
  return rest > 0.5 || (rest === 0.5 && below % 2 !== 0) ? below + 1 : below;
}

/** 2^-exponent of the exponents -9 to 5. */
const stepsPerUnit = Array.from({ length: 15 }, (_, i) => 2 ** (9 - i));

/**
 * The nearest E4M3, ties to even. NaN above 464, which is halfway between 448 and the next value.
 */
export function toF8e4m3Bits(value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x80 : 0;
  const magnitude = abs(value);
  if (!(magnitude <= 464)) return sign | 0x7f;
  // The codes of one exponent are evenly spaced: 2^-9 apart up to 2^-6, and those of 8 * 2^e to 16
  // * 2^e begin at 8 (e + 10).
  const exponent = max(-9, (bitsOf(magnitude) >>> 23) - 130);
  const steps = roundHalfEven(magnitude * (stepsPerUnit[exponent + 9] as number)); // 16 is the first of the next exponent
  return sign | min(0x7e, steps + 8 * (exponent + 9));
}

export function roundTo(type: FloatType, value: number): number {
  if (type === 'bf16') return fromBf16Bits(toBf16Bits(value));
  if (type === 'f16') return fromF16Bits(toF16Bits(value));
  return fround(value);
}

/** Little-endian bytes of values in a type. */
export function encode(type: FloatType, values: ArrayLike<number>): Uint8Array {
  if (type === 'f32') return new Uint8Array(Float32Array.from(values).buffer);
  const toBits = type === 'bf16' ? toBf16Bits : toF16Bits;
  const { length } = values;
  const bits = new Uint16Array(length);
  for (let i = 0; i < length; i++) bits[i] = toBits(values[i] as number);
  return new Uint8Array(bits.buffer);
}

export function decode(type: FloatType, bytes: Uint8Array): Float32Array {
  const copy = new Uint8Array(bytes).buffer; // a copy, because a Buffer's slice() would be a view
  if (type === 'f32') return new Float32Array(copy);
  const fromBits = type === 'bf16' ? fromBf16Bits : fromF16Bits;
  const bits = new Uint16Array(copy);
  const { length } = bits;
  const values = new Float32Array(length);
  for (let i = 0; i < length; i++) values[i] = fromBits(bits[i] as number);
  return values;
}

/** mulberry32: 32 bits of state, a different stream for each seed. */
export class Random {
  constructor(private state: number) {}

  /** Uniform in [0, 1). */
  uniform(): number {
    this.state = (this.state + 0x6d2b79f5) | 0;
    let t = imul(this.state ^ (this.state >>> 15), this.state | 1);
    t ^= t + imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  /** Uniform in [low, high]. */
  integer(low: number, high: number): number {
    return low + floor(this.uniform() * (high - low + 1));
  }

  normal(): number {
    return sqrt(-2 * log(1 - this.uniform())) * cos(2 * PI * this.uniform());
  }

  /** `length` values of N(0, scale^2), rounded to `type`. */
  normals(length: number, scale: number, type: FloatType): Float32Array {
    const values = new Float32Array(length);
    for (let i = 0; i < length; i++) values[i] = roundTo(type, scale * this.normal());
    return values;
  }

  integers(length: number, low: number, high: number): Float32Array {
    const values = new Float32Array(length);
    for (let i = 0; i < length; i++) values[i] = this.integer(low, high);
    return values;
  }

  tokens(length: number, vocabSize: number): number[] {
    return Array.from({ length }, () => this.integer(0, vocabSize - 1));
  }
}
