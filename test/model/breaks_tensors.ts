// Broken tensors: their header entries, shapes and places in shards.

import { renameSync, truncateSync, unlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type HeaderEntry, safetensorsFile, safetensorsParts, writeCheckpoint } from '../support/checkpoints';
import type { Checkpoint } from '../support/reference_model';
import { type Break, config, entry, file, index, kProj, norm, rewrite } from './breaks';

export const entries: Break[] = [
  {
    name: 'no dtype',
    apply: rewrite((header) => {
      delete (header[kProj] as Partial<HeaderEntry>).dtype;
      return undefined;
    }),
    names: [file, kProj, 'dtype'],
  },
  {
    name: 'no shape',
    apply: rewrite((header) => {
      delete (header[kProj] as Partial<HeaderEntry>).shape;
      return undefined;
    }),
    names: [file, kProj, 'shape'],
  },
  {
    name: 'no data_offsets',
    apply: rewrite((header) => {
      delete (header[kProj] as Partial<HeaderEntry>).data_offsets;
      return undefined;
    }),
    names: [file, kProj, 'data_offsets'],
  },
  { name: 'unknown dtype', apply: entry({ dtype: 'F99' }), names: [file, kProj, 'F99'] },
  { name: 'dtype of a different size', apply: entry({ dtype: 'F64' }), names: [file, kProj] },
  {
    name: 'dtype of the same size, not a weight type',
    apply: entry({ dtype: 'I32' }),
    names: [file, kProj, 'I32'],
    code: 'ERR_UNSUPPORTED_MODEL',
  },
  { name: 'dtype a number', apply: entry({ dtype: 32 }), names: [file, kProj] },
  { name: 'dtype empty', apply: entry({ dtype: '' }), names: [file, kProj] },
  { name: 'shape a string', apply: entry({ shape: '64' }), names: [file, kProj] },
  { name: 'shape with a fraction', apply: entry({ shape: [32.5, 64] }), names: [file, kProj, '32.5'] },
  {
    name: 'shape with an exponent',
    apply: rewrite((header) => ({
      header: JSON.stringify(header).replace(
        /("model\.layers\.1\.self_attn\.k_proj\.weight":\{"dtype":"F32","shape":\[)\d+/,
        '$11e300',
      ),
    })),
    names: [file, kProj],
  },
  { name: 'shape negative', apply: entry({ shape: [-32, 64] }), names: [file, kProj, '-32'] },
  { name: 'shape negative twice', apply: entry({ shape: [-32, -64] }), names: [file, kProj, '-32'] },
  {
    name: 'shape overflows to the right size',
    apply: entry({ shape: [2 ** 32, 2 ** 32, 2 ** 11] }),
    names: [file, kProj],
  },
  {
    name: 'shape of 2^63',
    apply: rewrite((header) => ({
      header: JSON.stringify(header).replace('"shape":[32,64]', '"shape":[9223372036854775808,64]'),
    })),
    names: [file, /k_proj/],
  },
  {
    name: 'shape of 2^70',
    apply: rewrite((header) => ({
      header: JSON.stringify(header).replace('"shape":[32,64]', '"shape":[1180591620717411303424,64]'),
    })),
    names: [file, /k_proj/],
  },
  { name: 'shape transposed', apply: entry({ shape: [64, 32] }), names: [file, kProj, /32/, /64/] },
  { name: 'shape flat', apply: entry({ shape: [2048] }), names: [file, kProj, '2048'] },
  { name: 'shape of rank 0', apply: entry({ shape: [] }), names: [file, kProj] },
  { name: 'shape of rank 1000', apply: entry({ shape: new Array(1000).fill(1) }), names: [file, kProj] },
  { name: 'offsets negative', apply: entry({ data_offsets: [-4, 8188] }), names: [file, kProj, '-4'] },
  { name: 'offsets with fractions', apply: entry({ data_offsets: [0.5, 8192.5] }), names: [file, kProj] },
  { name: 'offsets strings', apply: entry({ data_offsets: ['0', '8192'] }), names: [file, kProj] },
  { name: 'one offset', apply: entry({ data_offsets: [0] }), names: [file, kProj] },
  { name: 'three offsets', apply: entry({ data_offsets: [0, 8192, 8192] }), names: [file, kProj] },
  {
    name: 'offsets of 2^64 - 1',
    apply: rewrite((header) => ({
      header: JSON.stringify(header).replace(
        /("model\.layers\.1\.self_attn\.k_proj\.weight".*?"data_offsets":\[)\d+,\d+/,
        '$118446744073709543424,18446744073709551615',
      ),
    })),
    names: [file, kProj],
  },
  {
    name: 'offsets past 64 bits',
    apply: rewrite((header) => ({
      header: JSON.stringify(header).replace(
        /("model\.layers\.1\.self_attn\.k_proj\.weight".*?"data_offsets":\[)\d+,\d+/,
        '$10,99999999999999999999999999',
      ),
    })),
    names: [file, kProj],
  },
  {
    name: 'offsets past the end',
    apply: rewrite((header, data) => {
      (header[kProj] as HeaderEntry).data_offsets = [data.length, data.length + 8192];
      return undefined;
    }),
    names: [file, kProj, /past the end|truncated/],
  },
  {
    name: 'offsets end before they begin',
    apply: rewrite((header) => {
      (header[kProj] as HeaderEntry).data_offsets = [
        ...((header[kProj] as HeaderEntry).data_offsets as number[]),
      ].reverse();
      return undefined;
    }),
    names: [file, kProj],
  },
  {
    name: 'offsets overlap',
    apply: rewrite((header) => {
      const [begin, end] = (header[kProj] as HeaderEntry).data_offsets as [number, number];
      (header[kProj] as HeaderEntry).data_offsets = [begin - 4, end - 4];
      return undefined;
    }),
    names: [file, kProj, /overlap/],
  },
  {
    name: 'two tensors share their bytes',
    apply: rewrite((header) => {
      (header[kProj] as HeaderEntry).data_offsets = (
        header['model.layers.0.self_attn.k_proj.weight'] as HeaderEntry
      ).data_offsets;
      return undefined;
    }),
    names: [file, /k_proj/, /overlap/],
  },
  {
    name: 'a gap between tensors',
    apply: rewrite((header, data) => {
      const span = (header[norm] as HeaderEntry).data_offsets as [number, number];
      (header[norm] as HeaderEntry).data_offsets = [span[0] + 64, span[1] + 64];
      return { data: new Uint8Array([...data, ...new Uint8Array(64)]) };
    }),
    names: [file, norm, /gap|cover/],
  },
  {
    name: 'a byte too few for its shape',
    apply: rewrite((header) => {
      const [begin, end] = (header[kProj] as HeaderEntry).data_offsets as [number, number];
      (header[kProj] as HeaderEntry).data_offsets = [begin, end - 1];
      return undefined;
    }),
    names: [file, kProj],
  },
];

const remove =
  (name: string) =>
  (directory: string, checkpoint: Checkpoint): void => {
    const tensors = new Map(checkpoint.tensors);
    tensors.delete(name);
    writeCheckpoint(directory, { config: checkpoint.config, tensors });
  };
const reshape =
  (name: string, shape: number[]) =>
  (directory: string, checkpoint: Checkpoint): void => {
    const tensors = new Map(checkpoint.tensors);
    const length = shape.reduce((a, b) => a * b, 1);
    tensors.set(name, { type: 'F32', shape, data: new Float32Array(length).fill(0.1) });
    writeCheckpoint(directory, { config: checkpoint.config, tensors });
  };
const layer = 'model.layers.1.';
const needed = [
  'model.embed_tokens.weight',
  norm,
  `${layer}input_layernorm.weight`,
  `${layer}post_attention_layernorm.weight`,
  ...['gate', 'up', 'down'].map((part) => `${layer}mlp.${part}_proj.weight`),
  ...['q', 'k', 'v', 'o', 'q_gate', 'q_up', 'q_down'].map((part) => `${layer}self_attn.${part}_proj.weight`),
];
export const tensors: Break[] = [
  ...needed.map((name) => ({ name: `${name} missing`, apply: remove(name), names: [name] })),
  ...needed.map((name) => ({
    name: `${name} one row larger`,
    apply: (directory: string, checkpoint: Checkpoint) => {
      const shape = [...(checkpoint.tensors.get(name)?.shape ?? [0])];
      shape[0] = (shape[0] as number) + 1;
      reshape(name, shape)(directory, checkpoint);
    },
    names: [file, name],
  })),
  { name: 'an empty tensor', apply: reshape(kProj, [0, 64]), names: [file, kProj] },
  {
    name: 'augmented Q only in layer 0',
    apply: (directory, checkpoint) => {
      const kept = new Map(
        [...checkpoint.tensors].filter(([name]) => !/layers\.1\.self_attn\.q_(gate|up|down)/.test(name)),
      );
      writeCheckpoint(directory, { config: checkpoint.config, tensors: kept });
    },
    names: [/layers\.1\.self_attn\.q_/],
  },
  { name: 'untied, and no lm_head', apply: config({ tie_word_embeddings: false }), names: ['lm_head.weight'] },
  {
    name: 'a bias of K',
    apply: reshape('model.layers.0.self_attn.k_proj.bias', [32]),
    names: [file, 'model.layers.0.self_attn.k_proj.bias'],
    code: 'ERR_UNSUPPORTED_MODEL',
  },
  ...['model.norm.bias', 'lm_head.bias', 'model.embed_tokens.scale'].map((name) => ({
    name,
    apply: reshape(name, [32]),
    names: [file, name],
    code: 'ERR_UNSUPPORTED_MODEL' as const,
  })),
  {
    name: 'a bias of the FFN',
    apply: reshape('model.layers.0.mlp.up_proj.bias', [96]),
    names: [file, 'model.layers.0.mlp.up_proj.bias'],
    code: 'ERR_UNSUPPORTED_MODEL',
  },
  {
    name: 'q_proj of a width other than aug_q_dim',
    apply: config({ aug_q_dim: 49 }),
    names: [/q_(gate|up|down)_proj/, /49/],
  },
  { name: 'more layers than tensors', apply: config({ num_hidden_layers: 3 }), names: ['model.layers.2.'] },
];

const shard2 = 'model-2-of-2.safetensors';
export const shards: Break[] = (
  [
    { name: 'a shard missing', apply: (directory) => unlinkSync(join(directory, shard2)), names: [shard2] },
    { name: 'a shard truncated', apply: (directory) => truncateSync(join(directory, shard2), 3000), names: [shard2] },
    { name: 'a shard empty', apply: (directory) => writeFileSync(join(directory, shard2), ''), names: [shard2] },
    { name: 'the index is not JSON', apply: index(() => '{'), names: ['model.safetensors.index.json'] },
    { name: 'the index is a list', apply: index(() => '[]'), names: ['model.safetensors.index.json'] },
    {
      name: 'the index is nested 100,000 deep',
      apply: index(() => `{"weight_map":${'['.repeat(100_000)}${']'.repeat(100_000)}}`),
      names: ['model.safetensors.index.json'],
    },
    {
      name: 'no weight_map',
      apply: index(() => ({ metadata: {} })),
      names: ['model.safetensors.index.json', 'weight_map'],
    },
    {
      name: 'weight_map a list',
      apply: index(() => ({ weight_map: ['a'] })),
      names: ['model.safetensors.index.json', 'weight_map'],
    },
    {
      name: 'weight_map empty',
      apply: index(() => ({ weight_map: {} })),
      names: [/model\.embed_tokens\.weight|weight_map/],
    },
    {
      name: 'a shard that is a number',
      apply: index((map) => {
        map[norm] = 1;
      }),
      names: ['index.json', norm],
    },
    {
      name: 'the index names an absent tensor',
      apply: index((map) => {
        map['model.layers.9.absent'] = shard2;
      }),
      names: [shard2, 'model.layers.9.absent'],
    },
    {
      name: 'the index places a tensor in another shard',
      apply: index((map) => {
        map[kProj] = map[kProj] === shard2 ? 'model-1-of-2.safetensors' : shard2;
      }),
      names: [kProj],
    },
    {
      name: 'the index leaves a tensor out',
      apply: index((map) => {
        delete map[kProj];
      }),
      names: [kProj],
    },
    ...[
      '../model-2-of-2.safetensors',
      '/etc/passwd',
      '..',
      '.',
      '',
      'a/b.safetensors',
      'model-2-of-2.safetensors\u0000.x',
      '..\\x',
    ].map((path) => ({
      name: `a shard path ${JSON.stringify(path)}`,
      apply: index((map) => {
        map[norm] = path;
      }),
      names: ['index.json', norm],
    })),
    {
      name: 'a tensor in both shards',
      apply: (directory, checkpoint) => {
        const map: Record<string, string> = {};
        const all = [...checkpoint.tensors];
        [all.slice(0, 10), all.slice(9)].forEach((part, i) => {
          const name = `model-${i + 1}-of-2.safetensors`;
          for (const [tensor] of part) map[tensor] = name;
          const { header, data } = safetensorsParts(part);
          writeFileSync(join(directory, name), safetensorsFile(JSON.stringify(header), data));
        });
        writeFileSync(join(directory, 'model.safetensors.index.json'), JSON.stringify({ weight_map: map }));
      },
      names: [shard2, /is also in/],
    },
    {
      name: 'the index without its shards, all renamed',
      apply: (directory) => renameSync(join(directory, shard2), join(directory, 'other.safetensors')),
      names: [shard2],
    },
  ] as Break[]
).map((broken) => ({ ...broken, shards: 2 }));
