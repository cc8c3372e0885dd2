// bench/peers without the peers themselves: reads back the files that they get, takes samples in
// turn, and handles missing peers.

import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import type { Figure } from '../../bench/figure';
import { summarize } from '../../bench/measure';
import { exactBits, f16FromBf16, type LlamaShape, writeModels } from '../../bench/peers/checkpoint';
import { ggufHeader, q4Blocks, q8Blocks } from '../../bench/peers/gguf';
import { decodeHalves } from '../../bench/peers/gqa_sides';
import { PAIRS, report } from '../../bench/peers/llama';
import { runPeers } from '../../bench/peers/main';
import { groupQueryAttentionModel } from '../../bench/peers/onnx';
import { agreement, inTurn, timesAsFast } from '../../bench/peers/run';
import { vectorError } from '../../bench/peers/torch';
import { PeerMissing, Worker } from '../../bench/peers/worker';
import type { Result } from '../../bench/result';
import { kernels, openDevice } from '../../lib/index';
import { withTensors } from '../support/devices';
import { dequantizeWeight } from '../support/reference';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'diffqkv-bench-peers-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const SHAPE: LlamaShape = {
  hidden_size: 32,
  intermediate_size: 64,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 8,
  vocab_size: 300,
  max_position_embeddings: 64,
  rope_theta: 10000,
  rms_norm_eps: 1e-5,
};

type Value = number | string | Value[];

/** Parses a GGUF file, version 3, by its specification. */
function parseGguf(bytes: Buffer) {
  let at = 0;
  const take = (length: number) => {
    at += length;
    return bytes.subarray(at - length, at);
  };
  const u32 = () => take(4).readUInt32LE();
  const u64 = () => Number(take(8).readBigUInt64LE());
  const text = () => take(u64()).toString();
  const value = (type: number): Value => {
    if (type === 4) return u32();
    if (type === 5) return take(4).readInt32LE();
    if (type === 6) return take(4).readFloatLE();
    if (type === 8) return text();
    if (type !== 9) throw new Error(`value type ${type}`);
    const items = u32();
    return Array.from({ length: u64() }, () => value(items));
  };
  const magic = take(4).toString();
  const version = u32();
  const [numTensors, numMetadata] = [u64(), u64()];
  const metadata: Record<string, Value> = {};
  for (let i = 0; i < numMetadata; ++i) {
    const key = text();
    metadata[key] = value(u32());
  }
  const tensors = Array.from({ length: numTensors }, () => {
    const name = text();
    const dims = Array.from({ length: u32() }, u64);
    return { name, dims, type: u32(), offset: u64() };
  });
  const alignment = metadata['general.alignment'] as number;
  return { magic, version, metadata, tensors, alignment, headEnd: at, data: Math.ceil(at / alignment) * alignment };
}

const [F32, F16, Q4_0, Q8_0, BF16] = [0, 1, 2, 8, 30];
const TYPE_NUMBERS = { F16, BF16, Q8_0, Q4_0 };

/** The numbers of a tensor of a GGUF file, of any type. */
function ggufValues(bytes: Buffer, file: ReturnType<typeof parseGguf>, name: string): number[] {
  const { dims, type, offset } = file.tensors.find((tensor) => tensor.name === name) as (typeof file.tensors)[number];
  const start = file.data + offset;
  const count = dims.reduce((product, size) => product * size, 1);
  if (type === F32) return Array.from({ length: count }, (_, i) => bytes.readFloatLE(start + 4 * i));
  if (type === Q8_0 || type === Q4_0) {
    const size = type === Q8_0 ? 34 : 18;
    const blocks = Array.from({ length: count / 32 }, (_, i) =>
      bytes.subarray(start + size * i, start + size * (i + 1)),
    );
    return blocks.flatMap(type === Q8_0 ? q8Values : q4Values);
  }
  const halves = Array.from({ length: count }, (_, i) => bytes.readUInt16LE(start + 2 * i));
  return decodeHalves(halves, type === F16 ? 'f16' : 'bf16');
}

const scaleOf = (block: Buffer) => decodeHalves([block.readUInt16LE()], 'f16')[0] as number;

