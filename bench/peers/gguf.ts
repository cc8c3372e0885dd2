// GGUF, version 3. The header: metadata of a Llama model with an artificial vocabulary, and the tensor offsets. The blocks
// of the quantized types.
import type { LlamaShape } from './checkpoint';

/** Elements of a row that are stored together, their bytes, and the type's number. */
const TYPES = {
  F32: { number: 0, elements: 1, bytes: 4 },
  F16: { number: 1, elements: 1, bytes: 2 },
  BF16: { number: 30, elements: 1, bytes: 2 },
  Q4_0: { number: 2, elements: 32, bytes: 18 },
  Q8_0: { number: 8, elements: 32, bytes: 34 },
};
const FILE_TYPES = { F16: 1, Q4_0: 2, Q8_0: 7, BF16: 32 };
const QUANTIZATION_VERSION = 2;
const ALIGNMENT = 32;

export type GgufType = keyof typeof TYPES;

/** The type of a file's matrices. */
export type GgufFileType = keyof typeof FILE_TYPES;

export const isQuantized = (type: GgufFileType): type is 'Q8_0' | 'Q4_0' => TYPES[type].elements > 1;

export const bytesPerElement = (type: GgufType): number => TYPES[type].bytes / TYPES[type].elements;

export interface GgufTensor {
  name: string;
  /** Slowest axis first, as in this project; GGUF has the reverse order. */
  shape: number[];
  type: GgufType;
}

// Numbers of GGUF's value types.
const [UINT32, INT32, FLOAT32, STRING, ARRAY] = [4, 5, 6, 8, 9];
// Kinds of tokens in a SentencePiece vocabulary.
const [NORMAL, UNKNOWN, CONTROL, BYTE] = [1, 2, 3, 6];

function u32(value: number): Buffer {
  const out = Buffer.alloc(4);
  out.writeUInt32LE(value);
  return out;
}

function u64(value: number): Buffer {
  const out = Buffer.alloc(8);
  out.writeBigUInt64LE(BigInt(value));
  return out;
}

function f32(value: number): Buffer {
  const out = Buffer.alloc(4);
  out.writeFloatLE(value);
  return out;
}

function text(value: string): Buffer {
  const bytes = Buffer.from(value);
  return Buffer.concat([u64(bytes.length), bytes]);
}

function array(type: number, items: readonly Buffer[]): Buffer {
  return Buffer.concat([u32(type), u64(items.length), ...items]);
}

/** Unknown, begin, end, the 256 bytes that SentencePiece falls back on, and words for the rest. */
function vocabulary(size: number) {
  const byte = (i: number) => `<0x${i.toString(16).toUpperCase().padStart(2, '0')}>`;
  const tokens = ['<unk>', '<s>', '</s>', ...Array.from({ length: 256 }, (_, i) => byte(i))];
  const types = [UNKNOWN, CONTROL, CONTROL, ...Array.from({ length: 256 }, () => BYTE)];
  for (let i = tokens.length; i < size; ++i) {
    tokens.push(`\u2581w${i}`);
    types.push(NORMAL);
  }
  return { tokens: tokens.slice(0, size), types: types.slice(0, size) };
}

/** Bytes of a tensor. Throws if a row is not whole blocks. */
function tensorBytes({ name, shape, type }: GgufTensor): number {
  const row = shape.at(-1) as number;
  const { elements } = TYPES[type];
  if (row % elements !== 0)
    throw new Error(`${name} has rows of ${row} elements; ${type} needs a multiple of ${elements}`);
  return shape.reduce((product, size) => product * size, bytesPerElement(type));
}

