// A Llama-shaped model with random weights, written as a Hugging Face checkpoint for diffqkv and as GGUF for llama.cpp, with
// the same numbers. Weights are 8-bit integers times a power of two, which bf16 and f16 represent exactly.
import * as fs from 'node:fs';
import * as path from 'node:path';

import { type GgufType, ggufHeader } from './gguf';

/** The properties of a Llama config.json that both formats need. */
export interface LlamaShape {
  hidden_size: number;
  intermediate_size: number;
  num_hidden_layers: number;
  num_attention_heads: number;
  num_key_value_heads: number;
  head_dim: number;
  vocab_size: number;
  max_position_embeddings: number;
  rope_theta: number;
  rms_norm_eps: number;
}

interface Weight {
  hf: string;
  gguf: string;
  shape: number[];
  /** The power of two that the integers are multiplied by; null for the weight of a norm, which is near 1. */
  step: number | null;
  /** Number of heads of Q or K, whose rows are reordered: llama.cpp rotates adjacent pairs. */
  pairedHeads?: number;
}

const SEED = 2501;

function weightsOf(shape: LlamaShape): Weight[] {
  const { hidden_size: hidden, intermediate_size: ffn, head_dim: dim } = shape;
  const [numQHeads, numKHeads] = [shape.num_attention_heads, shape.num_key_value_heads];
  // The standard deviation of the integers is 104. That of a product over `inputs` becomes about 1.
  const matrix = (hf: string, gguf: string, rows: number, inputs: number, pairedHeads?: number): Weight => ({
    hf: `${hf}.weight`,
    gguf: `${gguf}.weight`,
    shape: [rows, inputs],
    step: 2 ** -Math.round(Math.log2(104 * Math.sqrt(inputs))),
    pairedHeads,
  });
  const norm = (hf: string, gguf: string): Weight => ({
    hf: `${hf}.weight`,
    gguf: `${gguf}.weight`,
    shape: [hidden],
    step: null,
  });
  const layers = Array.from({ length: shape.num_hidden_layers }, (_, i) => {
    const [hf, gguf] = [`model.layers.${i}`, `blk.${i}`];
    return [
      norm(`${hf}.input_layernorm`, `${gguf}.attn_norm`),
      matrix(`${hf}.self_attn.q_proj`, `${gguf}.attn_q`, numQHeads * dim, hidden, numQHeads),
      matrix(`${hf}.self_attn.k_proj`, `${gguf}.attn_k`, numKHeads * dim, hidden, numKHeads),
      matrix(`${hf}.self_attn.v_proj`, `${gguf}.attn_v`, numKHeads * dim, hidden),
      matrix(`${hf}.self_attn.o_proj`, `${gguf}.attn_output`, hidden, numQHeads * dim),
      norm(`${hf}.post_attention_layernorm`, `${gguf}.ffn_norm`),
      matrix(`${hf}.mlp.gate_proj`, `${gguf}.ffn_gate`, ffn, hidden),
      matrix(`${hf}.mlp.up_proj`, `${gguf}.ffn_up`, ffn, hidden),
      matrix(`${hf}.mlp.down_proj`, `${gguf}.ffn_down`, hidden, ffn),
    ];
  });
  return [
    { ...matrix('model.embed_tokens', 'token_embd', shape.vocab_size, hidden), step: 2 ** -7 },
    ...layers.flat(),
    norm('model.norm', 'output_norm'),
    matrix('lm_head', 'output', shape.vocab_size, hidden),
  ];
}

const count = (shape: readonly number[]) => shape.reduce((product, size) => product * size, 1);

/** Integers from -255 to 255, each the difference of two random bytes. */
function wholeNumbers(length: number, seed: number): Int16Array {
  const out = new Int16Array(length);
  let state = Math.imul(seed, 0x9e3779b1) | 1;
  for (let i = 0; i < length; i += 2) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    out[i] = (state & 255) - ((state >>> 8) & 255);
    if (i + 1 < length) out[i + 1] = ((state >>> 16) & 255) - (state >>> 24);
  }
  return out;
}

/** The bits of a number that f16 and bf16 represent exactly. */
export function exactBits(value: number, type: 'BF16' | 'F16'): number {
  const bits = new Uint32Array(new Float32Array([value]).buffer)[0] as number;
  if (type === 'BF16') return bits >>> 16;
  const exponent = ((bits >>> 23) & 255) - 112;
  const sign = (bits >>> 16) & 0x8000;
  if (value === 0) return sign;
  return exponent > 0
    ? sign | (exponent << 10) | ((bits >>> 13) & 0x3ff)
    : sign | Math.round(Math.abs(value) * 2 ** 24);
}

