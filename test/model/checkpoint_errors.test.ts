// Every known way to break a checkpoint returns a coded error that names the file and, if there is
// one, the tensor. Nothing crashes, and an existing session continues with the same bits.

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Model, type Session } from '../../lib/index';
import {
  randomCheckpoint,
  safetensorsFile,
  safetensorsParts,
  temporaryDirectories,
  writeCheckpoint,
} from '../support/checkpoints';
import { firstBitDifference } from '../support/compare';
import { errorOf, onEveryDevice } from '../support/devices';
import { file } from './breaks';
import { configField, configs, llama3, unsupported } from './breaks_configs';
import { files, headers, tokenizers } from './breaks_files';
import { entries, shards, tensors } from './breaks_tensors';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

onEveryDevice((device) => {
  const good = randomCheckpoint({});
  const goodLlama = randomCheckpoint({ architecture: 'llama', heads: [4, 2, 2] });
  let earlier: Model;
  let session: Session;
  let before: Float32Array;
  beforeAll(async () => {
    const directory = directories.make();
    writeCheckpoint(directory, good);
    earlier = await Model.load(directory, { device: device() });
    session = await earlier.createSession();
    before = await session.prefill([1, 2, 3, 4, 5]);
  });
  afterAll(() => earlier?.dispose());

  describe.each(Object.entries({ files, headers, entries, tensors, shards, configs, unsupported, tokenizers }))(
    '%s',
    (_, breaks) => {
      it.each(breaks)('$name', async ({ apply, code = 'ERR_INVALID_CHECKPOINT', names, shards: numShards, llama }) => {
        const checkpoint = llama ? goodLlama : good;
        const directory = join(directories.make(), 'model');
        writeCheckpoint(directory, checkpoint, numShards);
        apply(directory, checkpoint);
        const error = await errorOf(async () => {
          const model = await Model.load(directory, { device: device() });
          model.dispose();
        });
        expect(error.message).not.toMatch(/\n/);
        expect({ code: error.code, message: error.message }).toEqual({
          code,
          message: expect.stringContaining(directory),
        });
        for (const name of names)
          expect(error.message).toMatch(
            typeof name === 'string' ? new RegExp(name.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')) : name,
          );

        await session.truncate(0);
        expect(firstBitDifference(await session.prefill([1, 2, 3, 4, 5]), before)).toBe(-1);
      });
    },
  );

  it('loads the unbroken checkpoint, single, sharded and as Llama', async () => {
    for (const [checkpoint, numShards] of [
      [good, 1],
      [good, 2],
      [goodLlama, 1],
    ] as const) {
      const directory = directories.make();
      writeCheckpoint(directory, checkpoint, numShards);
      const model = await Model.load(directory, { device: device() });
      model.dispose();
    }
  });

  it('accepts harmless additions: metadata, unused tensors, spaces after the header', async () => {
    const directory = directories.make();
    const extra = new Map(good.tensors).set('model.extra.weight', {
      type: 'F32',
      shape: [0, 3],
      data: new Float32Array(0),
    });
    writeCheckpoint(directory, { config: { ...good.config, something_else: { deep: [1] } }, tensors: extra });
    const { header, data } = safetensorsParts(extra);
    writeFileSync(
      join(directory, file),
      safetensorsFile(`${JSON.stringify({ __metadata__: { format: 'pt' }, ...header })}     `, data),
    );
    const model = await Model.load(directory, { device: device() });
    const other = await model.createSession();
    expect(firstBitDifference(await other.prefill([1, 2, 3, 4, 5]), before)).toBe(-1);
    model.dispose();
  });

  it.each<[string, Record<string, unknown>, Record<string, unknown>]>([
    ['rope_parameters equal to rope_scaling', { rope_scaling: llama3 }, { rope_parameters: llama3 }],
    [
      'rope_parameters with rope_theta, and rope_scaling without it',
      { rope_scaling: llama3, rope_theta: 20000 },
      { rope_scaling: llama3, rope_parameters: { ...llama3, rope_theta: 20000 }, rope_theta: undefined },
    ],
    [
      'rope_scaling by its older field `type`',
      { rope_scaling: llama3 },
      { rope_parameters: llama3, rope_scaling: { ...llama3, rope_type: undefined, type: 'llama3' } },
    ],
    [
      'rope_parameters of one layer type',
      { rope_scaling: llama3, rope_theta: 20000 },
      { rope_parameters: { full_attention: { ...llama3, rope_theta: 20000 } }, rope_theta: undefined },
    ],
    [
      'equal rope_parameters of two layer types',
      { rope_scaling: llama3 },
      { rope_parameters: { full_attention: llama3, sliding_attention: { ...llama3 } } },
    ],
  ])('reads %s', async (_, plain, other) => {
    const logits = async (fields: Record<string, unknown>) => {
      const directory = directories.make();
      writeCheckpoint(directory, { config: { ...good.config, ...fields }, tensors: good.tensors });
      const model = await Model.load(directory, { device: device() });
      const result = await (await model.createSession()).prefill([1, 2, 3, 4, 5]);
      model.dispose();
      return result;
    };
    const expected = await logits(plain);
    expect(firstBitDifference(expected, before)).not.toBe(-1);
    expect(firstBitDifference(await logits({ ...plain, ...other }), expected)).toBe(-1);
  });

  it.each([
    'NaN',
    'Infinity',
    '-Infinity',
    '[0, Infinity, -Infinity,\n NaN ]',
    '{"a": NaN, "b": 1}',
    '"NaN, Infinity"',
  ])('ignores %s in a field that it does not know, as Python writes it', async (text) => {
    const directory = directories.make();
    writeCheckpoint(directory, good);
    configField('other', text)(directory, good);
    // Numbers after the field have their own values.
    const json = readFileSync(join(directory, 'config.json'), 'utf8');
    writeFileSync(join(directory, 'config.json'), `{"other_two": ${text}, ${json.slice(1)}`);
    const model = await Model.load(directory, { device: device() });
    expect(model.config.hiddenSize).toBe(64);
    const session = await model.createSession();
    expect(firstBitDifference(await session.prefill([1, 2, 3, 4, 5]), before)).toBe(-1);
    model.dispose();
  });

  it.each([
    ['rms_norm_eps', 'NaN'],
    ['rope_theta', 'Infinity'],
    ['max_position_embeddings', 'Infinity'],
    ['eos_token_id', '[1, NaN]'],
    ['sliding_window', '-Infinity'],
  ])('rejects %s %s', async (field, text) => {
    const directory = directories.make();
    writeCheckpoint(directory, good);
    configField(field, text)(directory, good);
    const error = await errorOf(() => Model.load(directory, { device: device() }));
    expect(error.code).toMatch(/^ERR_(INVALID_CHECKPOINT|UNSUPPORTED_MODEL)$/);
    expect(error.message).toContain(field);
    expect(error.message).toContain(text.replace(/[[\]1, ]/g, ''));
  });

  it('escapes control characters of the file in messages, C1 too', async () => {
    const directory = directories.make();
    writeCheckpoint(directory, {
      ...good,
      config: { ...good.config, hidden_act: 'a\x1b[2J\u009b31m\u0080\u00a0\x7f\u00e9' },
    });
    const error = await errorOf(() => Model.load(directory, { device: device() }));
    expect(error.message).toContain("'a\\x1b[2J\\x9b31m\\x80\u00a0\\x7f\u00e9'");
  });

  it('names the tensors of augmented Q whose product overflows', async () => {
    const directory = directories.make();
    const q = 'model.layers.0.self_attn.q_proj.weight';
    const gate = 'model.layers.0.self_attn.q_gate_proj.weight';
    const write = (value: number) => {
      const checkpoint = randomCheckpoint({ type: 'F16' });
      for (const name of [q, gate]) checkpoint.tensors.get(name)?.data.fill(value);
      writeCheckpoint(directory, checkpoint);
    };
    // Each element of the product is the sum of 64 products: 65,504 is the largest f16.
    write(30);
    (await Model.load(directory, { device: device() })).dispose();
    write(33);
    const error = await errorOf(() => Model.load(directory, { device: device() }));
    expect(error).toMatchObject({ code: 'ERR_UNSUPPORTED_MODEL' });
    for (const part of [directory, gate, q, 'overflows f16', 'dtype "f32"']) expect(error.message).toContain(part);
    for (const dtype of ['f32', 'bf16'] as const) (await Model.load(directory, { device: device(), dtype })).dispose();
    // What is infinite in the file is no overflow.
    write(Number.POSITIVE_INFINITY);
    (await Model.load(directory, { device: device() })).dispose();
  });
});
