// Writes and reads checkpoints in Hugging Face format for tests: whole, sharded and, through the
// raw parts, broken ones.

import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { decode, encode, type FloatType, Random } from './numbers';
import type { Llama3RopeScaling } from './reference';
import type { Checkpoint, CheckpointTensor } from './reference_model';

const typeNames = { F32: 'f32', F16: 'f16', BF16: 'bf16' } as const satisfies Record<
  CheckpointTensor['type'],
  FloatType
>;
const torchNames = { F32: 'float32', F16: 'float16', BF16: 'bfloat16' } as const;

export interface CheckpointSpec {
  architecture?: 'sigma' | 'llama';
  type?: CheckpointTensor['type'];
  heads?: [q: number, k: number, v: number];
  headDim?: number;
  valueHeadDim?: number;
  /** Half K dim: K is cached at keyHeadDim and then lifted. */
  keyHeadDim?: number;
  keyLift?: { kind: 'linear' | 'swiglu'; position: 'after_rope' | 'before_rope'; intermediate_size?: number };
  hiddenSize?: number;
  intermediateSize?: number;
  augQSize?: number; // 0: without augmented Q
  numLayers?: number;
  vocabSize?: number;
  tied?: boolean;
  ropeTheta?: number;
  ropeScaling?: Llama3RopeScaling;
  maxPositionEmbeddings?: number;
  seed?: number;
  /** Overrides fields of the config; undefined removes a field. */
  config?: Record<string, unknown>;
}

/** A checkpoint of random weights, scaled so that activations stay of order one. */
export function randomCheckpoint(spec: CheckpointSpec = {}): Checkpoint {
  const {
    architecture = 'sigma',
    type = 'F32',
    heads = [4, 2, 4],
    headDim = 16,
    hiddenSize = 64,
    intermediateSize = 96,
    numLayers = 2,
    vocabSize = 128,
    tied = true,
  } = spec;
  const augQSize = architecture === 'llama' ? 0 : (spec.augQSize ?? 48);
  const [numQHeads, numKHeads, numVHeads] = heads;
  const { valueHeadDim = headDim, keyHeadDim = headDim, keyLift } = spec;
  const random = new Random(spec.seed ?? 1);
  const tensors: Checkpoint['tensors'] = new Map();
  const linear = (name: string, outFeatures: number, inFeatures: number): void => {
    tensors.set(name, {
      type,
      shape: [outFeatures, inFeatures],
      data: random.normals(outFeatures * inFeatures, 1 / Math.sqrt(inFeatures), typeNames[type]),
    });
  };
  const norm = (name: string): void => {
    const data = random.normals(hiddenSize, 0.1, 'f32').map((x) => 1 + x);
    tensors.set(name, { type, shape: [hiddenSize], data: decode(typeNames[type], encode(typeNames[type], data)) });
  };

  tensors.set('model.embed_tokens.weight', {
    type,
    shape: [vocabSize, hiddenSize],
    data: random.normals(vocabSize * hiddenSize, 1, typeNames[type]),
  });
  for (let layer = 0; layer < numLayers; layer++) {
    const at = `model.layers.${layer}`;
    norm(`${at}.input_layernorm.weight`);
    norm(`${at}.post_attention_layernorm.weight`);
    linear(`${at}.self_attn.q_proj.weight`, numQHeads * headDim, hiddenSize);
    linear(`${at}.self_attn.k_proj.weight`, numKHeads * keyHeadDim, hiddenSize);
    linear(`${at}.self_attn.v_proj.weight`, numVHeads * valueHeadDim, hiddenSize);
    linear(`${at}.self_attn.o_proj.weight`, hiddenSize, numQHeads * valueHeadDim);
    if (keyLift?.kind === 'linear') linear(`${at}.self_attn.k_lift_proj.weight`, headDim, keyHeadDim);
    if (keyLift?.kind === 'swiglu') {
      const inner = keyLift.intermediate_size as number;
      linear(`${at}.self_attn.k_lift_gate_proj.weight`, inner, keyHeadDim);
      linear(`${at}.self_attn.k_lift_up_proj.weight`, inner, keyHeadDim);
      linear(`${at}.self_attn.k_lift_down_proj.weight`, headDim, inner);
    }
    if (augQSize > 0) {
      linear(`${at}.self_attn.q_gate_proj.weight`, augQSize, numQHeads * headDim);
      linear(`${at}.self_attn.q_up_proj.weight`, augQSize, numQHeads * headDim);
      linear(`${at}.self_attn.q_down_proj.weight`, numQHeads * headDim, augQSize);
    }
    linear(`${at}.mlp.gate_proj.weight`, intermediateSize, hiddenSize);
    linear(`${at}.mlp.up_proj.weight`, intermediateSize, hiddenSize);
    linear(`${at}.mlp.down_proj.weight`, hiddenSize, intermediateSize);
  }
  norm('model.norm.weight');
  if (!tied) linear('lm_head.weight', vocabSize, hiddenSize);

  const config: Record<string, unknown> = {
    architectures: [architecture === 'sigma' ? 'SigmaForCausalLM' : 'LlamaForCausalLM'],
    model_type: architecture,
    hidden_act: 'silu',
    hidden_size: hiddenSize,
    intermediate_size: intermediateSize,
    num_hidden_layers: numLayers,
    num_attention_heads: numQHeads,
    ...(architecture === 'sigma'
      ? { num_key_heads: numKHeads, num_value_heads: numVHeads, aug_q_dim: augQSize || undefined }
      : { num_key_value_heads: numKHeads }),
    head_dim: headDim,
    value_head_dim: spec.valueHeadDim,
    key_head_dim: spec.keyHeadDim,
    key_lift: keyLift,
    vocab_size: vocabSize,
    max_position_embeddings: spec.maxPositionEmbeddings ?? 2048,
    rms_norm_eps: 1e-5,
    rope_theta: spec.ropeTheta ?? 50000,
    rope_scaling: spec.ropeScaling && { rope_type: 'llama3', ...spec.ropeScaling },
    tie_word_embeddings: tied,
    torch_dtype: torchNames[type],
    bos_token_id: null,
    eos_token_id: null,
    attention_bias: false,
    ...spec.config,
  };
  return { config, tensors };
}

