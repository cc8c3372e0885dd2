// A Llama-shaped model with random weights, written as a Hugging Face checkpoint for diffqkv and as GGUF for llama.cpp.
// Weights are 8-bit integers with a sign times a power of two, which bf16 and f16 represent exactly. Q8_0 and Q4_0 cannot.
// Those files have the integers and scales that diffqkv computes when it loads the checkpoint with i8 or i4 weights, so that
// both sides still have the same numbers.
import * as fs from 'node:fs';
import * as path from 'node:path';

import { type Device, kernels, type Tensor } from '../../lib/index';
import { type GgufFileType, type GgufType, ggufHeader, isQuantized, q4Blocks, q8Blocks } from './gguf';

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

/** The bits of a number. Throws RangeError if the type does not represent it exactly. */
export function exactBits(value: number, type: 'BF16' | 'F16'): number {
  const bits = new Uint32Array(new Float32Array([value]).buffer)[0] as number;
  const exact = (condition: boolean, result: number) => {
    if (condition && Math.fround(value) === value) return result;
    throw new RangeError(`${value} is not a number of ${type}`);
  };
  if (type === 'BF16') return exact((bits & 0xffff) === 0, bits >>> 16);
  const exponent = ((bits >>> 23) & 255) - 112;
  const sign = (bits >>> 16) & 0x8000;
  if (value === 0) return sign;
  const multiple = Math.abs(value) * 2 ** 24; // of the least subnormal
  return exponent > 0
    ? exact(exponent < 31 && (bits & 0x1fff) === 0, sign | (exponent << 10) | ((bits >>> 13) & 0x3ff))
    : exact(Number.isInteger(multiple), sign | multiple);
}

/** The same numbers in f16. Throws RangeError if f16 does not represent one exactly. */
export function f16FromBf16(bf16: Uint16Array): Uint16Array {
  const known = new Map<number, number>();
  return Uint16Array.from(bf16, (bits) => {
    let f16 = known.get(bits);
    if (f16 === undefined) {
      f16 = exactBits(new Float32Array(Uint32Array.of(bits << 16).buffer)[0] as number, 'F16');
      known.set(bits, f16);
    }
    return f16;
  });
}

/** The bits of the numbers, by a table of all 511 values. */
function encode(numbers: Int16Array, step: number | null, type: 'BF16' | 'F16'): Uint16Array {
  const numberAt = (number: number) => (step === null ? 1 + (number >> 4) / 128 : number * step);
  const table = Uint16Array.from({ length: 511 }, (_, i) => exactBits(numberAt(i - 255), type));
  const out = new Uint16Array(numbers.length); // Uint16Array.from is many times slower than a loop
  for (let i = 0; i < numbers.length; ++i) out[i] = table[(numbers[i] as number) + 255] as number;
  return out;
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

/** A matrix in bf16, quantized as `Model.load` does it with `weightType` i8 or i4 and groups of 32. */
async function quantize(
  device: Device,
  bf16: Uint16Array,
  shape: number[],
  type: 'Q8_0' | 'Q4_0',
): Promise<Uint8Array> {
  const tensors: Tensor[] = [];
  try {
    const weight = device.tensor('bf16', shape, bf16);
    tensors.push(weight);
    const quantized = await kernels.quantizeWeight({ weight, type: type === 'Q8_0' ? 'i8' : 'i4', groupSize: 32 });
    tensors.push(quantized.values, quantized.scales);
    const scales = new Uint16Array(bf16.length / 32);
    await quantized.scales.readInto(scales);
    if (type === 'Q8_0') {
      const integers = new Int8Array(bf16.length);
      await quantized.values.readInto(integers);
      return q8Blocks(integers, f16FromBf16(scales));
    }
    const words = new Int32Array(bf16.length / 8);
    await quantized.values.readInto(words);
    return q4Blocks(words, f16FromBf16(scales));
  } finally {
    for (const tensor of tensors) tensor.dispose();
  }
}

/** Norms are f32. Quantized files have the embedding in bf16, as diffqkv has it. */
function typeIn({ gguf, step }: Weight, type: GgufFileType): GgufType {
  if (step === null) return 'F32';
  return isQuantized(type) && gguf === 'token_embd.weight' ? 'BF16' : type;
}

/** Writes config.json, model.safetensors (bf16), and a GGUF file of each of the types. `device` is a CPU; it quantizes. */
export async function writeModels(folder: string, shape: LlamaShape, types: readonly GgufFileType[], device: Device) {
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
    for (const [i, weight] of weights.entries()) {
      const numbers = wholeNumbers(count(weight.shape), SEED + i);
      const bf16 = encode(numbers, weight.step, 'BF16');
      fs.writeSync(safetensors, bf16);
      const paired = weight.pairedHeads
        ? pairRows(numbers, weight.shape as [number, number], weight.pairedHeads)
        : numbers;
      const pairedBf16 = paired === numbers ? bf16 : encode(paired, weight.step, 'BF16');
      const encodeAs = async (type: GgufType) => {
        // The weights of a norm are bf16. As f32 they have the same bits, followed by zeros.
        if (type === 'F32') return Uint32Array.from(bf16, (bits) => bits << 16);
        if (type === 'BF16') return pairedBf16;
        if (type === 'F16') return encode(paired, weight.step, type);
        return quantize(device, pairedBf16, weight.shape, type);
      };
      for (const { descriptor, type } of ggufs) {
        const data = await encodeAs(typeIn(weight, type));
        fs.writeSync(descriptor, data);
        fs.writeSync(descriptor, new Uint8Array(-data.byteLength & 31));
      }
    }
  } finally {
    for (const descriptor of [safetensors, ...ggufs.map(({ descriptor }) => descriptor)]) fs.closeSync(descriptor);
  }
  const matrices = weights.filter(({ gguf, step }) => step !== null && !gguf.startsWith('token_embd'));
  return {
    /** Number of bytes of all weights in bf16, and of the matrices that a token reads. Of the embedding it reads one row. */
    weightBytes: 2 * weights.reduce((sum, weight) => sum + count(weight.shape), 0),
    matrixParameters: matrices.reduce((sum, weight) => sum + count(weight.shape), 0),
    /** Paths by type. */
    ggufs: Object.fromEntries(ggufs.map(({ type, file }) => [type, file])) as Partial<Record<GgufFileType, string>>,
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
