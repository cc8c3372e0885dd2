import { coarsest, difference, firstBitDifference, logitError, type Tolerance, tolerances } from './compare';
import {
  decode,
  encode,
  fromBf16Bits,
  fromF8e4m3Bits,
  fromF16Bits,
  Random,
  roundTo,
  toBf16Bits,
  toF16Bits,
} from './numbers';

const values = (...numbers: number[]): Float64Array => Float64Array.from(numbers);

describe('difference', () => {
  const { bf16, f16, f32, f32Elementwise, lse, exact } = tolerances;

  it('accepts equal values, and decides on both sides of a limit as the table says', () => {
    expect(difference(values(1, 2, -3), values(1, 2, -3), exact, 3)).toBeNull();
    // One element among many, so that the cosine does not decide.
    const one = (actual: number, expected: number, tolerance: Tolerance): boolean => {
      const others = new Array<number>(100_000).fill(Math.max(1, expected));
      return difference(values(actual, ...others), values(expected, ...others), tolerance, 1) === null;
    };
    expect(one(1 + 2.1 / 128, 1, bf16)).toBe(false);
    expect(one(1 + 1.9 / 128, 1, bf16)).toBe(true);
    expect(one(7e-4, 0, bf16)).toBe(true);
    expect(one(9e-4, 0, bf16)).toBe(false);
    expect(one(1 + 2.1 / 1024, 1, f16)).toBe(false);
    expect(one(1 + 1.9 / 1024, 1, f16)).toBe(true);
    expect(one(1.5e-4, 0, f16)).toBe(false);
    expect(one(1 + 1.1e-5, 1, f32)).toBe(false);
    expect(one(1 + 0.9e-5, 1, f32)).toBe(true);
    expect(one(8 * (1 + 1.1 / 8192), 8, lse)).toBe(false);
    expect(one(8 * (1 + 0.9 / 8192), 8, lse)).toBe(true);
    expect(one(2e-6, 0, lse)).toBe(false);
    expect(difference(values(1), values(1 + 1e-15), exact, 1)).not.toBeNull();
  });

  it('measures f32 against the row for sums, and against the element for elementwise results', () => {
    expect(difference(values(1, 0.5e-5), values(1, 0), f32, 2)).toBeNull();
    expect(difference(values(1, 0.5e-5), values(1, 0), f32, 1)).not.toBeNull();
    expect(difference(values(1, 0.5e-5), values(1, 0), f32Elementwise, 2)).not.toBeNull();
  });

  it.each(Object.entries(tolerances))('fails on NaN: %s', (_, tolerance) => {
    expect(difference(values(Number.NaN), values(0), tolerance, 1)).not.toBeNull();
    expect(difference(values(1, Number.NaN, 1), values(1, 1, 1), tolerance, 3)).toMatch(
      /1 of 3 elements differ; first \[1\] = NaN/,
    );
    expect(difference(values(0), values(Number.NaN), tolerance, 1)).not.toBeNull();
    expect(difference(values(Number.NaN), values(Number.NaN), tolerance, 1)).toBeNull();
  });

  it.each(Object.entries(tolerances))(
    'requires infinities at the positions of the reference, with the same sign: %s',
    (_, tolerance) => {
      const inf = Number.POSITIVE_INFINITY;
      expect(difference(values(1, inf), values(1, inf), tolerance, 2)).toBeNull();
      expect(difference(values(1, inf), values(1, -inf), tolerance, 2)).not.toBeNull();
      expect(difference(values(1, inf), values(1, 1e30), tolerance, 2)).not.toBeNull();
      expect(difference(values(1, 3e38), values(1, inf), tolerance, 2)).not.toBeNull();
      expect(difference(values(1, Number.NaN), values(1, inf), tolerance, 2)).not.toBeNull();
      expect(difference(values(1, inf), values(1, Number.NaN), tolerance, 2)).not.toBeNull();
    },
  );

  it('detects a wrong direction below the absolute limit', () => {
    const expected = Float64Array.from({ length: 256 }, (_, i) => 1e-4 * Math.sin(i));
    const shifted = Float64Array.from({ length: 256 }, (_, i) => 1e-4 * Math.sin(i + 1));
    expect(difference(shifted, expected, bf16, 256)).toMatch(/cosine/);
    expect(
      difference(
        expected.map((x) => -x),
        expected,
        bf16,
        256,
      ),
    ).toMatch(/cosine/);
    expect(difference(new Float64Array(256), expected, bf16, 256)).toMatch(/cosine/);
    expect(
      difference(
        expected.map((x) => x * 1.004),
        expected,
        bf16,
        256,
      ),
    ).toMatch(/cosine/);
    expect(difference(new Float64Array(4), new Float64Array(4), exact, 4)).toBeNull();
  });

  it('rejects different lengths', () => {
    expect(difference(values(1, 2), values(1), bf16, 1)).toMatch(/2 elements, expected 1/);
    expect(difference(values(), values(1), bf16, 1)).not.toBeNull();
    expect(difference(values(1, 2, 3), values(1, 2, 3), bf16, 2)).toMatch(/row length/);
  });
});