function q8Values(block: Buffer): number[] {
  return Array.from({ length: 32 }, (_, i) => scaleOf(block) * block.readInt8(2 + i));
}

function q4Values(block: Buffer): number[] {
  const quants = Array.from({ length: 32 }, (_, i) =>
    i < 16 ? block.readUInt8(2 + i) & 15 : block.readUInt8(2 + i - 16) >> 4,
  );
  return quants.map((quant) => scaleOf(block) * (quant - 8));
}

function safetensorsValues(bytes: Buffer, name: string): { shape: number[]; values: number[] } {
  const length = Number(bytes.readBigUInt64LE());
  const { dtype, shape, data_offsets } = JSON.parse(bytes.subarray(8, 8 + length).toString())[name];
  expect(dtype).toBe('BF16');
  const data = bytes.subarray(8 + length + data_offsets[0], 8 + length + data_offsets[1]);
  const halves = Array.from({ length: data.length / 2 }, (_, i) => data.readUInt16LE(2 * i));
  return { shape, values: decodeHalves(halves, 'bf16') };
}

describe('16-bit numbers', () => {
  it('have the bits of the format', () => {
    for (const [value, f16, bf16] of [
      [0, 0, 0],
      [1, 0x3c00, 0x3f80],
      [-2, 0xc000, 0xc000],
      [1.5, 0x3e00, 0x3fc0],
      [255, 0x5bf8, 0x437f],
      [2 ** -14, 0x0400, 0x3880],
      [-(2 ** -15), 0x8200, 0xb800], // a subnormal in f16
      [3 * 2 ** -24, 0x0003, 0x3440],
    ] as const) {
      expect([value, exactBits(value, 'F16'), exactBits(value, 'BF16')]).toEqual([value, f16, bf16]);
      expect(decodeHalves([f16], 'f16')).toEqual([value]);
      expect(decodeHalves([bf16], 'bf16')).toEqual([value]);
      expect([...f16FromBf16(Uint16Array.of(bf16))]).toEqual([f16]);
    }
  });

  it('are rejected if the format has no such number', () => {
    for (const value of [257, 2 ** -24 * (1 + 2 ** -8), 0.1])
      expect(() => exactBits(value, 'BF16')).toThrow(`${value} is not a number of BF16`);
    for (const value of [2049, 2 ** 16, 2 ** -25, 3 * 2 ** -25, 0.1, Number.NaN])
      expect(() => exactBits(value, 'F16')).toThrow(`${value} is not a number of F16`);
  });
});

