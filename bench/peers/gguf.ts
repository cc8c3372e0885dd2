// The header of a GGUF file, version 3: metadata of a Llama model with an artificial vocabulary, and the tensor offsets.
import type { LlamaShape } from './checkpoint';

const TYPE_NUMBERS = { F32: 0, F16: 1, BF16: 30 };
const FILE_TYPES = { F16: 1, BF16: 32 };
const ALIGNMENT = 32;

export type GgufType = keyof typeof TYPE_NUMBERS;

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

export function ggufHeader(shape: LlamaShape, type: 'BF16' | 'F16', tensors: readonly GgufTensor[]): Buffer {
  const { tokens, types } = vocabulary(shape.vocab_size);
  const metadata: [string, number, Buffer][] = [
    ['general.architecture', STRING, text('llama')],
    ['general.name', STRING, text('random weights')],
    ['general.file_type', UINT32, u32(FILE_TYPES[type])],
    ['general.alignment', UINT32, u32(ALIGNMENT)],
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
    const bytes = tensor.shape.reduce((product, size) => product * size, tensor.type === 'F32' ? 4 : 2);
    offset += bytes + (-bytes & (ALIGNMENT - 1));
    return Buffer.concat([
      text(tensor.name),
      u32(tensor.shape.length),
      ...[...tensor.shape].reverse().map(u64),
      u32(TYPE_NUMBERS[tensor.type]),
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