describe('helpers', () => {
  it('returns NaN from logitError for NaN and for different lengths', () => {
    expect(logitError(values(1, 3), [1, 4])).toBe(0.25);
    expect(logitError(values(1, Number.NaN), [1, 4])).toBeNaN();
    expect(logitError(values(1), [1, 4])).toBeNaN();
    expect(logitError(values(1, Number.NaN), [1, 4]) <= 1).toBe(false);
  });

  it('distinguishes 0 from -0 in firstBitDifference', () => {
    expect(firstBitDifference(Float32Array.of(1, 0), Float32Array.of(1, 0))).toBe(-1);
    expect(firstBitDifference(Float32Array.of(1, 0), Float32Array.of(1, -0))).toBe(1);
    expect(firstBitDifference(Float32Array.of(1, 0), Float32Array.of(1))).toBe(1);
  });

  it('finds the coarsest type', () => {
    expect(coarsest('f32', 'bf16', 'f16')).toBe('bf16');
    expect(coarsest('f32', 'f16')).toBe('f16');
    expect(coarsest('f32', 'f32')).toBe('f32');
  });
});

describe('number formats', () => {
  it('round-trips every bf16 and f16 code, NaN as NaN', () => {
    for (let bits = 0; bits < 65536; bits++) {
      for (const [from, to] of [
        [fromBf16Bits, toBf16Bits],
        [fromF16Bits, toF16Bits],
      ] as const) {
        const value = from(bits);
        if (Number.isNaN(value)) expect(from(to(value))).toBeNaN();
        else if (to(value) !== bits) throw new Error(`${bits} -> ${value} -> ${to(value)}`);
      }
    }
  });

  it('rounds to nearest, ties to even', () => {
    expect(roundTo('bf16', 1 + 1 / 256)).toBe(1);
    expect(roundTo('bf16', 1 + 3 / 256)).toBe(1 + 4 / 256);
    expect(roundTo('bf16', 1 + 1 / 256 + 2 ** -20)).toBe(1 + 2 / 256);
    expect(roundTo('bf16', 3.4e38)).toBe(Number.POSITIVE_INFINITY);
    expect(roundTo('f16', 1 + 2 ** -11)).toBe(1);
    expect(roundTo('f16', 1 + 3 * 2 ** -11)).toBe(1 + 4 * 2 ** -11);
    expect(roundTo('f16', 65519)).toBe(65504);
    expect(roundTo('f16', 65520)).toBe(Number.POSITIVE_INFINITY);
    expect(roundTo('f16', 2 ** -25)).toBe(0);
    expect(roundTo('f16', 1.01 * 2 ** -25)).toBe(2 ** -24);
    expect(roundTo('f16', 1023.5 * 2 ** -24)).toBe(2 ** -14);
  });

  it('handles the extreme values of f8e4m3', () => {
    expect([0x00, 0x01, 0x08, 0x38, 0x7e, 0xfe].map(fromF8e4m3Bits)).toEqual([0, 2 ** -9, 2 ** -6, 1, 448, -448]);
    expect(fromF8e4m3Bits(0x7f)).toBeNaN();
  });

  it('encodes and decodes representable values without change', () => {
    const random = new Random(1);
    for (const type of ['f32', 'f16', 'bf16'] as const) {
      const data = random.normals(1000, 3, type);
      expect(decode(type, encode(type, data))).toEqual(data);
    }
  });

  it('draws normal numbers with the right mean and variance', () => {
    const data = new Random(2).normals(100_000, 1, 'f32');
    const mean = data.reduce((sum, x) => sum + x, 0) / data.length;
    const variance = data.reduce((sum, x) => sum + (x - mean) ** 2, 0) / data.length;
    expect(Math.abs(mean)).toBeLessThan(0.015);
    expect(Math.abs(variance - 1)).toBeLessThan(0.03);
  });
});
