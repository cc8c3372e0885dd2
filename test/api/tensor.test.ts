// Tensors: conversions of input and output values of every type.

import { errorOf, onEveryDevice } from '../support/devices';
import { expectCode } from '../support/misuse';
import { fromBf16Bits, fromF8e4m3Bits, fromF16Bits, Random, roundTo, toBf16Bits, toF16Bits } from '../support/numbers';

/** A resizable ArrayBuffer, which the types of ES2023 lack. */
function resizable(bytes: number): ArrayBuffer & { resize(bytes: number): void } {
  return Reflect.construct(ArrayBuffer, [bytes, { maxByteLength: 64 }]);
}

onEveryDevice((device) => {
  it.each([
    ['bf16', fromBf16Bits],
    ['f16', fromF16Bits],
  ] as const)('%s: keeps all 65,536 codes of raw input, read as f32', async (type, decode) => {
    const codes = Uint16Array.from({ length: 65536 }, (_, i) => i);
    const tensor = device().tensor(type, [256, 256], codes);
    expect([tensor.dtype, tensor.shape, tensor.byteLength]).toEqual([type, [256, 256], 131072]);
    const values = await tensor.read();
    const back = new Uint16Array(65536);
    await tensor.readInto(back);
    expect(back).toEqual(codes);
    values.forEach((value, i) => {
      if (!Object.is(value, Math.fround(decode(i)))) throw new Error(`code ${i}: ${value}, expected ${decode(i)}`);
    });
    tensor.dispose();
  });

  // biome-ignore lint/suspicious/noExplicitAny: the types of Node 20 lack it
  const Float16 = (globalThis as any).Float16Array;
  const withFloat16 = Float16 === undefined ? it.skip : it;
  withFloat16(`takes a Float16Array for f16 only${Float16 ? '' : ' (SKIPPED: Node has none before 24)'}`, async () => {
    const whole = Float16.from([9, 1.5, -2, 65504, 2 ** -24, Number.POSITIVE_INFINITY]);
    const values = whole.subarray(1);
    using tensor = device().tensor('f16', [5], values);
    expect([...(await tensor.read())]).toEqual([...values]);
    const back = new Float16(5);
    await tensor.readInto(back);
    expect([...back]).toEqual([...values]);
    await tensor.write(Float16.of(1, 2, 3, 4, 5));
    expect([...(await tensor.read())]).toEqual([1, 2, 3, 4, 5]);
    await expectCode(() => tensor.write(Float16.of(1)), 'ERR_INVALID_ARGUMENT');
    for (const type of ['f32', 'bf16', 'i8', 'i32', 'f8e4m3'] as const) {
      await expectCode(() => device().tensor(type, [5], values), 'ERR_INVALID_ARGUMENT', type);
      using other = device().tensor(type, [5]);
      await expectCode(() => other.readInto(values), 'ERR_INVALID_ARGUMENT', type);
      await expectCode(() => other.write(values), 'ERR_INVALID_ARGUMENT', type);
    }
  });

  it.each([
    ['bf16', toBf16Bits, fromBf16Bits],
    ['f16', toF16Bits, fromF16Bits],
  ] as const)('%s: rounds f32 input to nearest even', async (type, encode, decode) => {
    const random = new Random(1);
    const bits = new Float32Array(
      Uint32Array.from({ length: 20_000 }, () => Math.floor(random.uniform() * 2 ** 32)).buffer,
    );
    // Random values, and the midpoints between adjacent codes with their neighbors in f32.
    const list = [
      ...bits.map((x) => (Number.isNaN(x) ? 1 : x)),
      0,
      -0,
      Infinity,
      -Infinity,
      3.4028234e38,
      65519.996,
      65520,
      65504,
      1e-45,
      2 ** -24,
      2 ** -25,
      1.0000001 * 2 ** -25,
      5.9e-8,
    ];
    for (let code = 0; code < 0x7c00; code += 37) {
      const middle = (decode(code) + decode(code + 1)) / 2;
      list.push(middle, middle * (1 + 2 ** -23), middle * (1 - 2 ** -23), -middle);
    }
    const values = Float32Array.from(list);
    const tensor = device().tensor(type, [values.length], values);
    const raw = new Uint16Array(values.length);
    await tensor.readInto(raw);
    values.forEach((value, i) => {
      if (raw[i] !== encode(value)) throw new Error(`${value}: code ${raw[i]}, expected ${encode(value)}`);
    });
    tensor.dispose();
    const nan = device().tensor(type, [1], Float32Array.of(Number.NaN));
    expect(await nan.read()).toEqual(Float32Array.of(Number.NaN));
    nan.dispose();
  });

  it('f8e4m3: reads all codes, and writes every f32 as the nearest code or as NaN past the range', async () => {
    const codes = Uint8Array.from({ length: 256 }, (_, i) => i);
    const tensor = device().tensor('f8e4m3', [256], codes);
    expect([...(await tensor.read())].map((x, i) => Object.is(x, fromF8e4m3Bits(i)))).toEqual(
      new Array(256).fill(true),
    );
    tensor.dispose();
    const list: number[] = [0, -0, 448, -448, 463.9, 464.1, 1e9, Infinity, 2 ** -10, 2 ** -11, 1.1 * 2 ** -10];
    for (let code = 0; code < 126; code++)
      list.push((fromF8e4m3Bits(code) + fromF8e4m3Bits(code + 1)) / 2, fromF8e4m3Bits(code) * 1.01);
    const nearest = (x: number): number => {
      let best = 0;
      for (let code = 1; code < 127; code++) {
        const [a, b] = [Math.abs(fromF8e4m3Bits(code) - Math.abs(x)), Math.abs(fromF8e4m3Bits(best) - Math.abs(x))];
        if (a < b || (a === b && code % 2 === 0)) best = code;
      }
      return Math.abs(x) > 464 ? Number.NaN : fromF8e4m3Bits(best) * Math.sign(x);
    };
    const values = Float32Array.from(list);
    const rounded = device().tensor('f8e4m3', [values.length], values);
    const back = await rounded.read();
    values.forEach((value, i) => {
      const expected = nearest(value);
      if (!(back[i] === expected || (Number.isNaN(back[i]) && Number.isNaN(expected))))
        throw new Error(`${value}: ${back[i]}, expected ${expected}`);
    });
    rounded.dispose();
  });

  it('keeps integers raw, and reads them as f32', async () => {
    const i32 = device().tensor('i32', [3], Int32Array.of(-(2 ** 31), 5, 2 ** 24));
    expect([...(await i32.read())]).toEqual([-(2 ** 31), 5, 2 ** 24]);
    const raw = new Int32Array(3);
    await i32.readInto(raw);
    expect([...raw]).toEqual([-(2 ** 31), 5, 2 ** 24]);
    const i8 = device().tensor('i8', [2, 1], Int8Array.of(-128, 127));
    expect([...(await i8.read())]).toEqual([-128, 127]);
    i32.dispose();
    i8.dispose();
  });

  it('creates zeros without data, empty tensors, scalars and large tensors', async () => {
    const zeros = device().tensor('f32', [1000]);
    expect((await zeros.read()).every((x) => Object.is(x, 0))).toBe(true);
    const empty = device().tensor('bf16', [3, 0, 2]);
    expect([empty.byteLength, await empty.read()]).toEqual([0, new Float32Array(0)]);
    const scalar = device().tensor('f32', [], Float32Array.of(7));
    expect([...(await scalar.read())]).toEqual([7]);
    const data = new Random(2).normals(700_001, 1, 'bf16');
    const large = device().tensor('bf16', [700_001], data);
    expect(await large.read()).toEqual(data);
    for (const tensor of [zeros, empty, scalar, large]) tensor.dispose();
  });

  it('writes values in the order of the calls, and copies arrays at the call', async () => {
    const data = Float32Array.of(1, 2, 3);
    const tensor = device().tensor('f32', [3], data);
    data.fill(9);
    const first = tensor.read();
    const source = Float32Array.of(4, 5, 6);
    const written = tensor.write(source);
    source.fill(9);
    const second = tensor.read();
    await Promise.all([first, written, second]);
    expect([...(await first)]).toEqual([1, 2, 3]);
    expect([...(await second)]).toEqual([4, 5, 6]);
    const part = new Float32Array(10).subarray(4, 7);
    await tensor.readInto(part);
    expect([...part]).toEqual([4, 5, 6]);
    const half = device().tensor('bf16', [2]);
    await half.write(Float32Array.of(1 / 3, 2 / 3));
    expect([...(await half.read())]).toEqual([roundTo('bf16', 1 / 3), roundTo('bf16', 2 / 3)]);
    half.dispose();
    tensor.dispose();
  });

  it('rejects an output array that shrinks during the call, by a single element too', async () => {
    const tensor = device().tensor('f32', [4], Float32Array.of(1, 2, 3, 4));
    for (const left of [0, 1, 3]) {
      const buffer = resizable(16);
      const array = new Float32Array(buffer);
      const done = errorOf(() => tensor.readInto(array));
      buffer.resize(left * 4);
      const { code, message } = await done;
      expect(code).toBe('ERR_INVALID_ARGUMENT');
      expect(message).toContain(`shrunk to ${left} elements`);
      expect([...array]).toEqual(new Array(left).fill(0));
    }
    const detached = new Float32Array(4);
    const done = errorOf(() => tensor.readInto(detached));
    structuredClone(detached, { transfer: [detached.buffer] });
    expect((await done).code).toBe('ERR_INVALID_ARGUMENT');
    tensor.dispose();
  });

  it('fills the elements that an output array had at the call if it grows', async () => {
    const tensor = device().tensor('f32', [2], Float32Array.of(1, 2));
    const buffer = resizable(8);
    const array = new Float32Array(buffer);
    const done = tensor.readInto(array);
    buffer.resize(16);
    await done;
    expect([...array]).toEqual([1, 2, 0, 0]);
    tensor.dispose();
  });
});