/** The bits of the numbers, by a table of all 511 values. */
function encode(numbers: Int16Array, step: number | null, type: 'BF16' | 'F16'): Uint16Array {
  const numberAt = (number: number) => (step === null ? 1 + (number >> 4) / 128 : number * step);
  const table = Uint16Array.from({ length: 511 }, (_, i) => exactBits(numberAt(i - 255), type));
  return Uint16Array.from(numbers, (number) => table[number + 255] as number);
}

/** Rows j and j + half of each head become rows 2j and 2j + 1. */
function pairRows(numbers: Int16Array, [rows, inputs]: [number, number], heads: number): Int16Array {
  const out = new Int16Array(numbers.length);
  const dim = rows / heads;
  for (let row = 0; row < rows; ++row) {
    const [head, i] = [Math.floor(row / dim), row % dim];
    const to = head * dim + (i < dim / 2 ? 2 * i : 2 * (i - dim / 2) + 1);
    out.set(numbers.subarray(row * inputs, (row + 1) * inputs), to * inputs);
  }
  return out;
}

/** Writes config.json, model.safetensors (bf16), and a GGUF file of each of the types. */
export function writeModels(folder: string, shape: LlamaShape, types: readonly ('BF16' | 'F16')[]) {
  const weights = weightsOf(shape);
  const config = {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    hidden_act: 'silu',
    torch_dtype: 'bfloat16',
    tie_word_embeddings: false,
    bos_token_id: 1,
    eos_token_id: 2,
    ...shape,
  };
  fs.writeFileSync(path.join(folder, 'config.json'), JSON.stringify(config));
  const safetensors = fs.openSync(path.join(folder, 'model.safetensors'), 'w');
  const ggufs = types.map((type) => {
    const file = path.join(folder, `model-${type}.gguf`);
    return { type, file, descriptor: fs.openSync(file, 'w') };
  });
  const typeIn = ({ step }: Weight, type: 'BF16' | 'F16'): GgufType => (step === null ? 'F32' : type);
  try {
    fs.writeSync(safetensors, safetensorsHeader(weights));
    for (const { descriptor, type } of ggufs) {
      const tensors = weights.map((weight) => ({
        name: weight.gguf,
        shape: weight.shape,
        type: typeIn(weight, type),
      }));
      fs.writeSync(descriptor, ggufHeader(shape, type, tensors));
    }
    weights.forEach((weight, i) => {
      const numbers = wholeNumbers(count(weight.shape), SEED + i);
      const bf16 = encode(numbers, weight.step, 'BF16');
      fs.writeSync(safetensors, bf16);
      const paired = weight.pairedHeads
        ? pairRows(numbers, weight.shape as [number, number], weight.pairedHeads)
        : numbers;
      for (const { descriptor, type } of ggufs) {
        const isF32 = typeIn(weight, type) === 'F32';
        // The weights of a norm are bf16. As f32 they have the same bits, followed by zeros.
        const data = isF32 ? Uint32Array.from(bf16, (bits) => bits << 16) : encode(paired, weight.step, type);
        fs.writeSync(descriptor, data);
        fs.writeSync(descriptor, new Uint8Array(-data.byteLength & 31));
      }
    });
  } finally {
    for (const descriptor of [safetensors, ...ggufs.map(({ descriptor }) => descriptor)]) fs.closeSync(descriptor);
  }
  const matrices = weights.filter(({ gguf, step }) => step !== null && !gguf.startsWith('token_embd'));
  return {
    /** Number of bytes of all weights in bf16, and of the matrices that a token reads. Of the embedding it reads one row. */
    weightBytes: 2 * weights.reduce((sum, weight) => sum + count(weight.shape), 0),
    matrixParameters: matrices.reduce((sum, weight) => sum + count(weight.shape), 0),
    ggufs: ggufs.map(({ type, file }) => ({ type, file })),
  };
}

function safetensorsHeader(weights: readonly Weight[]): Buffer {
  let offset = 0;
  const entries = weights.map(({ hf, shape }) => {
    const start = offset;
    offset += 2 * count(shape);
    return [hf, { dtype: 'BF16', shape, data_offsets: [start, offset] }];
  });
  const json = JSON.stringify(Object.fromEntries(entries));
  const header = Buffer.from(json + ' '.repeat(-json.length & 7));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([length, header]);
}
