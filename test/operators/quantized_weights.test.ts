// Weights in i8 and i4 by group: the quantizer, and the products with them.
import { kernels, openDevice, type Tensor } from '../../lib/index';
import { expectClose, firstBitDifference, tolerances } from '../support/compare';
import { errorOf, onEveryDevice, reduced, type Tensors, withTensors } from '../support/devices';
import { type FloatType, Random, roundTo } from '../support/numbers';
import { augmentedQ, dequantizeWeight, matmul, type PackedWeight, packedInteger } from '../support/reference';

type WeightType = 'i8' | 'i4';
const weightTypes = ['i8', 'i4'] as const;
const groupSizes = [32, 64, 128] as const;
const xTypes = ['bf16', 'f16', 'f32'] as const;
const scaleTypes = ['bf16', 'f16'] as const;
type ScaleType = (typeof scaleTypes)[number];

interface Quantized {
  values: Tensor;
  scales: Tensor;
  groupSize: number;
  packed: PackedWeight;
}

async function quantized(
  tensors: Tensors,
  weight: Float32Array,
  [rows, columns]: [number, number],
  type: WeightType,
  groupSize: number,
  { from = 'f32', scaleType = 'bf16' }: { from?: FloatType; scaleType?: ScaleType } = {},
): Promise<Quantized> {
  const { values, scales } = await kernels.quantizeWeight({
    weight: tensors.make(from, [rows, columns], weight),
    type,
    groupSize,
  });
  tensors.keep(values);
  tensors.keep(scales);
  const length = values.shape.reduce((product, size) => product * size, 1);
  const integers = type === 'i8' ? new Int8Array(length) : new Int32Array(length);
  await values.readInto(integers);
  const packed = { values: integers, scales: await scales.read(), rows, columns, groupSize };
  if (scaleType === 'bf16') return { values, scales, groupSize, packed };
  // Scales that are not bf16.
  packed.scales = packed.scales.map((scale) => roundTo('f16', scale * 1.00317));
  return { values, scales: tensors.make('f16', [...scales.shape], packed.scales), groupSize, packed };
}

const limits = { i8: { low: -128, high: 127 }, i4: { low: -8, high: 7 } } as const;

/** The squared error of a group with a scale, each element rounded to the nearest integer. */
function squaredError(group: ArrayLike<number>, scale: number, type: WeightType): number {
  const { low, high } = limits[type];
  let error = 0;
  for (const value of Array.from(group)) {
    const q = Math.min(Math.max(Math.round(value / scale), low), high);
    error += (value - q * scale) ** 2;
  }
  return error;
}

