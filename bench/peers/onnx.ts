// An ONNX model of one GroupQueryAttention node, encoded as protobuf: tags, varints and lengths.

/** Numbers of ONNX's element types. */
export const ONNX_TYPES = { f32: 1, i32: 6, f16: 10, bf16: 16 };

function varint(value: number): number[] {
  const out = [];
  let rest = value;
  for (; rest > 127; rest = Math.floor(rest / 128)) out.push((rest % 128) | 128);
  return [...out, rest];
}

const integer = (field: number, value: number) => Buffer.from([...varint(field << 3), ...varint(value)]);

function bytes(field: number, ...parts: (string | Buffer)[]): Buffer {
  const content = Buffer.concat(parts.map((part) => Buffer.from(part)));
  return Buffer.concat([Buffer.from([...varint((field << 3) | 2), ...varint(content.length)]), content]);
}

/** ValueInfoProto: a tensor of a known shape. */
function tensor(name: string, elementType: number, shape: readonly number[]): Buffer {
  const dims = shape.map((size) => bytes(1, integer(1, size)));
  return Buffer.concat([bytes(1, name), bytes(2, bytes(1, integer(1, elementType), bytes(2, ...dims)))]);
}

const INT_ATTRIBUTE = 2;
const attribute = (name: string, value: number) =>
  bytes(5, bytes(1, name), integer(3, value), integer(20, INT_ATTRIBUTE));

export interface GqaShape {
  numQHeads: number;
  /** The number of K heads and of V heads. */
  numKAndVHeads: number;
  dim: number;
  /** Length of the cache, including the new token. */
  kvLen: number;
  /** Length of the inputs past_key and past_value: kvLen if the outputs share their memory, else kvLen - 1. */
  pastLen: number;
  type: 'f32' | 'f16' | 'bf16';
}

/** A step of one sequence. Inputs: query, key and value of the token, and the cache. Outputs: attention and the cache. */
export function groupQueryAttentionModel({ numQHeads, numKAndVHeads, dim, kvLen, pastLen, type }: GqaShape): Buffer {
  const element = ONNX_TYPES[type];
  const row = (name: string, heads: number) => tensor(name, element, [1, 1, heads * dim]);
  const cache = (name: string, length: number) => tensor(name, element, [1, numKAndVHeads, length, dim]);
  const inputs = ['query', 'key', 'value', 'past_key', 'past_value', 'seqlens_k', 'total_sequence_length'];
  const outputs = ['output', 'present_key', 'present_value'];
  const node = [
    ...inputs.map((name) => bytes(1, name)),
    ...outputs.map((name) => bytes(2, name)),
    bytes(4, 'GroupQueryAttention'),
    attribute('num_heads', numQHeads),
    attribute('kv_num_heads', numKAndVHeads),
    bytes(7, 'com.microsoft'),
  ];
  const graph = [
    bytes(1, ...node),
    bytes(2, 'attention'),
    ...[
      row('query', numQHeads),
      row('key', numKAndVHeads),
      row('value', numKAndVHeads),
      cache('past_key', pastLen),
      cache('past_value', pastLen),
      tensor('seqlens_k', ONNX_TYPES.i32, [1]),
      tensor('total_sequence_length', ONNX_TYPES.i32, []),
    ].map((input) => bytes(11, input)),
    ...[row('output', numQHeads), cache('present_key', kvLen), cache('present_value', kvLen)].map((output) =>
      bytes(12, output),
    ),
  ];
  const opset = (domain: string, version: number) => bytes(8, bytes(1, domain), integer(2, version));
  return Buffer.concat([integer(1, 8), bytes(7, ...graph), opset('', 17), opset('com.microsoft', 1)]);
}
