// What every operator's own test file checks of its calls: no tokens, a type that is only for
// storage, and wrong arguments.

import { type Device, Tensor } from '../../lib/index';
import { type Anything, expectCode, expectMessage, invalid } from './misuse';
import type { FloatType } from './numbers';

export const floatTypes = ['f32', 'bf16', 'f16'] as const;
export const floatTypeTriples = floatTypes.flatMap((a) =>
  floatTypes.flatMap((b) => floatTypes.map((c) => [a, b, c] as const)),
);

type Make = (shape: number[], type?: Anything) => Tensor;

interface OperatorCalls {
  /** Valid arguments with this many tokens and tensors of this type. */
  args: (make: Make, numTokens: number, type: FloatType | 'f8e4m3') => Record<string, unknown>;
  /** The types that `args` may have. */
  types?: readonly FloatType[];
  /** The names of the tensors, besides `out`, that may be left out. */
  optional?: string[];
  /** Arguments that are wrong, each with a name for what is wrong. */
  wrong: (make: Make) => [what: string, changed: () => Record<string, unknown>][];
}

/**
 * Tests of the calls of one operator. Tensors are zeros, by default of f32. A wrong call leaves the
 * device usable.
 */
export function testCalls(
  device: () => Device,
  kernel: (args: Anything) => Promise<Tensor>,
  { args, types = floatTypes, optional = [], wrong }: OperatorCalls,
): void {
  const made: Tensor[] = [];
  const make: Make = (shape, type = 'f32') => {
    const tensor = device().tensor(type, shape);
    made.push(tensor);
    return tensor;
  };
  afterEach(() => {
    for (const tensor of made.splice(0)) tensor.dispose();
  });
  const valid = () => args(make, 2, types[0] as FloatType);

  it.each(types)('returns no elements for no tokens: %s', async (type) => {
    const out = await kernel(args(make, 0, type));
    made.push(out);
    expect([out.byteLength, await out.read()]).toEqual([0, new Float32Array(0)]);
  });

  it('names the supported types when it rejects f8e4m3, which is only a storage type', async () => {
    await expectCode(() => kernel(args(make, 2, 'f8e4m3')), invalid, 'f8e4m3', ...types);
  });

  it('names an argument that is no tensor, and requires an object', async () => {
    const given = Object.entries(valid()).flatMap(([name, value]) => (value instanceof Tensor ? [name] : []));
    for (const name of new Set([...given, ...optional, 'out'])) {
      const values: [value: unknown, text: string][] = [
        [7, '7'],
        [null, 'null'],
        [{}, 'object Object'],
      ];
      if (name !== 'out' && !optional.includes(name)) values.push([undefined, 'undefined']);
      for (const [value, text] of values)
        await expectMessage(() => kernel({ ...valid(), [name]: value }), `${name} must be a tensor, not ${text}`);
    }
    await expectMessage(() => kernel(undefined), 'arguments must be an object, not undefined');
    await expectMessage(() => kernel([1]), 'arguments must be an object, not an array of 1');
  });

  it.each(wrong(make))('rejects %s', async (_, changed) => {
    await expectCode(() => kernel({ ...valid(), ...changed() }), invalid, /./);
    made.push(await kernel(valid()));
  });
}