onEveryDevice((device) => {
  const emulates = () => (device().info.kind as string) === 'emulated';

  describe.each(weightTypes)('quantizeWeight to %s', (type) => {
    test.each(groupSizes)('by groups of %i: a smaller error than the largest magnitude gives', async (groupSize) => {
      for (const [columns, from] of [
        [256, 'bf16'],
        [576, 'f32'],
        [100, 'f16'],
        [31, 'f32'],
      ] as const) {
        const rows = 12;
        const weight = new Random(columns).normals(rows * columns, 0.05, from);
        weight[5] = roundTo(from, 0.4); // an outlier
        await withTensors(device(), async (tensors) => {
          const { packed } = await quantized(tensors, weight, [rows, columns], type, groupSize, { from });
          const groups = Math.ceil(columns / groupSize);
          const values = dequantizeWeight(packed);
          let total = 0;
          let plain = 0;
          for (let row = 0; row < rows; row++) {
            for (let g = 0; g < groups; g++) {
              const end = Math.min(columns, (g + 1) * groupSize);
              const group = weight.subarray(row * columns + g * groupSize, row * columns + end);
              const scale = packed.scales[row * groups + g] as number;
              const largest = group.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
              let error = 0;
              group.forEach((value, i) => {
                error += (value - (values[row * columns + g * groupSize + i] as number)) ** 2;
              });
              // The integers are the nearest ones.
              expect(error).toBeLessThanOrEqual(squaredError(group, scale, type) * 1.00001 + 1e-30);
              const ofLargest = squaredError(group, roundTo('bf16', largest / limits[type].high), type);
              expect(error).toBeLessThanOrEqual(ofLargest * 1.00001 + 1e-30);
              total += error;
              plain += ofLargest;
            }
          }
          expect(total).toBeLessThan(plain * (type === 'i4' ? 0.9 : 1));
          // The integers that pad a row are 0.
          const padded = Math.ceil(columns / 32) * 32;
          for (let column = columns; column < padded; column++) expect(packedInteger(packed, 3, column)).toBe(0);
        });
      }
    });

    test('gives scale NaN to a group that is not finite, and 0 to one that is tiny', async () => {
      const weight = new Float32Array(4 * 64).fill(0.5);
      weight[3] = Number.NaN;
      weight[64 + 40] = Number.NEGATIVE_INFINITY;
      weight.fill(2 ** -101, 128, 160);
      weight.fill(0, 160, 192);
      weight[192] = 3e38;
      weight[193] = -3e38;
      await withTensors(device(), async (tensors) => {
        const { packed } = await quantized(tensors, weight, [4, 64], type, 32);
        const { scales } = packed;
        expect([...scales].map((scale) => (Number.isNaN(scale) ? 'NaN' : scale === 0 ? '0' : 'number'))).toEqual([
          ...['NaN', 'number', 'number', 'NaN', '0', '0', 'number', 'number'],
        ]);
        for (const [row, column] of [
          [0, 3],
          [1, 40],
          [2, 0],
          [2, 40],
        ] as const) {
          expect(packedInteger(packed, row, column)).toBe(0);
        }
        const values = dequantizeWeight(packed);
        expect(Math.abs((values[192] as number) / 3e38 - 1)).toBeLessThan(0.15);
        expect(Math.abs((values[193] as number) / -3e38 - 1)).toBeLessThan(0.15);
      });
    });

    test('keeps integers times a power of two exactly', async () => {
      const { low, high } = limits[type];
      const random = new Random(9);
      const weight = Float32Array.from(random.integers(8 * 96, low, high), (q) => q / 16);
      for (let g = 0; g < 24; g++) weight[g * 32] = low / 16; // the end of the range
      await withTensors(device(), async (tensors) => {
        const { packed } = await quantized(tensors, weight, [8, 96], type, 32);
        expect([...dequantizeWeight(packed)]).toEqual([...weight]);
      });
    });
  });

  it('quantizes to the same bits on every device', async () => {
    if (device().info.kind === 'cpu') return;
    const random = new Random(21);
    const cpu = await openDevice('cpu');
    for (const type of weightTypes) {
      for (const [groupSize, columns] of [
        [32, 96],
        [64, 100],
        [128, 640],
      ] as const) {
        const weight = random.normals(7 * columns, 0.05, 'f32');
        const results: Quantized[] = [];
        for (const on of [device(), cpu]) {
          await withTensors(on, async (tensors) => {
            results.push(await quantized(tensors, weight, [7, columns], type, groupSize));
          });
        }
        const [actual, expected] = results as [Quantized, Quantized];
        // Sums of other instruction sets than AVX-512 are in another order, so another scale may win.
        const equal = /avx512|amx/.test(cpu.info.details.simd as string) ? 0 : 0.02 * expected.packed.scales.length;
        const different = actual.packed.scales.filter((scale, i) => scale !== expected.packed.scales[i]).length;
        expect(different).toBeLessThanOrEqual(equal);
        if (different === 0) expect(actual.packed.values).toEqual(expected.packed.values);
      }
    }
    cpu.dispose();
  });

  // [in, out]: whole and partial steps of every instruction set, and rows left over.
  const shapes: [number, number][] = [
    [128, 12],
    [256, 37],
    [2048, 9],
    [576, 20],
    [96, 33],
    [64, 7],
    [100, 5],
    [31, 3],
    [1, 1],
    [160, 130],
  ];
  // More tokens than `mostExact` are multiplied by weights rounded to x's 16-bit type; on the CPU only to
  // bf16, if it multiplies that.
  const mostExact = () => (device().info.kind === 'cpu' ? 32 : 16);
  const valuesFor = (tokens: number, xType: FloatType, { packed }: Quantized): Float64Array => {
    const values = dequantizeWeight(packed);
    const rounds =
      device().info.kind === 'cpu'
        ? /bf16|amx/.test(device().info.details.simd as string) && xType === 'bf16'
        : xType !== 'f32';
    return tokens > mostExact() && rounds ? values.map((value) => roundTo(xType, value)) : values;
  };
  const tokenCounts = () => {
    if (emulates()) return reduced ? [1, 9, 20] : [1, 2, 8, 9, 16, 17, 70];
    return reduced ? [1, 2, 3, 4, 5, 8, 16, 17, 33] : [...Array.from({ length: 17 }, (_, i) => i + 1), 33, 70];
  };

  const kinds = weightTypes.flatMap((type) => scaleTypes.map((scaleType) => [type, scaleType] as const));
  describe.each(kinds)('%s, scales %s', (type, scaleType) => {
    describe.each(xTypes)('x %s', (xType) => {
      test.each(groupSizes)('computes products, groups of %i', async (groupSize) => {
        const counts = tokenCounts();
        const most = Math.max(...counts);
        for (const [inFeatures, outFeatures] of shapes) {
          if (emulates() && reduced && (inFeatures > 600 || (scaleType === 'f16' && inFeatures % 64 === 0))) continue;
          const random = new Random(inFeatures + outFeatures);
          const weight = random.normals(outFeatures * inFeatures, 0.1, 'f32');
          const x = random.normals(most * inFeatures, 0.1, xType);
          await withTensors(device(), async (tensors) => {
            const w = await quantized(tensors, weight, [outFeatures, inFeatures], type, groupSize, { scaleType });
            const [few, many] = [mostExact(), most].map((tokens) =>
              matmul(x, valuesFor(tokens, xType, w), Math.min(tokens, most), inFeatures, outFeatures),
            ) as [Float64Array, Float64Array];
            for (const tokens of counts) {
              const expected = tokens <= mostExact() ? few : many;
              const out = tensors.out(xType, [tokens, outFeatures]);
              await kernels.matmul({
                x: tensors.make(xType, [tokens, inFeatures], x.slice(0, tokens * inFeatures)),
                weight: w.values,
                weightScales: w.scales,
                groupSize,
                out,
              });
              expectClose(await out.read(), expected.subarray(0, tokens * outFeatures), tolerances[xType], outFeatures);
            }
          });
        }
      });

      test('computes large products', async () => {
        // On CUDA these take larger tiles than those above.
        for (const [tokens, inFeatures, outFeatures] of [
          [130, 96, 1544],
          [70, 160, 520],
        ] as const) {
          const random = new Random(tokens);
          const weight = random.normals(outFeatures * inFeatures, 0.1, 'f32');
          const x = random.normals(tokens * inFeatures, 0.1, xType);
          await withTensors(device(), async (tensors) => {
            const w = await quantized(tensors, weight, [outFeatures, inFeatures], type, 64, { scaleType });
            const out = tensors.out(xType, [tokens, outFeatures]);
            await kernels.matmul({
              x: tensors.make(xType, [tokens, inFeatures], x),
              weight: w.values,
              weightScales: w.scales,
              groupSize: 64,
              out,
            });
            const expected = matmul(x, valuesFor(tokens, xType, w), tokens, inFeatures, outFeatures);
            expectClose(await out.read(), expected, tolerances[xType], outFeatures);
          });
        }
      });

      test('gives a token the same bits in any batch of up to 16', async () => {
        const [inFeatures, outFeatures] = [608, 45];
        const random = new Random(17);
        const weight = random.normals(outFeatures * inFeatures, 0.1, 'f32');
        const x = random.normals(16 * inFeatures, 0.1, xType);
        await withTensors(device(), async (tensors) => {
          const w = await quantized(tensors, weight, [outFeatures, inFeatures], type, 32, { scaleType });
          const run = async (first: number, tokens: number): Promise<Float32Array> => {
            const out = tensors.out('f32', [tokens, outFeatures]);
            await kernels.matmul({
              x: tensors.make(xType, [tokens, inFeatures], x.slice(first * inFeatures, (first + tokens) * inFeatures)),
              weight: w.values,
              weightScales: w.scales,
              out,
            });
            return out.read();
          };
          const all = await run(0, 16);
          for (const tokens of emulates() ? [1, 7, 8, 9, 15] : Array.from({ length: 15 }, (_, i) => i + 1)) {
            const first = 16 - tokens;
            const some = await run(first, tokens);
            expect(firstBitDifference(some, all.slice(first * outFeatures))).toBe(-1);
          }
        });
      });

      test('augmented Q', async () => {
        const [qDim, augQ] = [96, 144];
        for (const numTokens of emulates() ? [5, 16, 40] : [1, 5, 16, 40]) {
          const random = new Random(numTokens);
          const x = random.normals(numTokens * qDim, 0.1, xType);
          await withTensors(device(), async (tensors) => {
            const make = (rows: number, columns: number, scale: number) => {
              const values = random.normals(rows * columns, scale / Math.sqrt(columns), 'f32');
              return quantized(tensors, values, [rows, columns], type, 32, { scaleType });
            };
            const gate = await make(augQ, qDim, 10);
            const up = await make(augQ, qDim, 1);
            const down = await make(qDim, augQ, 0.5);
            for (const hasGate of [true, false]) {
              const out = tensors.out(xType, [numTokens, qDim]);
              await kernels.augmentedQ({
                x: tensors.make(xType, [numTokens, qDim], x),
                gate: hasGate ? gate.values : undefined,
                gateScales: hasGate ? gate.scales : undefined,
                up: up.values,
                upScales: up.scales,
                down: down.values,
                downScales: down.scales,
                out,
              });
              const expected = augmentedQ({
                x,
                gate: hasGate ? valuesFor(numTokens, xType, gate) : null,
                up: valuesFor(numTokens, xType, up),
                down: valuesFor(numTokens, xType, down),
                numTokens,
                inFeatures: qDim,
                innerSize: augQ,
                outFeatures: qDim,
              });
              expectClose(await out.read(), expected, tolerances[xType], qDim);
            }
          });
        }
      });
    });

    test.each([31, 80, 100, 160])(
      'of %i features, a token does not depend on its neighbors in memory',
      async (size) => {
        const random = new Random(size);
        const weight = random.normals(9 * size, 0.1, 'f32');
        const row = random.normals(size, 0.1, 'bf16');
        await withTensors(device(), async (tensors) => {
          const w = await quantized(tensors, weight, [9, size], type, 32);
          for (const xType of xTypes) {
            const run = async (numTokens: number, x: Float32Array) => {
              const tensor = tensors.make(xType, [numTokens, size], x);
              return (
                await tensors.keep(await kernels.matmul({ x: tensor, weight: w.values, weightScales: w.scales })).read()
              ).slice(0, 9);
            };
            const alone = await run(1, row);
            for (const neighbor of [Number.NaN, Number.POSITIVE_INFINITY, xType === 'f16' ? 6e4 : 1e30, 0]) {
              const x = new Float32Array(3 * size).fill(neighbor);
              x.set(row);
              expect(await run(3, x)).toEqual(alone);
            }
          }
        });
      },
    );

    test('NaN and infinity in x change the outputs of their token, and those in a weight of its row', async () => {
      for (const numTokens of [1, 3, 12]) {
        const x = new Float32Array(numTokens * 80).fill(0.5);
        const weight = new Float32Array(20 * 80).fill(0.25);
        x[39] = Number.NaN; // token 0
        if (numTokens > 1) x[80 + 70] = Number.NEGATIVE_INFINITY; // token 1
        weight[7 * 80 + 33] = Number.NaN; // output 7
        await withTensors(device(), async (tensors) => {
          const w = await quantized(tensors, weight, [20, 80], type, 32, { scaleType });
          for (const xType of xTypes) {
            const out = tensors.keep(
              await kernels.matmul({
                x: tensors.make(xType, [numTokens, 80], x),
                weight: w.values,
                weightScales: w.scales,
              }),
            );
            const result = await out.read();
            result.forEach((value, i) => {
              const [token, row] = [Math.floor(i / 20), i % 20];
              // Only products of integers make NaN of an infinity.
              if (token === 1 && row !== 7 && xType !== 'f32' && device().info.kind !== 'cpu') {
                expect(value).toBe(Number.NEGATIVE_INFINITY);
              } else if (token < 2 || row === 7) expect(value).toBeNaN();
              else expect(Math.abs(value - 10)).toBeLessThan(0.1);
            });
          }
        });
      }
    });
  });

  test('x of very different magnitudes', async () => {
    const inFeatures = 256;
    const random = new Random(5);
    const weight = random.normals(16 * inFeatures, 0.1, 'f32');
    const x = random.normals(2 * inFeatures, 0.1, 'bf16');
    for (let i = 0; i < inFeatures; i += 32) x[i] = roundTo('bf16', (x[i] as number) * 1000); // outliers
    for (let i = 64; i < 128; i++) x[inFeatures + i] = roundTo('bf16', (x[inFeatures + i] as number) * 2 ** -90);
    await withTensors(device(), async (tensors) => {
      for (const type of weightTypes) {
        const w = await quantized(tensors, weight, [16, inFeatures], type, 32);
        const out = tensors.out('f32', [2, 16]);
        await kernels.matmul({
          x: tensors.make('bf16', [2, inFeatures], x),
          weight: w.values,
          weightScales: w.scales,
          out,
        });
        const expected = matmul(x, dequantizeWeight(w.packed), 2, inFeatures, 16);
        // Narrower than the tolerances of bf16, the type of x: its integers have 16 bits in each block.
        expectClose(await out.read(), expected, { ...tolerances.f32, rel: 1e-4, cosine: 1e-8 }, 16);
      }
    });
  });

  test('rejects wrong arguments', async () => {
    await withTensors(device(), async (tensors) => {
      const weight = tensors.make('f32', [4, 64], new Float32Array(256).fill(1));
      const x = tensors.make('f32', [1, 64], new Float32Array(64));
      const w = await quantized(tensors, new Float32Array(256).fill(1), [4, 64], 'i4', 32);
      const message = async (work: () => unknown): Promise<string> => {
        const { code, message } = await errorOf(work);
        expect(code).toBe('ERR_INVALID_ARGUMENT');
        return message;
      };
      expect(await message(() => kernels.quantizeWeight({ weight, type: 'i4', groupSize: 48 }))).toContain('groupSize');
      expect(await message(() => kernels.quantizeWeight({ weight, type: 'i3' as 'i4' }))).toContain('type');
      expect(await message(() => kernels.matmul({ x, weight: w.values }))).toContain('weightScales is missing');
      expect(await message(() => kernels.matmul({ x, weight, weightScales: w.scales }))).toContain('has no scales');
      expect(
        await message(() => kernels.matmul({ x, weight: w.values, weightScales: w.scales, groupSize: 64 })),
      ).toContain('weightScales has shape [4, 2]');
      expect(
        await message(() => kernels.matmul({ x, weight: w.values, weightScales: w.scales, groupSize: 5 })),
      ).toContain('groupSize');
      const f32Scales = tensors.make('f32', [4, 2], w.packed.scales);
      expect(await message(() => kernels.matmul({ x, weight: w.values, weightScales: f32Scales }))).toBe(
        'weightScales has type f32; it must be bf16 or f16',
      );
      const f16Scales = tensors.make('f16', [4, 2], w.packed.scales);
      const down = await quantized(tensors, new Float32Array(256).fill(1), [64, 4], 'i4', 32);
      const mixed = { up: w.values, upScales: w.scales, gate: w.values, gateScales: f16Scales };
      expect(
        await message(() => kernels.augmentedQ({ x, ...mixed, down: down.values, downScales: down.scales })),
      ).toContain('must have the same type');
      const short = tensors.make('f32', [1, 32], new Float32Array(32));
      expect(await message(() => kernels.matmul({ x: short, weight: w.values, weightScales: w.scales }))).toContain(
        'weight has shape [4, 8]',
      );
    });
  });
});
