// What every operator's own test file checks of its calls: no tokens, a type that is only for
// storage, and wrong arguments.

import type { Device, Tensor } from '../../lib/index';
import { type Anything, expectCode, invalid } from './misuse';
import type { FloatType } from './numbers';

export const floatTypes = ['f32', 'bf16', 'f16'] as const;
export const floatTypeTriples = floatTypes.flatMap((a) =>
  floatTypes.flatMap((b) => floatTypes.map((c) => [a, b, c] as const)),
);

type Make = (shape: number[], type?: Anything) => Tensor;

interface OperatorCalls {
  /** A call with this many tokens and tensors of this type. */
  call: (make: Make, numTokens: number, type: FloatType | 'f8e4m3') => Promise<Tensor>;
  /** The types that `call` supports. */
  types?: readonly FloatType[];
  /** Calls with a wrong argument. */
  wrong: (make: Make) => [what: string, call: () => unknown][];
}

/** Tests of the calls of one operator, which make tensors of zeros, by default of f32. A wrong call
 * leaves the device usable. */
export function testCalls(device: () => Device, { call, types = floatTypes, wrong }: OperatorCalls): void {
  const made: Tensor[] = [];
  const make: Make = (shape, type = 'f32') => {
    const tensor = device().tensor(type, shape);
    made.push(tensor);
    return tensor;
  };
  afterEach(() => {
    for (const tensor of made.splice(0)) tensor.dispose();
  });

  it.each(types)('returns no elements for no tokens: %s', async (type) => {
    const out = await call(make, 0, type);
    made.push(out);
    expect([out.byteLength, await out.read()]).toEqual([0, new Float32Array(0)]);
  });

  it('names the supported types when it rejects f8e4m3, which is only a storage type', async () => {
    await expectCode(() => call(make, 2, 'f8e4m3'), invalid, 'f8e4m3', ...types);
  });

  it.each(wrong(make))('rejects %s', async (_, wrongCall) => {
    await expectCode(wrongCall, invalid, /./);
    made.push(await call(make, 1, types[0] as FloatType));
  });
}
