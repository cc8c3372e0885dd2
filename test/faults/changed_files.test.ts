// A checkpoint that another process changes while it loads, and weights that do not fit a type.

import { renameSync } from 'node:fs';
import { join } from 'node:path';
import { Model } from '../../lib/index';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { runScript } from '../support/children';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

it('truncated at 100 moments of a load, a file is an error or was already read', async () => {
  const directory = directories.make();
  writeCheckpoint(directory, randomCheckpoint({ hiddenSize: 256, vocabSize: 32768 })); // 34 MB
  renameSync(join(directory, 'model.safetensors'), join(directory, 'original'));
  const outcomes = await runScript<Record<string, number>>('faults/truncated_load.cjs', [directory, '100']);
  const { loaded = 0, ERR_INVALID_CHECKPOINT: invalid = 0, ...others } = outcomes;
  expect(others).toEqual({});
  expect(loaded + invalid).toBe(100);
  expect(invalid).toBeGreaterThan(0);
}, 120_000);

describe('the type of the weights', () => {
  const name = 'model.layers.0.self_attn.v_proj.weight';
  type Type = 'F32' | 'F16' | 'BF16';

  /** Loads a checkpoint of `type` in which one matrix has another type and one other value. */
  function load(type: Type, one: Type, value: number, dtype?: 'f16' | 'bf16' | 'f32'): Promise<Model> {
    const checkpoint = randomCheckpoint({ type });
    const tensor = checkpoint.tensors.get(name);
    if (tensor === undefined) throw new Error(`no ${name}`);
    const data = tensor.data.slice();
    data[5] = value;
    checkpoint.tensors.set(name, { ...tensor, type: one, data });
    const directory = directories.make();
    writeCheckpoint(directory, checkpoint);
    return Model.load(directory, { device: 'cpu', ...(dtype && { dtype }) });
  }

  it.each([
    ['F32', 'F32', 'f32'],
    ['F16', 'F16', 'f16'],
    ['BF16', 'BF16', 'bf16'],
    ['F16', 'F32', 'f32'],
    ['BF16', 'F32', 'f32'],
    ['F16', 'BF16', 'f32'],
  ] as const)('is one that represents all matrices: %s and %s load as %s', async (type, one, expected) => {
    const model = await load(type, one, 1);
    expect(model.dtype).toBe(expected);
    expect((await (await model.createSession()).prefill([1, 2])).every(Number.isFinite)).toBe(true);
    model.dispose();
  });

  it.each([
    ['F32', 65519, 'f16', undefined], // rounds to 65504, the largest f16
    ['F32', 65520, 'f16', 'f32'],
    ['BF16', -1e5, 'f16', 'bf16'],
    ['F32', 3.395e38, 'bf16', undefined], // rounds to the largest bf16
    ['F32', 3.4e38, 'bf16', 'f32'],
    ['F32', Number.POSITIVE_INFINITY, 'f16', undefined], // is one in the checkpoint too
  ] as const)('%s with %d as %s is an error if it overflows', async (type, value, dtype, remedy) => {
    const loaded = load(type, type, value, dtype);
    if (remedy === undefined) {
      (await loaded).dispose();
      return;
    }
    const error = await loaded.catch((error: unknown) => error as Error & { code: string });
    expect(error).toMatchObject({ code: 'ERR_UNSUPPORTED_MODEL' });
    expect((error as Error).message).toContain(`model.safetensors: the tensor '${name}' has the value `);
    expect((error as Error).message).toContain(`overflows ${dtype}; load the model with dtype "${remedy}"`);
  });
});
