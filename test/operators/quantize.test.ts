import { kernels, openDevice } from '../../lib/index';
import { onEveryDevice, type Tensors, withTensors } from '../support/devices';
import { type Anything, expectCode, invalid } from '../support/misuse';
import { type FloatType, fromF8e4m3Bits, type QuantizedType, Random, roundTo, toF8e4m3Bits } from '../support/numbers';
import { dequantizeRows, type QuantizedRows, quantizeRows } from '../support/reference';

const kinds = ['i8', 'f8e4m3'] as const;

/** Rows of every kind that the rule distinguishes, rounded to a type. */
function rows(type: FloatType, rowLength: number): Float32Array {
  const random = new Random(rowLength);
  const list: Float32Array[] = [];
  const add = (value: (i: number) => number): void =>
    void list.push(Float32Array.from({ length: rowLength }, (_, i) => roundTo(type, value(i))));
  for (const scale of [1, 0.1, 1e-3, 37, 1e4, 1e30, 1e-20, 2 ** -99, 2 ** -103, 1e-42])
    for (let n = 0; n < 3; n++) add(() => scale * random.normal());
  for (const max of [
    127,
    448,
    127 * 2 ** -7,
    127 * (1 + 2 ** -7),
    3.4e38,
    2 ** -100,
    2 ** -100 * (1 - 2 ** -24),
    65504,
  ]) {
    for (const sign of [1, -1]) {
      add((i) => (i === rowLength - 1 ? sign * max : max * (random.uniform() - 0.5)));
      // Reaches f8's subnormals.
      add((i) => (i === 0 ? sign * max : (i % 2 ? max : -max) * 2 ** -random.integer(1, 24)));
    }
  }
  // Ties: halves of i8's and f8's steps at a scale of 1. Adjacent values must not round like ties.
  add((i) => (i === 0 ? 127 : random.integer(-254, 253) / 2));
  add((i) => (i === 0 ? 127 : (random.integer(-127, 126) + 0.5) * (1 + random.integer(-1, 1) * 2 ** -9)));
  add((i) => {
    const code = random.integer(0, 125);
    return i === 0 ? 448 : (fromF8e4m3Bits(code) + fromF8e4m3Bits(code + 1)) / (i % 2 ? 2 : -2);
  });
  add(() => 0);
  add(() => -0);
  add((i) => (i === rowLength - 1 ? 1 : -0));
  add((i) => (i % 2 ? 1e-45 : -1e-45));
  for (const bad of [Number.NaN, Infinity, -Infinity])
    for (const at of [0, rowLength - 1]) add((i) => (i === at ? bad : random.normal()));
  add(() => Number.NaN);
  return Float32Array.from(list.flatMap((row) => [...row]));
}

