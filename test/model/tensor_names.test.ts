// Prefixes of tensor names that other programs write, and an lm_head beside tied embeddings.

import { randomInt } from 'node:crypto';
import { Model } from '../../lib/index';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { firstBitDifference } from '../support/compare';
import { errorOf } from '../support/devices';
import type { Checkpoint, CheckpointTensor } from '../support/reference_model';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

async function logitsOf(checkpoint: Checkpoint, numShards = 1): Promise<Float32Array> {
  const directory = directories.make();
  writeCheckpoint(directory, checkpoint, numShards);
  const model = await Model.load(directory, { device: 'cpu' });
  const session = await model.createSession();
  const logits = await session.prefill([1, 2, 3]);
  model.dispose();
  return logits;
}

function renamed(checkpoint: Checkpoint, rename: (name: string) => string): Checkpoint {
  const tensors = [...checkpoint.tensors].map(([name, tensor]) => [rename(name), tensor] as const);
  return { ...checkpoint, tensors: new Map(tensors) };
}

const untied = randomCheckpoint({ numLayers: 2, tied: false });
const tied = randomCheckpoint({ numLayers: 2, tied: true });

describe('names of tensors', () => {
  it.each<[string, Checkpoint, (name: string) => string]>([
    ['of torch.compile', untied, (name) => `_orig_mod.${name}`],
    ['of torch.compile, twice', untied, (name) => `_orig_mod._orig_mod.${name}`],
    ['of a model without its output matrix', tied, (name) => name.replace(/^model\./, '')],
    ['of a multimodal model', untied, (name) => `language_model.${name}`],
    ['of a newer multimodal model', untied, (name) => name.replace(/^model\./, 'model.language_model.')],
    ['of several kinds', tied, (name) => `_orig_mod.${name.replace(/^model\./, '')}`],
  ])('%s', async (_, checkpoint, rename) => {
    const expected = await logitsOf(checkpoint);
    for (const shards of [1, 3]) {
      const logits = await logitsOf(renamed(checkpoint, rename), shards);
      expect(firstBitDifference(logits, expected)).toBe(-1);
    }
  });

  it('that differ only by a prefix are rejected', async () => {
    const both = new Map(untied.tensors);
    both.set('_orig_mod.model.norm.weight', both.get('model.norm.weight') as never);
    const error = await errorOf(() => logitsOf({ ...untied, tensors: both }));
    expect(error.code).toBe('ERR_INVALID_CHECKPOINT');
    expect(error.message).toContain('_orig_mod.model.norm.weight');
  });

  it('that are unknown are named as in the file', async () => {
    const more = renamed(untied, (name) => `_orig_mod.${name}`);
    more.tensors.set('_orig_mod.model.layers.0.extra.weight', more.tensors.get('_orig_mod.model.norm.weight') as never);
    const error = await errorOf(() => logitsOf(more));
    expect(error.code).toBe('ERR_UNSUPPORTED_MODEL');
    expect(error.message).toContain('_orig_mod.model.layers.0.extra.weight');
  });
});

describe('tie_word_embeddings', () => {
  const warning = jest.spyOn(process, 'emitWarning').mockImplementation(() => {});
  beforeEach(() => warning.mockClear());
  afterAll(() => warning.mockRestore());

  const ties = { ...untied, config: { ...untied.config, tie_word_embeddings: true } };
  const codes = () => warning.mock.calls.map(([, options]) => (options as { code?: string }).code);

  it('keeps an lm_head that differs, and warns', async () => {
    const logits = await logitsOf(ties);
    expect(firstBitDifference(logits, await logitsOf(untied))).toBe(-1);
    expect(warning.mock.calls).toEqual([
      [
        expect.stringMatching(/^\/.*: tie_word_embeddings is true in config\.json, but lm_head\.weight differs from /),
        { type: 'DiffqkvWarning', code: 'DIFFQKV_UNTIED' },
      ],
    ]);
  });

  it('notices a difference in one bit', async () => {
    const tensors = new Map(untied.tensors);
    const embedding = tensors.get('model.embed_tokens.weight') as CheckpointTensor;
    const data = Float32Array.from(embedding.data);
    tensors.set('lm_head.weight', { ...embedding, data });
    await logitsOf({ ...ties, tensors });
    expect(codes()).toEqual([]);
    const bits = new Uint32Array(data.buffer);
    bits[randomInt(bits.length)]! ^= 1;
    await logitsOf({ ...ties, tensors });
    expect(codes()).toEqual(['DIFFQKV_UNTIED']);
  });
});
