// Writes seeds for the fuzz targets: small checkpoints of every kind, and one checkpoint with each
// row of breaks*.ts applied, each as a whole and file by file.
//
//   npx tsc -p test --noEmit false --outDir build/fuzz-seeds &&
//   node build/fuzz-seeds/test/fuzz/seeds.js FOLDER

import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { configs, unsupported } from '../model/breaks_configs';
import { files, headers } from '../model/breaks_files';
import { entries, shards, tensors } from '../model/breaks_tensors';
import { type CheckpointSpec, randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { joinFiles, names } from './files';

const folder = process.argv[2] ?? 'build/fuzz-seeds/corpus';
const directories = temporaryDirectories();
const MAX_BYTES = 16 << 10;

function write(target: string, bytes: Uint8Array): void {
  if (bytes.length > MAX_BYTES) return;
  mkdirSync(join(folder, target), { recursive: true });
  writeFileSync(join(folder, target, createHash('sha1').update(bytes).digest('hex')), bytes);
}

const shardNames: Record<string, string> = {
  'a.safetensors': 'model-1-of-2.safetensors',
  'b.safetensors': 'model-2-of-2.safetensors',
};

/** The files of a directory, with shards under the names that the targets know. */
function collect(directory: string, targets: readonly string[]): void {
  const parts: [string, Uint8Array][] = [];
  const read = (name: string): Buffer | undefined => {
    try {
      return readFileSync(join(directory, name));
    } catch {
      return undefined; // a break may have removed it or put something else there
    }
  };
  for (const name of names) {
    let bytes = read(shardNames[name] ?? name);
    if (bytes === undefined) continue;
    if (name === 'model.safetensors.index.json')
      bytes = Buffer.from(bytes.toString().replace(/model-(\d)-of-2/g, (_, n) => (n === '1' ? 'a' : 'b')));
    const target = name.endsWith('.safetensors') ? 'safetensors' : name === 'config.json' ? 'config' : 'index';
    if (targets.includes(target) && name !== 'generation_config.json') write(target, bytes);
    parts.push([name, bytes]);
  }
  if (targets.includes('checkpoint')) write('checkpoint', joinFiles(0, parts));
}

const tiny: CheckpointSpec = {
  type: 'BF16',
  heads: [2, 1, 2],
  headDim: 2,
  hiddenSize: 2,
  intermediateSize: 3,
  augQSize: 2,
  vocabSize: 3,
};
const make = (spec: CheckpointSpec) => randomCheckpoint({ ...tiny, ...spec });
const rope = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 64 };
const good = make({});
// A header of three tensors keeps the target that reads only one file fast.
const few = { ...good, tensors: new Map([...good.tensors].filter(([name]) => /k_proj|model\.norm/.test(name))) };
const goodLlama = make({ architecture: 'llama', heads: [2, 1, 1] });
const whole: CheckpointSpec[] = [
  {},
  { type: 'F32', numLayers: 1 },
  { type: 'F16', augQSize: 0, tied: false, numLayers: 1 },
  { architecture: 'llama', heads: [2, 1, 1], numLayers: 1, ropeScaling: rope },
  { headDim: 4, valueHeadDim: 6, numLayers: 1 },
  { augQSize: 1, hiddenSize: 4, heads: [4, 2, 4], numLayers: 1, config: { eos_token_id: [1, 2], bos_token_id: 0 } },
];
for (const position of ['after_rope', 'before_rope'] as const) {
  whole.push({ headDim: 4, keyHeadDim: 2, keyLift: { kind: 'linear', position }, numLayers: 1 });
  whole.push({
    headDim: 4,
    keyHeadDim: 2,
    keyLift: { kind: 'swiglu', position, intermediate_size: 3 },
    numLayers: 1,
  });
}
for (const spec of whole) {
  for (const numShards of [1, 2]) {
    const directory = directories.make();
    writeCheckpoint(directory, make(spec), numShards);
    writeFileSync(join(directory, 'generation_config.json'), '{"eos_token_id":[1,2]}');
    collect(directory, ['checkpoint', 'config', 'index']);
  }
}
for (const broken of [...files, ...headers, ...entries, ...tensors, ...shards, ...configs, ...unsupported]) {
  for (const [checkpoint, targets] of [
    [broken.llama ? goodLlama : good, ['checkpoint', 'config', 'index']],
    [few, ['safetensors']],
  ] as const) {
    const directory = join(directories.make(), 'model');
    writeCheckpoint(directory, checkpoint, broken.shards);
    broken.apply(directory, checkpoint);
    if (existsSync(directory)) collect(directory, targets);
  }
}
const config = JSON.stringify(good.config);
write('config', Buffer.from(`${config}\0{"eos_token_id":[1,2]}`));
write('config', Buffer.from(`${config}\0{"eos_token_id":"x"}`));
const map = { x: 'a.safetensors', y: 'a.safetensors', z: 'b.safetensors', w: 'b.safetensors' };
write('index', Buffer.from(JSON.stringify({ metadata: { total_size: 15 }, weight_map: map })));
directories.cleanUp();