describe('GGUF', () => {
  it('has a header with metadata and tensor offsets, each a multiple of the alignment', () => {
    const tensors = [
      { name: 'a', shape: [3, 5], type: 'F16' as const },
      { name: 'b', shape: [7], type: 'F32' as const },
      { name: 'c', shape: [16], type: 'BF16' as const },
      { name: 'd', shape: [1], type: 'BF16' as const },
    ];
    const bytes = ggufHeader(SHAPE, 'F16', tensors);
    const file = parseGguf(bytes);
    expect([file.magic, file.version, file.alignment]).toEqual(['GGUF', 3, 32]);
    expect(bytes.length).toBe(file.data);
    expect(bytes.subarray(file.headEnd).every((byte) => byte === 0)).toBe(true);
    expect(file.tensors).toEqual([
      { name: 'a', dims: [5, 3], type: F16, offset: 0 },
      { name: 'b', dims: [7], type: F32, offset: 32 },
      { name: 'c', dims: [16], type: BF16, offset: 64 },
      { name: 'd', dims: [1], type: BF16, offset: 96 },
    ]);
    expect(file.metadata).toMatchObject({
      'general.architecture': 'llama',
      'general.file_type': 1,
      'llama.embedding_length': 32,
      'llama.block_count': 2,
      'llama.feed_forward_length': 64,
      'llama.attention.head_count': 4,
      'llama.attention.head_count_kv': 2,
      'llama.rope.dimension_count': 8,
      'llama.rope.freq_base': 10000,
      'llama.attention.layer_norm_rms_epsilon': Math.fround(1e-5),
      'llama.vocab_size': 300,
    });
    for (const list of ['tokens', 'scores', 'token_type'])
      expect(file.metadata[`tokenizer.ggml.${list}`]).toHaveLength(300);
    expect((file.metadata['tokenizer.ggml.tokens'] as string[]).slice(0, 5)).toEqual([
      '<unk>',
      '<s>',
      '</s>',
      '<0x00>',
      '<0x01>',
    ]);
    expect((file.metadata['tokenizer.ggml.token_type'] as number[]).slice(257)).toEqual([6, 6, ...Array(41).fill(1)]);
  });

  it('has offsets after whole blocks, and its quantized types only in rows of whole blocks', () => {
    const tensors = [
      { name: 'a', shape: [3, 64], type: 'Q8_0' as const },
      { name: 'b', shape: [1, 32], type: 'Q4_0' as const },
      { name: 'c', shape: [32], type: 'F32' as const },
    ];
    for (const [type, fileType] of [
      ['Q8_0', 7],
      ['Q4_0', 2],
    ] as const) {
      const { metadata, tensors: got } = parseGguf(ggufHeader(SHAPE, type, tensors));
      expect(metadata).toMatchObject({ 'general.file_type': fileType, 'general.quantization_version': 2 });
      expect(got).toEqual([
        { name: 'a', dims: [64, 3], type: Q8_0, offset: 0 },
        { name: 'b', dims: [32, 1], type: Q4_0, offset: 224 },
        { name: 'c', dims: [32], type: F32, offset: 256 },
      ]);
    }
    expect(() => ggufHeader(SHAPE, 'Q4_0', [{ name: 'a', shape: [32, 48], type: 'Q4_0' }])).toThrow(
      'a has rows of 48 elements; Q4_0 needs a multiple of 32',
    );
  });

  it('has blocks of a scale and 32 integers', () => {
    const scales = Uint16Array.of(0x3c00, 0x8201);
    const bytes = Int8Array.from({ length: 64 }, (_, i) => (i < 32 ? -i : 4 * i - 128));
    const eights = Buffer.from(q8Blocks(bytes, scales));
    expect(eights).toHaveLength(68);
    expect([eights.readUInt16LE(0), eights.readUInt16LE(34)]).toEqual([...scales]);
    const integers = [...eights.subarray(2, 34), ...eights.subarray(36)];
    expect(integers).toEqual([...new Uint8Array(bytes.buffer)]);

    // Elements 0, ..., 15 and then 15, ..., 0, each plus 8: 0, 2, 4, 6 are the low half of a word, 1, 3, 5, 7 the high one.
    const words = Int32Array.of(0x7531_6420, 0xfdb9_eca8, 0x8ace_9bdf, 0x0246_1357);
    const fours = Buffer.from(q4Blocks(Int32Array.of(...words, ...words), scales));
    expect(fours.subarray(0, 18).toString('hex')).toBe('003cf0e1d2c3b4a5968778695a4b3c2d1e0f');
    expect(fours).toHaveLength(36);
    expect(fours.readUInt16LE(18)).toBe(0x8201);
  });

  it("has the checkpoint's weights, with the rows of Q and K in llama.cpp's rotation order", async () => {
    const device = await openDevice('cpu');
    const types = ['BF16', 'F16', 'Q8_0', 'Q4_0'] as const;
    const { ggufs, weightBytes, matrixParameters } = await writeModels(folder, SHAPE, types, device);
    const quantized = (values: number[], shape: number[], type: 'i8' | 'i4') =>
      withTensors(device, async (tensors) => {
        const weight = tensors.make('f32', shape, Float32Array.from(values));
        const { values: packed, scales } = await kernels.quantizeWeight({ weight, type });
        tensors.keep(packed);
        tensors.keep(scales);
        const integers = type === 'i8' ? new Int8Array(values.length) : new Int32Array(values.length / 8);
        await packed.readInto(integers);
        const [rows, columns] = shape as [number, number];
        return [...dequantizeWeight({ values: integers, scales: await scales.read(), rows, columns, groupSize: 32 })];
      });
    const safetensors = readFileSync(join(folder, 'model.safetensors'));
    const layer = 'model.layers.1';
    const names: [hf: string, gguf: string, pairedHeads?: number][] = [
      ['model.embed_tokens', 'token_embd'],
      [`${layer}.input_layernorm`, 'blk.1.attn_norm'],
      [`${layer}.self_attn.q_proj`, 'blk.1.attn_q', 4],
      [`${layer}.self_attn.k_proj`, 'blk.1.attn_k', 2],
      [`${layer}.self_attn.v_proj`, 'blk.1.attn_v'],
      [`${layer}.self_attn.o_proj`, 'blk.1.attn_output'],
      [`${layer}.post_attention_layernorm`, 'blk.1.ffn_norm'],
      [`${layer}.mlp.gate_proj`, 'blk.1.ffn_gate'],
      [`${layer}.mlp.up_proj`, 'blk.1.ffn_up'],
      [`${layer}.mlp.down_proj`, 'blk.1.ffn_down'],
      ['model.norm', 'output_norm'],
      ['lm_head', 'output'],
    ];
    for (const type of types) {
      const bytes = readFileSync(ggufs[type] as string);
      const parsed = parseGguf(bytes);
      expect(parsed.tensors).toHaveLength(3 + 2 * 9);
      for (const [hf, gguf, pairedHeads] of names) {
        const { shape, values: exact } = safetensorsValues(safetensors, `${hf}.weight`);
        const isQuantized = type.startsWith('Q') && shape.length === 2 && gguf !== 'token_embd';
        const values = isQuantized ? await quantized(exact, shape, type === 'Q8_0' ? 'i8' : 'i4') : exact;
        const info = parsed.tensors.find(({ name }) => name === `${gguf}.weight`);
        expect([gguf, info?.dims]).toEqual([gguf, [...shape].reverse()]);
        const matrixType = gguf === 'token_embd' && type !== 'F16' ? BF16 : TYPE_NUMBERS[type];
        expect([gguf, info?.type]).toEqual([gguf, shape.length === 1 ? F32 : matrixType]);
        const [rows, width] = [shape[0] as number, shape[1] ?? 1];
        const dim = rows / (pairedHeads ?? 1);
        // Row 2j of a head is its row j, and row 2j + 1 its row j + dim / 2.
        const from = (row: number) => {
          if (pairedHeads === undefined) return row;
          const [head, i] = [Math.floor(row / dim), row % dim];
          return head * dim + (i >> 1) + (i & 1 ? dim / 2 : 0);
        };
        const expected = values.map((_, i) => values[from(Math.floor(i / width)) * width + (i % width)]);
        expect(ggufValues(bytes, parsed, `${gguf}.weight`)).toEqual(expected);
        expect(new Set(values).size).toBeGreaterThan(8); // the values differ
      }
      const end = parsed.tensors.at(-1) as (typeof parsed.tensors)[number];
      const outputBytes = { BF16: 2 * 300 * 32, F16: 2 * 300 * 32, Q8_0: 300 * 34 + 8, Q4_0: 300 * 18 + 8 }[type];
      expect(bytes.length).toBe(parsed.data + end.offset + outputBytes);
    }
    device.dispose();
    const perLayer = 32 * 32 * 2 + 2 * 16 * 32 + 3 * 64 * 32;
    expect(matrixParameters).toBe(2 * perLayer + 300 * 32);
    expect(weightBytes).toBe(2 * (2 * perLayer + 2 * 300 * 32 + 5 * 32));
    expect(safetensors.length).toBe(8 + Number(safetensors.readBigUInt64LE()) + weightBytes);
  });
});

