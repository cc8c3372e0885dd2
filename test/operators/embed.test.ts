import { kernels } from '../../lib/index';
import { expectClose, tolerances } from '../support/compare';
import { errorOfRead, onEveryDevice, withTensors } from '../support/devices';
import { Random, roundTo } from '../support/numbers';
import { testCalls } from '../support/operator_calls';
import { embed } from '../support/reference';

const types = ['f32', 'bf16', 'f16'] as const;

onEveryDevice((device) => {
  it.each(types)('copies rows exactly: %s', async (type) => {
    for (const [vocabSize, hiddenSize] of [
      [1, 1],
      [10, 33],
      [512, 64],
      [300, 257],
    ] as const) {
      const random = new Random(vocabSize);
      const table = random.normals(vocabSize * hiddenSize, 1, type);
      const tokens = Int32Array.from([0, vocabSize - 1, ...random.tokens(20, vocabSize)]);
      await withTensors(device(), async (tensors) => {
        const out = tensors.out(type, [tokens.length, hiddenSize]);
        const result = await kernels.embed({
          table: tensors.make(type, [vocabSize, hiddenSize], table),
          tokens: tensors.make('i32', [tokens.length], tokens),
          out,
        });
        expect(result).toBe(out);
        expectClose(await out.read(), embed(table, tokens, hiddenSize), tolerances.exact, hiddenSize);
      });
    }
  });

  it.each(types.flatMap((table) => types.map((out) => [table, out] as const)))(
    'multiplies by a scale: %s to %s',
    async (tableType, outType) => {
      for (const hiddenSize of [1, 33, 64, 257]) {
        const random = new Random(hiddenSize);
        const table = random.normals(10 * hiddenSize, 1, tableType);
        table[0] = Number.NaN;
        const tokens = Int32Array.of(0, 9, 4);
        for (const scale of [Math.sqrt(hiddenSize) * 1.1, -12, 0]) {
          await withTensors(device(), async (tensors) => {
            const out = tensors.out(outType, [tokens.length, hiddenSize]);
            await kernels.embed({
              table: tensors.make(tableType, [10, hiddenSize], table),
              tokens: tensors.make('i32', [tokens.length], tokens),
              out,
              scale,
            });
            // The float32 product, rounded to the type of out.
            const expected = embed(table, tokens, hiddenSize, Math.fround(scale)).map((value) =>
              roundTo(outType, Math.fround(value)),
            );
            expectClose(await out.read(), expected, tolerances.exact, hiddenSize);
          });
        }
      }
    },
  );

  it.each([-1, 4, 2 ** 31 - 1, -(2 ** 31)])('rejects token %i with a vocabulary of 4', async (token) => {
    await withTensors(device(), async (tensors) => {
      const table = tensors.make('f32', [4, 8], new Float32Array(32).fill(2));
      const error = await errorOfRead(device(), () =>
        kernels.embed({ table, tokens: tensors.make('i32', [3], Int32Array.of(0, token, 1)) }),
      );
      expect(error.code).toBe('ERR_INVALID_ARGUMENT');
      expect(error.message).toContain(String(token));
      const out = tensors.keep(await kernels.embed({ table, tokens: tensors.make('i32', [1], Int32Array.of(3)) }));
      expect([...(await out.read())]).toEqual(new Array(8).fill(2));
    });
  });

  testCalls(device, kernels.embed, {
    args: (make, n, type) => ({ table: make([4, 8], type), tokens: make([n], 'i32') }),
    wrong: (make) => [
      ['tokens of f32', () => ({ tokens: make([2]) })],
      ['scale NaN', () => ({ scale: Number.NaN })],
      ['scale beyond f32', () => ({ scale: 1e39 })],
      ['scale null', () => ({ scale: null })],
      ['table of rank 1', () => ({ table: make([8]) })],
    ],
  });
});
