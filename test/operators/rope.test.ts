import { kernels } from '../../lib/index';
import { expectClose, tolerances } from '../support/compare';
import { onEveryDevice, withTensors } from '../support/devices';
import { Random } from '../support/numbers';
import { testCalls } from '../support/operator_calls';
import { rope, ropeFrequencies } from '../support/reference';

onEveryDevice((device) => {
  describe.each(['f32', 'bf16', 'f16'] as const)('%s', (type) => {
    it.each([
      [1, 1, 2, 10000],
      [3, 2, 8, 10000],
      [5, 32, 64, 50000],
      [4, 4, 128, 500000],
      [2, 3, 96, 50000],
      [3, 6, 34, 50000],
      [7, 1, 80, 10000],
    ])('%i tokens, %i heads of %i, theta %d', async (numTokens, numHeads, headDim, theta) => {
      const random = new Random(headDim);
      const x = random.normals(numTokens * numHeads * headDim, 0.1, type);
      // Includes far positions: an angle computed in f32 loses its third digit at 100,000.
      const positions = Int32Array.from(
        { length: numTokens },
        (_, t) => [0, 1, 100_000, 131_071, 17, 4095, 1_000_003][t] as number,
      );
      await withTensors(device(), async (tensors) => {
        const xs = tensors.make(type, [numTokens, numHeads, headDim], x);
        const out = tensors.out(type, [numTokens, numHeads, headDim]);
        expect(await kernels.rope({ x: xs, positions: tensors.make('i32', [numTokens], positions), theta, out })).toBe(
          out,
        );
        const expected = rope(x, positions, numHeads, headDim, ropeFrequencies(headDim, theta));
        expectClose(await out.read(), expected, tolerances[type], headDim);
        expect(await xs.read()).toEqual(x);
      });
    });

    it('changes nothing at position 0, and works in place', async () => {
      const x = new Random(5).normals(2 * 4 * 64, 1, type);
      await withTensors(device(), async (tensors) => {
        const xs = tensors.make(type, [2, 4, 64], x);
        await kernels.rope({ x: xs, positions: tensors.make('i32', [2], Int32Array.of(0, 0)), theta: 10000, out: xs });
        expect(await xs.read()).toEqual(x);
        await kernels.rope({
          x: xs,
          positions: tensors.make('i32', [2], Int32Array.of(3, 900)),
          theta: 10000,
          out: xs,
        });
        expectClose(await xs.read(), rope(x, [3, 900], 4, 64, ropeFrequencies(64, 10000)), tolerances[type], 64);
      });
    });
  });

  testCalls(device, kernels.rope, {
    args: (make, n, type) => ({ x: make([n, 1, 8], type), positions: make([n], 'i32'), theta: 1e4 }),
    wrong: (make) => [
      ['odd head', () => ({ x: make([2, 1, 7]) })],
      ['positions of f32', () => ({ positions: make([2]) })],
      ['too few positions', () => ({ positions: make([1], 'i32') })],
      ['theta 0', () => ({ theta: 0 })],
      ['theta NaN', () => ({ theta: Number.NaN })],
    ],
  });
});