/** Parses a protobuf message: the values of each field, as numbers or bytes. */
function parseProtobuf(bytes: Buffer): Record<number, (number | Buffer)[]> {
  const fields: Record<number, (number | Buffer)[]> = {};
  let at = 0;
  const varint = (): number => {
    for (let value = 0, scale = 1; ; scale *= 128) {
      const byte = bytes.readUInt8(at++);
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const isBytes = (tag & 7) === 2;
    expect([0, 2]).toContain(tag & 7);
    const number = varint();
    const list = fields[tag >> 3] ?? [];
    fields[tag >> 3] = list;
    list.push(isBytes ? bytes.subarray(at, at + number) : number);
    if (isBytes) at += number;
    expect(at).toBeLessThanOrEqual(bytes.length);
  }
  return fields;
}

describe('the ONNX model', () => {
  it('decodes to one GroupQueryAttention node with its attributes, inputs and outputs', () => {
    const shape = { numQHeads: 32, numKAndVHeads: 8, dim: 64, kvLen: 8192, pastLen: 8191, type: 'f16' as const };
    const parts = (list: (number | Buffer)[] | undefined) => (list ?? []).map((part) => parseProtobuf(part as Buffer));
    const texts = (list: (number | Buffer)[] | undefined) => (list ?? []).map(String);
    const model = parseProtobuf(groupQueryAttentionModel(shape));
    expect(model[1]).toEqual([8]);
    expect(parts(model[8]).map((opset) => [String(opset[1]), opset[2]])).toEqual([
      ['', [17]],
      ['com.microsoft', [1]],
    ]);
    const [graph] = parts(model[7]) as [Record<number, Buffer[]>];
    expect(graph[1]).toHaveLength(1);
    const node = parseProtobuf(graph[1]?.[0] as Buffer);
    expect([texts(node[4]), texts(node[7])]).toEqual([['GroupQueryAttention'], ['com.microsoft']]);
    expect(parts(node[5]).map((attribute) => [String(attribute[1]), attribute[3], attribute[20]])).toEqual([
      ['num_heads', [32], [2]],
      ['kv_num_heads', [8], [2]],
    ]);
    const tensors = (list: Buffer[] | undefined) =>
      parts(list).map((value) => {
        const type = parts(parts(value[2])[0]?.[1])[0] as Record<number, (number | Buffer)[]>;
        const dims = parts(parts(type[2])[0]?.[1]).map((dim) => dim[1]?.[0]);
        return [String(value[1]), type[1]?.[0], dims];
      });
    const inputs = [
      ['query', 10, [1, 1, 2048]],
      ['key', 10, [1, 1, 512]],
      ['value', 10, [1, 1, 512]],
      ['past_key', 10, [1, 8, 8191, 64]],
      ['past_value', 10, [1, 8, 8191, 64]],
      ['seqlens_k', 6, [1]],
      ['total_sequence_length', 6, []],
    ];
    const outputs = [
      ['output', 10, [1, 1, 2048]],
      ['present_key', 10, [1, 8, 8192, 64]],
      ['present_value', 10, [1, 8, 8192, 64]],
    ];
    expect(tensors(graph[11])).toEqual(inputs);
    expect(tensors(graph[12])).toEqual(outputs);
    expect(texts(node[1])).toEqual(inputs.map(([name]) => name));
    expect(texts(node[2])).toEqual(outputs.map(([name]) => name));
  });
});

describe('measuring', () => {
  it('samples in turn and computes a ratio per round', async () => {
    const slow = [100, 1, 1, 10]; // the first round warms up; the last is disturbed on both sides
    const sample = (ms: number[]) => {
      let round = 0;
      return async () => {
        const factor = slow[round++] as number;
        return ms.map((one) => one * factor);
      };
    };
    const { ms, rounds } = await inTurn({ ours: sample([1, 2, 3]), peer: sample([4, 4]) }, { warmUp: 1, rounds: 3 });
    expect(rounds.ours).toEqual([
      [1, 2, 3],
      [1, 2, 3],
      [10, 20, 30],
    ]);
    expect(ms.peer).toEqual({ median: 4, min: 4, max: 40, count: 6 });
    const times = timesAsFast(rounds.ours as number[][], rounds.peer as number[][]);
    expect(times).toEqual({ median: 2, min: 2, max: 2, count: 3 });
  });

  it('expects a multiple of the speed of llama.cpp, or of both sides a share of the bandwidth', () => {
    const [bf16, , i4] = PAIRS as [Pair, Pair, Pair];
    type Pair = (typeof PAIRS)[number];
    /** The figures with a target, if a step takes `ms` on each side and 1 ms at the limit. */
    const targets = (pair: Pair, ms: Record<string, number>) => {
      const figures: Figure[] = [];
      const sides = Object.keys(ms).map((who) => ({ who, pair, isPeer: who !== 'ours', generate: jest.fn() }));
      const named = <T>(value: (ms: number) => T) =>
        Object.fromEntries(
          Object.entries(ms).flatMap(([who, one]) => [
            [`decode ${who}`, value(one)],
            [`prefill ${who}`, value(one)],
          ]),
        );
      const samples = { ms: named((one) => summarize([one])), rounds: named((one) => [[one]]) };
      const amounts = { tokens: 1, after: 0, work: { bytes: 1 } };
      const limits = { of: () => ({ ms: 1, name: 'limit' }) };
      report({ figures, limits }, pair, sides, samples, { decode: amounts, prefill: amounts });
      return figures
        .filter(({ target }) => target !== null)
        .map(({ at, value, share, target, met }) => [at?.what, target?.on === 'share' ? share : value, target, met]);
    };
    const times = (what: string, value: number, atLeast: number, met: boolean) => [
      what,
      expect.closeTo(value, 9),
      { on: 'value', atLeast },
      met,
    ];
    // The faster peer counts, and in 16 bits always the multiple.
    expect(targets(bf16, { ours: 1.04, A: 2, B: 1.04 })).toEqual([
      times('decode', 1, 1.05, false),
      times('prefill', 1, 1.3, false),
    ]);
    expect(targets(i4, { ours: 1.2, A: 1.8 })).toEqual([
      times('decode', 1.5, 1.3, true),
      times('prefill', 1.5, 1.3, true),
    ]);
    expect(targets(i4, { ours: 1.1, A: 1.2 })[0]).toEqual(times('decode', 1.2 / 1.1, 1.3, false));
    const share = { on: 'share', atLeast: 0.85 };
    expect(targets(i4, { ours: 1.1, A: 1.15 })[0]).toEqual(['decode', expect.closeTo(1 / 1.1, 9), share, true]);
    expect(targets(i4, { ours: 1.2, A: 1.15 })[0]).toEqual(['decode', expect.closeTo(1 / 1.2, 9), share, false]);
  });

  it('detects one vector that is wrong or not a number', () => {
    const expected = Float32Array.from({ length: 64 * 100 }, (_, i) => Math.sin(i) * (i < 64 ? 1 : 0.01));
    const got = expected.map((value) => value * (1 + 2 ** -9));
    expect(vectorError(got, expected, 64)).toBeCloseTo(2 ** -9, 6);
    got.set(
      expected.subarray(128, 192).map((value) => -value),
      128,
    );
    expect(vectorError(got, expected, 64)).toBeCloseTo(2, 6);
    expect(vectorError(new Float32Array(64).fill(Number.NaN), expected.subarray(0, 64), 64)).toBeNaN();
    expect(vectorError(got.subarray(64), expected, 64)).toBe(Infinity);
    expect(agreement([1, 2, 4], [11, 12, 14])).toEqual({
      correlation: expect.closeTo(1, 9),
      maxDifference: expect.closeTo(0, 9),
    });
    expect(agreement([1, 2, 4], [4, 2, 1]).correlation).toBeLessThan(0);
  });
});

describe('a run', () => {
  /** Runs in this process and returns its output. */
  async function peers(...args: string[]) {
    const said = { out: '', err: '' };
    const catching = (name: 'out' | 'err') => (text: string | Uint8Array) => {
      said[name] += text;
      return true;
    };
    const spies = [
      jest.spyOn(process.stdout, 'write').mockImplementation(catching('out')),
      jest.spyOn(process.stderr, 'write').mockImplementation(catching('err')),
    ];
    try {
      return { status: await runPeers(args), ...said };
    } finally {
      for (const spy of spies) spy.mockRestore();
    }
  }

  /**
   * Writes a program that replaces a Python with PyTorch: attention over one key, so the result is
   * the first vector of V.
   */
  function python(name: string, change: number): string {
    const file = join(folder, name);
    const text = `#!${process.execPath}
const fs = require('node:fs');
const folder = process.argv[process.argv.indexOf('--folder') + 1];
const v = new Uint16Array(fs.readFileSync(folder + '/v').buffer.slice(0, 2 * 64 * 2));
const values = new Float32Array(Uint32Array.from(v.subarray(0, 128), (bits) => bits << 16).buffer);
const expected = Float32Array.from({ length: 4 * 64 }, (_, i) => values[(Math.floor(i / 128) * 64) + (i % 64)]);
expected[70] += ${change};
fs.writeFileSync(folder + '/expected', expected);
const at = { heads: '4/1/2', dim: 64, prefix: 1, batch: 1 };
const one = { name: 'decode attention', group: 'g', at, bytes: 384 };
const stats = { median: 1, min: 1, max: 1, count: 1 };
const figure = { ...one, name: 'decode attention: stand-in', value: 1, unit: 'GB/s', better: 'more', limit: null,
  limitName: '', share: null, target: null, met: null, samples: { ms: stats }, at: { ...at, who: 'stand-in' } };
console.log(JSON.stringify({ version: '0', device: 'none', peers: [], figures: [figure], errors: {},
  cases: [{ ...one, qLen: 1, rows: [0], file: 'expected' }] }));
`;
    writeFileSync(file, text);
    chmodSync(file, 0o755);
    return file;
  }

  const read = (file: string): Result & { peers: object[] } => JSON.parse(readFileSync(file, 'utf8'));
  const onUnix = process.platform === 'win32' ? it.skip : it;

  it('prints the reason if the peer is missing, fails --check, and keeps an older file', async () => {
    const file = join(folder, 'older.json');
    writeFileSync(file, 'an older result');
    const args = ['--only', 'torch', '--tiny', '--json', file];
    const plain = await peers(...args);
    expect([plain.status, plain.out]).toEqual([0, 'PyTorch: missing: --python does not name a Python with PyTorch\n']);
    expect(plain.err).toMatch(/^nothing was measured: .*older\.json is left as it is$/m);
    const checked = await peers(...args, '--check');
    expect(checked.status).toBe(1);
    expect(checked.err).toMatch(/^--check fails: missing: PyTorch$/m);
    const elsewhere = await peers(...args, '--check', '--python', join(folder, 'no such program'));
    expect([elsewhere.status, elsewhere.out]).toEqual([
      1,
      expect.stringMatching(/^PyTorch: missing: cannot run .*ENOENT/),
    ]);
    expect(readFileSync(file, 'utf8')).toBe('an older result');
  });

  it('rejects wrong arguments', async () => {
    for (const args of [['--only', 'nothing'], ['--frobnicate']])
      expect(await peers(...args)).toMatchObject({ status: 1, err: expect.stringMatching(/^bench: .*\n\nUsage: /) });
  });

  it('names a package that is not installed', () => {
    expect(() => Worker.open('onnxruntime.mjs', 'no-such-package')).toThrow(PeerMissing);
    expect(() => Worker.open('onnxruntime.mjs', 'no-such-package')).toThrow(
      'no-such-package is not installed: run `node bench/peers/install.mjs`',
    );
  });

  onUnix('compares our output with the reference and writes the measurements', async () => {
    const file = join(folder, 'a new folder', 'measured.json');
    const args = ['--only', 'torch', '--tiny', '--check', '--json', file, '--python'];
    const { status, out } = await peers(...args, python('right', 0));
    expect([status, out]).toEqual([0, expect.stringMatching(/^PyTorch: measured \(0\)$/m)]);
    const result = read(file);
    expect(result.complete).toBe(true);
    expect(result.peers).toEqual([{ name: 'PyTorch', version: '0', status: 'measured' }]);
    expect(result.figures.map(({ at }) => at?.who)).toEqual(['stand-in', 'diffqkv']);
    expect(result.setup.torch).toMatchObject({ bound: 2 ** -6, errors: { diffqkv: 0 } });

    // Changes one number of one vector by much less than the standard deviation of the numbers.
    const wrong = await peers(...args, python('wrong', 0.2));
    expect(wrong.status).toBe(1);
    expect(wrong.out).toMatch(/^PyTorch: missing: decode attention: the output of diffqkv is wrong by 0\.0/m);
    expect(read(file).figures.map(({ at }) => at?.who)).toEqual(['stand-in']);
  });
});