onEveryDevice((device) => {
  /** Quantizes on the device, with guard memory next to the outputs, and compares every code. */
  async function check(tensors: Tensors, x: Float32Array, shape: number[], type: FloatType, dtype: QuantizedType) {
    const expected = quantizeRows(x, shape[shape.length - 1] as number, dtype);
    const filler = (): Int8Array | Uint8Array => expected.values.slice().fill(85);
    const made = (): [values: ReturnType<typeof tensors.keep>, scales: ReturnType<typeof tensors.keep>] => [
      tensors.keep(device().tensor(dtype, shape, filler())),
      tensors.make('bf16', shape.slice(0, -1), expected.scales.slice().fill(77)),
    ];
    const before = made();
    const [out, scales] = made();
    const after = made();
    const input = tensors.make(type, shape, x);
    const result = await kernels.quantize({ x: input, dtype, out, scales });
    expect([result.values, result.scales]).toEqual([out, scales]);
    const values = filler();
    await out.readInto(values);
    expectSame({ values, scales: await scales.read() }, expected, x);
    for (const [guard, guardScales] of [before, after]) {
      expect((await guard.read()).every((value, _, all) => value === all[0])).toBe(true);
      expect((await guardScales.read()).every((value) => value === 77)).toBe(true);
    }
  }

  it.each((['f32', 'f16', 'bf16'] as const).flatMap((type) => kinds.map((dtype) => [type, dtype] as const)))(
    'quantizes %s to %s for rows of every kind',
    async (type, dtype) => {
      await withTensors(device(), async (tensors) => {
        for (const rowLength of [1, 7, 10, 32, 64, 96, 128, 256, 300]) {
          const x = rows(type, rowLength);
          await check(tensors, x, [x.length / rowLength, rowLength], type, dtype);
        }
      });
    },
  );

  it.each(kinds)('%s: supports 2 to 4 axes, many rows and no rows', async (dtype) => {
    const random = new Random(3);
    await withTensors(device(), async (tensors) => {
      for (const shape of [
        [5, 3, 64],
        [2, 5, 3, 40],
        [1, 1, 1, 1],
        [4001, 8],
        [0, 3, 8],
        [2, 0, 4, 8],
      ]) {
        const length = shape.reduce((product, size) => product * size, 1);
        await check(tensors, random.normals(length, 0.1, 'bf16'), shape, 'bf16', dtype);
      }
    });
  });

  it.each(kinds)('%s: allocates its outputs if none are given, with the same bits each time', async (dtype) => {
    await withTensors(device(), async (tensors) => {
      const data = new Random(4).normals(2 * 9 * 3 * 32, 0.1, 'f16');
      const x = tensors.make('f16', [2, 9, 3, 32], data);
      const expected = quantizeRows(data, 32, dtype);
      for (let n = 0; n < 2; n++) {
        const made = await kernels.quantize({ x, dtype });
        const [values, scales] = [tensors.keep(made.values), tensors.keep(made.scales)];
        expect([values.dtype, values.shape, scales.dtype, scales.shape]).toEqual([
          dtype,
          [2, 9, 3, 32],
          'bf16',
          [2, 9, 3],
        ]);
        const codes = expected.values.slice();
        await values.readInto(codes.fill(0));
        expectSame({ values: codes, scales: await scales.read() }, expected, data);
      }
    });
  });

  describe('rejects', () => {
    const refuse = async (change: (a: Anything, tensors: Tensors) => void, ...inMessage: (string | RegExp)[]) =>
      withTensors(device(), async (tensors) => {
        const args: Anything = { x: tensors.make('f32', [2, 3, 8], new Float32Array(48)), dtype: 'i8' };
        change(args, tensors);
        await expectCode(() => kernels.quantize(args), invalid, ...inMessage);
      });
    const zeros = (tensors: Tensors, dtype: Anything, shape: number[]): Anything =>
      tensors.keep(device().tensor(dtype, shape));

    it.each<[string, (a: Anything, t: Tensors) => void, string | RegExp]>([
      ['x of one axis', (a, t) => Object.assign(a, { x: zeros(t, 'f32', [8]) }), '[8]'],
      ['x of five axes', (a, t) => Object.assign(a, { x: zeros(t, 'f32', [1, 1, 1, 1, 8]) }), '2 to 4 axes'],
      ['x of i32', (a, t) => Object.assign(a, { x: zeros(t, 'i32', [2, 8]) }), 'f32, f16 or bf16'],
      ['x of f8e4m3', (a, t) => Object.assign(a, { x: zeros(t, 'f8e4m3', [2, 8]) }), 'f32, f16 or bf16'],
      ['rows without elements', (a, t) => Object.assign(a, { x: zeros(t, 'f32', [2, 0]) }), 'last axis of x is 0'],
      ['x an array', (a) => Object.assign(a, { x: new Float32Array(8) }), 'x must be a tensor'],
      ['dtype missing', (a) => Object.assign(a, { dtype: undefined }), 'dtype'],
      ['dtype bf16', (a) => Object.assign(a, { dtype: 'bf16' }), 'dtype'],
      ['out of another type', (a, t) => Object.assign(a, { out: zeros(t, 'f8e4m3', [2, 3, 8]) }), 'f8e4m3'],
      ['out of another shape', (a, t) => Object.assign(a, { out: zeros(t, 'i8', [2, 24]) }), '[2, 3, 8]'],
      ['out null', (a) => Object.assign(a, { out: null }), /null/],
      ['scales of f32', (a, t) => Object.assign(a, { scales: zeros(t, 'f32', [2, 3]) }), 'bf16'],
      ['scales of another shape', (a, t) => Object.assign(a, { scales: zeros(t, 'bf16', [2, 3, 1]) }), '[2, 3]'],
      ['scales null', (a) => Object.assign(a, { scales: null }), /null/],
    ])('%s', async (_, change, inMessage) => {
      await refuse(change, typeof inMessage === 'string' ? new RegExp(inMessage.replace(/[[\]]/g, '\\$&')) : inMessage);
    });

    it('tensors of another device', async () => {
      const other = await openDevice('cpu');
      await refuse((a) => Object.assign(a, { scales: other.tensor('bf16', [2, 3]) }), /device/);
      await refuse((a) => Object.assign(a, { out: other.tensor('i8', [2, 3, 8]) }), /device/);
      other.dispose();
    });
  });
});