/**
 * A checkpoint whose logits are `logits` after any token, times almost 1: the hidden state is always
 * the same, and a logit is a single product.
 */
export function knownLogits(logits: readonly number[]): Checkpoint {
  const vocabSize = logits.length;
  const hiddenSize = 8;
  const checkpoint = randomCheckpoint({
    ...{ architecture: 'llama', heads: [1, 1, 1], headDim: 8, hiddenSize, intermediateSize: 8 },
    ...{ numLayers: 1, vocabSize, tied: false },
  });
  const set = (name: string, value: (i: number) => number): void =>
    void (checkpoint.tensors.get(name) as CheckpointTensor).data.forEach((_, i, data) => {
      data[i] = value(i);
    });
  set('model.embed_tokens.weight', () => 1);
  set('model.layers.0.self_attn.o_proj.weight', () => 0);
  set('model.layers.0.mlp.down_proj.weight', () => 0);
  set('model.norm.weight', () => 1);
  set('lm_head.weight', (i) => (i % hiddenSize === 0 ? (logits[i / hiddenSize] as number) : 0));
  return checkpoint;
}

/**
 * A safetensors file from its parts: header length (default: the actual one), header text, data.
 */
export function safetensorsFile(header: string | Uint8Array, data: Uint8Array, headerLength?: bigint): Uint8Array {
  const text = typeof header === 'string' ? new TextEncoder().encode(header) : header;
  const file = new Uint8Array(8 + text.length + data.length);
  new DataView(file.buffer).setBigUint64(0, headerLength ?? BigInt(text.length), true);
  file.set(text, 8);
  file.set(data, 8 + text.length);
  return file;
}

export interface HeaderEntry {
  dtype: unknown;
  shape: unknown;
  data_offsets: unknown;
}

/** Header and data of a safetensors file that contains `tensors` in this order. */
export function safetensorsParts(tensors: Iterable<[string, CheckpointTensor]>): {
  header: Record<string, HeaderEntry>;
  data: Uint8Array;
} {
  const header: Record<string, HeaderEntry> = {};
  const pieces: Uint8Array[] = [];
  let offset = 0;
  for (const [name, tensor] of tensors) {
    const bytes = encode(typeNames[tensor.type], tensor.data);
    header[name] = { dtype: tensor.type, shape: tensor.shape, data_offsets: [offset, offset + bytes.length] };
    offset += bytes.length;
    pieces.push(bytes);
  }
  return { header, data: new Uint8Array(Buffer.concat(pieces)) };
}

export function writeConfig(directory: string, config: unknown): void {
  writeFileSync(join(directory, 'config.json'), JSON.stringify(config, null, 2));
}

/** Writes a checkpoint as one file, or distributed over `numShards` files with an index. */
export function writeCheckpoint(directory: string, checkpoint: Checkpoint, numShards = 1): void {
  mkdirSync(directory, { recursive: true });
  writeConfig(directory, checkpoint.config);
  const entries = [...checkpoint.tensors];
  const weightMap: Record<string, string> = {};
  for (let shard = 0; shard < numShards; shard++) {
    const name = numShards === 1 ? 'model.safetensors' : `model-${shard + 1}-of-${numShards}.safetensors`;
    const held = entries.filter((_, i) => i % numShards === shard);
    for (const [tensor] of held) weightMap[tensor] = name;
    const { header, data } = safetensorsParts(held);
    writeFileSync(join(directory, name), safetensorsFile(JSON.stringify(header), data));
  }
  if (numShards > 1)
    writeFileSync(
      join(directory, 'model.safetensors.index.json'),
      JSON.stringify({ metadata: {}, weight_map: weightMap }),
    );
}

/** Reads a well-formed checkpoint. */
export function readCheckpoint(directory: string): Checkpoint {
  const tensors: Checkpoint['tensors'] = new Map();
  for (const name of readdirSync(directory).filter((file) => file.endsWith('.safetensors'))) {
    const file = readFileSync(join(directory, name));
    const dataStart = 8 + Number(file.readBigUInt64LE(0));
    const header = JSON.parse(file.subarray(8, dataStart).toString()) as Record<
      string,
      { dtype: CheckpointTensor['type']; shape: number[]; data_offsets: [number, number] }
    >;
    for (const [tensor, { dtype, shape, data_offsets }] of Object.entries(header)) {
      if (tensor === '__metadata__') continue;
      const bytes = file.subarray(dataStart + data_offsets[0], dataStart + data_offsets[1]);
      tensors.set(tensor, { type: dtype, shape, data: decode(typeNames[dtype], bytes) });
    }
  }
  return { config: JSON.parse(readFileSync(join(directory, 'config.json'), 'utf8')), tensors };
}

/** Creates fresh directories. A test file calls `cleanUp` in afterAll to remove them. */
export function temporaryDirectories(): { make(): string; cleanUp(): void } {
  const made: string[] = [];
  return {
    make() {
      const directory = mkdtempSync(join(tmpdir(), 'diffqkv-test-'));
      made.push(directory);
      return directory;
    },
    cleanUp() {
      for (const directory of made) rmSync(directory, { recursive: true, force: true });
    },
  };
}
