// Every known way to break a checkpoint returns a coded error that names the file and, if there is
// one, the tensor. Nothing crashes, and an existing session continues with the same bits.

import { writeFileSync } from 'node:fs';
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
import { configs, unsupported } from './breaks_configs';
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
});