function expectSame(actual: QuantizedRows, expected: QuantizedRows, x: Float32Array): void {
  const rowLength = x.length / expected.scales.length;
  const row = (r: number): string => `[${[...x.subarray(r * rowLength, (r + 1) * rowLength)].slice(0, 10).join(', ')}]`;
  expected.scales.forEach((scale, r) => {
    if (!Object.is(actual.scales[r], scale))
      throw new Error(`row ${r} ${row(r)}: scale ${actual.scales[r]}, expected ${scale}`);
  });
  const wrong = expected.values.findIndex((value: number, i: number) => actual.values[i] !== value);
  if (wrong >= 0) {
    const r = Math.floor(wrong / rowLength);
    throw new Error(
      `row ${r} ${row(r)}, scale ${expected.scales[r]}: element ${wrong % rowLength} = ${x[wrong]} has code ${actual.values[wrong]}, expected ${expected.values[wrong]}`,
    );
  }
}

describe('the definition', () => {
  const codes = (type: QuantizedType, ...row: number[]): number[] => {
    const { values, scales } = quantizeRows(Float32Array.from(row), row.length, type);
    return [scales[0] as number, ...values];
  };

  it('i8: rounds the scale up to bf16, ties to even', () => {
    expect(codes('i8', 127, -127, 0.5, 1.5, 2.5, -0.5, -1.5, -63.5)).toEqual([1, 127, -127, 0, 2, 2, 0, -2, -64]);
    // 127.001 / 127 is just above 1. The next bf16 is 1 + 2^-7, so 127.001 becomes 126.
    expect(codes('i8', 127.001, 0)).toEqual([1 + 2 ** -7, 126, 0]);
    expect(codes('i8', 2 ** -100)[0]).toBeGreaterThan(0);
    expect(codes('i8', 2 ** -100 * (1 - 2 ** -24), -0)).toEqual([0, 0, 0]);
    expect(codes('i8', 1, Number.NaN, 5)).toEqual([Number.NaN, 0, 0, 0]);
    expect(codes('i8', -Infinity, 1)).toEqual([Number.NaN, 0, 0]);
  });

  it('f8e4m3', () => {
    expect(codes('f8e4m3', 448, -448, 1, 1.0625, 1.1875, -(2 ** -9), 2 ** -10, 3 * 2 ** -10)).toEqual([
      1, 0x7e, 0xfe, 0x38, 0x38, 0x3a, 0x81, 0, 2,
    ]);
    expect(codes('f8e4m3', 0, -0)).toEqual([0, 0, 0]);
  });

  it('f8e4m3: rounds every code to itself and every value to the nearest code', () => {
    for (let code = 0; code < 256; code++) {
      const value = fromF8e4m3Bits(code);
      if (!Number.isNaN(value)) expect(toF8e4m3Bits(value)).toBe(code);
    }
    const random = new Random(5);
    for (let n = 0; n < 2000; n++) {
      const x = random.normal() * 2 ** random.integer(-12, 6);
      const error = Math.abs(fromF8e4m3Bits(toF8e4m3Bits(x)) - x);
      let least = Infinity;
      for (let code = 0; code < 127; code++) least = Math.min(least, Math.abs(fromF8e4m3Bits(code) - Math.abs(x)));
      expect(error).toBe(least);
    }
  });

  it('reads values back within half a step', () => {
    for (const type of ['f32', 'bf16'] as const) {
      const x = rows(type, 64);
      for (const kind of kinds) {
        const { values, scales } = quantizeRows(x, 64, kind);
        dequantizeRows({ values, scales }).forEach((value, i) => {
          const scale = scales[Math.floor(i / 64)] as number;
          const step =
            kind === 'i8' ? 1 : 2 ** Math.max(-9, Math.floor(Math.log2(Math.abs(x[i] as number) / scale)) - 3);
          if (Number.isNaN(scale) && Number.isNaN(value)) return;
          if (Math.abs(x[i] as number) > 3e38) return; // rounding up may exceed f32
          const limit = scale === 0 ? 2 ** -100 : scale * step * (0.5 + 2 ** -16);
          if (!(Math.abs(value - (x[i] as number)) <= limit)) throw new Error(`${kind}: ${x[i]} became ${value}`);
        });
      }
    }
  });
});