export function ggufHeader(shape: LlamaShape, type: GgufFileType, tensors: readonly GgufTensor[]): Buffer {
  const { tokens, types } = vocabulary(shape.vocab_size);
  const metadata: [string, number, Buffer][] = [
    ['general.architecture', STRING, text('llama')],
    ['general.name', STRING, text('random weights')],
    ['general.file_type', UINT32, u32(FILE_TYPES[type])],
    ['general.alignment', UINT32, u32(ALIGNMENT)],
    ...(isQuantized(type)
      ? [['general.quantization_version', UINT32, u32(QUANTIZATION_VERSION)] as [string, number, Buffer]]
      : []),
    ['llama.context_length', UINT32, u32(shape.max_position_embeddings)],
    ['llama.embedding_length', UINT32, u32(shape.hidden_size)],
    ['llama.block_count', UINT32, u32(shape.num_hidden_layers)],
    ['llama.feed_forward_length', UINT32, u32(shape.intermediate_size)],
    ['llama.attention.head_count', UINT32, u32(shape.num_attention_heads)],
    ['llama.attention.head_count_kv', UINT32, u32(shape.num_key_value_heads)],
    ['llama.attention.key_length', UINT32, u32(shape.head_dim)],
    ['llama.attention.value_length', UINT32, u32(shape.head_dim)],
    ['llama.attention.layer_norm_rms_epsilon', FLOAT32, f32(shape.rms_norm_eps)],
    ['llama.rope.dimension_count', UINT32, u32(shape.head_dim)],
    ['llama.rope.freq_base', FLOAT32, f32(shape.rope_theta)],
    ['llama.vocab_size', UINT32, u32(shape.vocab_size)],
    ['tokenizer.ggml.model', STRING, text('llama')],
    ['tokenizer.ggml.tokens', ARRAY, array(STRING, tokens.map(text))],
    [
      'tokenizer.ggml.scores',
      ARRAY,
      array(
        FLOAT32,
        tokens.map((_, i) => f32(-i)),
      ),
    ],
    ['tokenizer.ggml.token_type', ARRAY, array(INT32, types.map(u32))],
    ['tokenizer.ggml.unknown_token_id', UINT32, u32(0)],
    ['tokenizer.ggml.bos_token_id', UINT32, u32(1)],
    ['tokenizer.ggml.eos_token_id', UINT32, u32(2)],
  ];
  let offset = 0;
  const infos = tensors.map((tensor) => {
    const start = offset;
    const bytes = tensorBytes(tensor);
    offset += bytes + (-bytes & (ALIGNMENT - 1));
    return Buffer.concat([
      text(tensor.name),
      u32(tensor.shape.length),
      ...[...tensor.shape].reverse().map(u64),
      u32(TYPES[tensor.type].number),
      u64(start),
    ]);
  });
  const head = Buffer.concat([
    Buffer.from('GGUF'),
    u32(3),
    u64(tensors.length),
    u64(metadata.length),
    ...metadata.flatMap(([key, valueType, value]) => [text(key), u32(valueType), value]),
    ...infos,
  ]);
  return Buffer.concat([head, Buffer.alloc(-head.length & (ALIGNMENT - 1))]);
}

/** Blocks of Q8_0: a scale (f16), and 32 integers of 8 bits. `scales` has one for each 32 of `integers`. */
export function q8Blocks(integers: Int8Array, scales: Uint16Array): Uint8Array {
  const { bytes } = TYPES.Q8_0;
  const out = new Int8Array(scales.length * bytes);
  for (let block = 0; block < scales.length; ++block) {
    const to = block * bytes;
    const scale = scales[block] as number;
    out[to] = scale;
    out[to + 1] = scale >> 8;
    for (let i = 0; i < 32; ++i) out[to + 2 + i] = integers[32 * block + i] as number;
  }
  return new Uint8Array(out.buffer);
}

/**
 * Blocks of Q4_0: a scale (f16), and 16 bytes. Byte i has elements i (low 4 bits) and i + 16 (high 4 bits), each plus 8.
 * `words` has diffqkv's order: eight elements in 32 bits, each plus 8, element 2k + h of the eight at bit 16h + 4k.
 * `scales` has one for each four words.
 */
export function q4Blocks(words: Int32Array, scales: Uint16Array): Uint8Array {
  const { bytes } = TYPES.Q4_0;
  const out = new Uint8Array(scales.length * bytes);
  for (let block = 0; block < scales.length; ++block) {
    const to = block * bytes;
    const scale = scales[block] as number;
    out[to] = scale;
    out[to + 1] = scale >> 8;
    for (let i = 0; i < 16; ++i) {
      const word = 4 * block + (i >> 3);
      const bit = 16 * (i & 1) + 4 * ((i & 7) >> 1);
      const low = ((words[word] as number) >>> bit) & 15;
      const high = ((words[word + 2] as number) >>> bit) & 15;
      out[to + 2 + i] = low | (high << 4);
    }
  }
  return out;
}
