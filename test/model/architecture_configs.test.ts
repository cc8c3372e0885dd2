// Which keys of config.json each architecture accepts. A key that changes the result, or may, is
// rejected by its name.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { addon } from '../../lib/addon';
import { checkConfig } from '../../lib/hub/check_config';
import { Model } from '../../lib/index';
import { firstBitDifference } from '../support/compare';
import { errorOf } from '../support/devices';

const common = {
  hidden_size: 32,
  intermediate_size: 32,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  head_dim: 16,
  vocab_size: 16,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-6,
  rope_theta: 10000,
};

/** The class of each architecture in transformers; its model_type is the name, with one exception. */
const classes: Record<string, string> = {
  llama: 'LlamaForCausalLM',
  qwen2: 'Qwen2ForCausalLM',
  qwen3: 'Qwen3ForCausalLM',
  mistral: 'MistralForCausalLM',
  ministral: 'MinistralForCausalLM',
  phi3: 'Phi3ForCausalLM',
  gemma: 'GemmaForCausalLM',
  gemma2: 'Gemma2ForCausalLM',
  gemma3: 'Gemma3ForCausalLM',
  olmo2: 'Olmo2ForCausalLM',
  olmo3: 'Olmo3ForCausalLM',
  granite: 'GraniteForCausalLM',
  smollm3: 'SmolLM3ForCausalLM',
  exaone4: 'Exaone4ForCausalLM',
  glm4: 'Glm4ForCausalLM',
  helium: 'HeliumForCausalLM',
  seed_oss: 'SeedOssForCausalLM',
  ernie4_5: 'Ernie4_5ForCausalLM',
  arcee: 'ArceeForCausalLM',
  diffllama: 'DiffLlamaForCausalLM',
  minicpm3: 'MiniCPM3ForCausalLM',
  youtu: 'YoutuForCausalLM',
};

const architectures: Record<string, Record<string, unknown>> = {
  sigma: {
    ...common,
    architectures: ['SigmaForCausalLM'],
    model_type: 'sigma',
    num_key_heads: 1,
    num_value_heads: 2,
  },
};
for (const [name, className] of Object.entries(classes)) {
  architectures[name] = {
    ...common,
    architectures: [className],
    model_type: name === 'gemma3' ? 'gemma3_text' : name,
    num_key_value_heads: ['diffllama', 'minicpm3', 'youtu'].includes(name) ? 2 : 1,
    ...(name === 'gemma2' || name === 'gemma3' ? { hidden_activation: 'gelu_pytorch_tanh' } : {}),
  };
}

async function configOf(config: Record<string, unknown>): Promise<Model['config']> {
  const model = await Model.random(config, { device: 'cpu' });
  const { config: read } = model;
  model.dispose();
  return read;
}

async function load(config: Record<string, unknown>): Promise<string> {
  return (await configOf(config)).architecture;
}

/** What transformers and fine-tuning tools write, and what has no effect. */
const harmless = {
  _name_or_path: 'somewhere',
  attention_dropout: 0.1,
  auto_map: { AutoModelForCausalLM: 'modeling.Model' },
  initializer_range: 0.02,
  layer_types: ['full_attention'],
  pad_token_id: 0,
  pretraining_tp: 1,
  sliding_window: null,
  task_specific_params: { deep: [1] },
  tokenizer_class: 'PreTrainedTokenizerFast',
  transformers_version: '5.0.0',
  use_cache: true,
  use_sliding_window: false,
  max_window_layers: 28,
  quantization_config: null,
  mlp_bias: false,
  anything_else: null,
};

/** Keys that change the result, or may, and the architectures that read them. */
const rejected: [string, unknown, string[]][] = [
  ['embedding_multiplier', 12, ['granite']],
  ['attention_multiplier', 0.5, ['granite']],
  ['use_rope', false, []],
  ['no_rope_layers', [0], ['smollm3']],
  ['new_key', 'x', []],
  ['quantization_config', { quant_method: 'bitsandbytes' }, []],
  ['use_qk_norm', true, []],
  ['use_bias', true, ['ernie4_5']],
  ['final_logit_softcapping', 30, ['gemma2', 'gemma3']],
  ['attn_logit_softcapping', 30, ['gemma2']],
  ['query_pre_attn_scalar', 100, ['gemma2', 'gemma3']],
  ['rope_local_base_freq', 100, ['gemma3']],
  ['attention_out_bias', true, ['seed_oss']],
  ['use_bidirectional_attention', true, []],
  ['lm_head_bias', true, []],
  ['num_local_experts', 8, []],
  ['kv_lora_rank', 8, ['minicpm3', 'youtu']],
  ['scale_depth', 2, ['minicpm3']],
  ['rope_interleave', true, ['youtu']],
  ['layer_types', ['chunked_attention'], []],
  ['partial_rotary_factor', 0.5, ['phi3', 'glm4']],
  ['hidden_act', 'quick_gelu', ['gemma2', 'gemma3']],
];

describe.each(Object.entries(architectures))('%s', (name, config) => {
  it('loads with harmless keys', async () => {
    // With layer_types, a Mistral is a Ministral.
    expect(await load({ ...config, ...harmless })).toBe(name === 'mistral' ? 'ministral' : name);
  });

  it.each(rejected)('rejects %s', async (key, value, readers) => {
    if (readers.includes(name)) return;
    const error = await errorOf(() => load({ ...config, [key]: value }));
    expect({ code: error.code, message: error.message }).toEqual({
      code: 'ERR_UNSUPPORTED_MODEL',
      message: expect.stringContaining(key),
    });
  });

  it.each(['rope_parameters', 'rope_scaling'])('rejects an unknown key of %s', async (place) => {
    const error = await errorOf(() => load({ ...config, [place]: { rope_type: 'default', mrope_section: [2, 3, 3] } }));
    expect(error.code).toBe('ERR_UNSUPPORTED_MODEL');
    expect(error.message).toContain(`${place}.mrope_section`);
  });

  it('rejects the name of another architecture beside its own', async () => {
    const other = name.startsWith('qwen') ? 'LlamaForCausalLM' : 'Qwen2ForCausalLM';
    const error = await errorOf(() => load({ ...config, architectures: [other] }));
    expect(error.code).toBe('ERR_UNSUPPORTED_MODEL');
  });
});

/** The fields of a config, and the layers that have a window of 16. */
const windows: [string, Record<string, unknown>, number[]][] = [
  ['qwen2', { use_sliding_window: true, max_window_layers: 2 }, [2, 3]],
  ['qwen2', { use_sliding_window: true }, []],
  ['qwen2', { use_sliding_window: false, max_window_layers: 2 }, []],
  ['qwen2', { max_window_layers: 2 }, []],
  ['qwen3', { use_sliding_window: true, max_window_layers: 3 }, [3]],
  ['mistral', {}, [0, 1, 2, 3]],
  // transformers reads this key only for Qwen and SmolLM3.
  ['mistral', { use_sliding_window: false }, [0, 1, 2, 3]],
  ['gemma2', { use_sliding_window: false }, [0, 2]],
  ['mistral', { sliding_window: null }, []],
  ['ministral', {}, [0, 1, 2, 3]],
  ['phi3', {}, [0, 1, 2, 3]],
  ['gemma2', {}, [0, 2]],
  ['gemma3', {}, [0, 1, 2, 3]],
  ['gemma3', { sliding_window_pattern: 3 }, [0, 1, 3]],
  ['olmo3', {}, [0, 1, 2]],
  ['exaone4', {}, [0, 1, 2]],
  ['exaone4', { sliding_window_pattern: 2 }, [0, 2]],
  ['exaone4', { sliding_window: null }, []],
  ['smollm3', { use_sliding_window: true }, [3]],
  ['smollm3', { use_sliding_window: true, no_rope_layers: [0, 1, 1, 0] }, [0, 3]],
  ['smollm3', {}, []],
  ['smollm3', { use_sliding_window: true, no_rope_layer_interval: 2 }, [1, 3]],
];
const types = ['full_attention', 'sliding_attention', 'full_attention', 'full_attention'];
for (const name of ['ministral', 'gemma2', 'gemma3', 'olmo3', 'exaone4'])
  windows.push([name, { layer_types: types }, [1]]);
for (const name of ['qwen2', 'qwen3', 'smollm3'])
  windows.push([name, { layer_types: types, use_sliding_window: true }, [1]]);

describe('windows', () => {
  const four = (name: string) => ({ ...architectures[name], num_hidden_layers: 4 });

  it.each(windows)('%s %j', async (name, fields, layers) => {
    const config = await configOf({ ...four(name), sliding_window: 16, ...fields });
    expect(config.numWindowLayers).toBe(layers.length);
    expect(config.slidingWindow).toBe(layers.length > 0 ? 16 : undefined);
    // The layers themselves: with the list of their types the same random weights give the same.
    if (name === 'mistral' || name === 'phi3' || layers.length === 0) return;
    const listed = [0, 1, 2, 3].map((i) => (layers.includes(i) ? types[1] : types[0]));
    const logits = async (more: Record<string, unknown>) => {
      const all = { ...four(name), sliding_window: 16, ...fields, ...more, dtype: 'float32' };
      const model = await Model.random(all, { device: 'cpu' });
      const session = await model.createSession();
      const result = await session.prefill(Array.from({ length: 40 }, (_, i) => (i * 7) % 16));
      model.dispose();
      return result;
    };
    const pattern = await logits({});
    expect(firstBitDifference(await logits({ layer_types: listed }), pattern)).toBe(-1);
    if (layers.length === 4) return;
    const other = [...listed.slice(1), listed[0]];
    expect(firstBitDifference(await logits({ layer_types: other }), pattern)).not.toBe(-1);
  });

  // mistralai/Ministral-8B-Instruct-2410 has these names and layer_types.
  it.each([
    [['MistralForCausalLM'], 'mistral'],
    [['MistralForCausalLM'], 'ministral'],
    [['MinistralForCausalLM'], 'mistral'],
    [undefined, 'mistral'],
    [['MistralForCausalLM'], undefined],
  ])('layer_types make %j, %s a Ministral', async (names, type) => {
    const config = { ...four('mistral'), architectures: names, model_type: type, sliding_window: 16 };
    expect(await configOf({ ...config, layer_types: types })).toMatchObject({
      architecture: 'ministral',
      numWindowLayers: 1,
    });
    expect((await configOf({ ...config, layer_types: null })).numWindowLayers).toBe(4);
  });

  it('layer_types of a multimodal Mistral must be those of a Mistral', async () => {
    const { architectures: _, ...text } = four('mistral') as Record<string, unknown>;
    const of = (list: string[]) =>
      configOf({ model_type: 'mistral3', text_config: { ...text, sliding_window: 16, layer_types: list } });
    const { code, message } = await errorOf(() => of(types));
    expect([code, message]).toEqual(['ERR_UNSUPPORTED_MODEL', expect.stringContaining('layer_types')]);
    expect((await of(Array(4).fill('sliding_attention'))).architecture).toBe('mistral');
  });

  it.each([
    ['mistral', 4096],
    ['ministral', 4096],
    ['gemma2', 4096],
    ['gemma3', 4096],
    ['olmo3', 4096],
    ['exaone4', 4096],
    ['phi3', undefined],
    ['smollm3', undefined],
  ])('%s without the key has a window of %s', async (name, window) => {
    expect((await configOf(four(name))).slidingWindow).toBe(window);
  });

  it.each([
    ['llama', { sliding_window: 16 }, 'sliding_window'],
    ['sigma', { sliding_window: 16 }, 'sliding_window'],
    ['granite', { layer_types: types }, 'layer_types'],
    ['phi3', { sliding_window: 16, layer_types: types }, 'layer_types'],
    ['qwen2', { layer_types: types }, 'layer_types'],
    ['ministral', { sliding_window: null, layer_types: types }, 'layer_types'],
    ['gemma3', { sliding_window: null }, 'sliding_window'],
    ['phi3', { full_attn_mod: 2 }, 'full_attn_mod'],
    ['minicpm3', { num_key_value_heads: 1 }, 'num_key_value_heads'],
    ['gemma3', { rope_scaling: { type: 'dynamic', factor: 2 } }, 'dynamic'],
  ])('rejects those of %s %j', async (name, fields, key) => {
    const error = await errorOf(() => load({ ...four(name), ...fields }));
    expect({ code: error.code, message: error.message }).toEqual({
      code: 'ERR_UNSUPPORTED_MODEL',
      message: expect.stringContaining(key),
    });
  });

  it.each([
    ['mistral', { sliding_window: 0 }],
    ['mistral', { sliding_window: 'x' }],
    ['gemma2', { layer_types: types.slice(1) }],
    ['gemma3', { sliding_window_pattern: 0 }],
    ['smollm3', { no_rope_layers: [1, 1, 1] }],
    ['smollm3', { no_rope_layers: [1, 1, 1, 2] }],
    ['granite', { logits_scaling: 0 }],
    ['gemma2', { attn_logit_softcapping: -1 }],
    ['glm4', { partial_rotary_factor: 0.1 }],
    ['phi3', { partial_rotary_factor: 1.5 }],
    ['diffllama', { num_key_value_heads: 1 }],
    ['minicpm3', { kv_lora_rank: 7 }],
    ['youtu', { qk_rope_head_dim: 3 }],
    ['youtu', { q_lora_rank: 0 }],
    ['minicpm3', { scale_emb: 0 }],
  ])('rejects invalid values: %s %j', async (name, fields) => {
    const error = await errorOf(() => load({ ...four(name), ...fields }));
    expect(error.code).toBe('ERR_INVALID_ARGUMENT');
    expect(error.message).toContain(Object.keys(fields)[0]);
  });
});

const longrope = { type: 'longrope', short_factor: Array(8).fill(1), long_factor: Array(8).fill(2) };

describe('LongRoPE', () => {
  it('accepts the keys of Phi-4-mini', async () => {
    const keys = { full_attn_mod: 1, interpolate_factor: 1, partial_rotary_factor: 0.75, lm_head_bias: false };
    const factors = { short_factor: Array(6).fill(1), long_factor: Array(6).fill(2) };
    expect(await load({ ...architectures.phi3, ...keys, rope_scaling: { ...longrope, ...factors } })).toBe('phi3');
  });

  it('rejects another original length beside the object', async () => {
    const inner = { ...longrope, original_max_position_embeddings: 16 };
    const config = { ...architectures.phi3, original_max_position_embeddings: 32, rope_scaling: inner };
    const error = await errorOf(() => load(config));
    expect(error.code).toBe('ERR_UNSUPPORTED_MODEL');
    expect(error.message).toContain('original_max_position_embeddings');
  });

  it.each([
    ['a list that is too short', { short_factor: [1] }, 'short_factor'],
    ['a factor that is no number', { long_factor: Array(8).fill('x') }, 'long_factor'],
    ['a factor of 0', { long_factor: Array(8).fill(0) }, 'long_factor'],
    ['no list', { long_factor: undefined }, 'long_factor'],
  ])('rejects %s', async (_, fields, key) => {
    const config = { ...architectures.phi3, rope_scaling: { ...longrope, ...fields } };
    const error = await errorOf(() => load(config));
    expect(error.code).toBe('ERR_INVALID_ARGUMENT');
    expect(error.message).toContain(key);
    expect(await load({ ...architectures.phi3, rope_scaling: longrope })).toBe('phi3');
  });
});

describe('biases', () => {
  it.each([
    ['llama', 'attention_bias', 1],
    ['llama', 'mlp_bias', 'yes'],
    ['qwen3', 'attention_bias', []],
  ])('%s rejects %s %j', async (name, key, value) => {
    const error = await errorOf(() => load({ ...architectures[name], [key]: value }));
    expect(error.code).toBe('ERR_INVALID_ARGUMENT');
    expect(error.message).toContain(key);
  });

  it('are rejected by name if the architecture has none', async () => {
    for (const [name, key] of [
      ['sigma', 'attention_bias'],
      ['sigma', 'mlp_bias'],
      ['qwen2', 'mlp_bias'],
      ['qwen3', 'mlp_bias'],
      ['mistral', 'attention_bias'],
      ['exaone4', 'attention_bias'],
      ['gemma', 'mlp_bias'],
    ] as const) {
      const error = await errorOf(() => load({ ...architectures[name], [key]: true }));
      expect(error.code).toBe('ERR_UNSUPPORTED_MODEL');
      expect(error.message).toContain(key);
    }
  });
});

/** Made by test/tools/make_architecture_fixtures.py. */
interface Defaults {
  config: Record<string, unknown> & { model_type: string };
  /** Properties of Model.config. */
  expected: Record<string, number>;
  /** Keys of config.json with their defaults. */
  keys: Record<string, unknown>;
}
const defaults: Defaults[] = JSON.parse(readFileSync(join(__dirname, 'architecture_defaults.json'), 'utf8'));

it.each(defaults.map((row) => [row.config.model_type, row] as const))(
  '%s has the defaults of transformers for missing keys',
  (_, { config, expected }) => {
    const parsed = addon().parseConfig({ directory: 'model', config: JSON.stringify(config) });
    expect(parsed).toMatchObject(expected);
    expect(parsed.slidingWindow).toBe(expected.slidingWindow);
  },
);

const small = (config: Defaults['config']) => ({ ...config, num_hidden_layers: 2, max_position_embeddings: 64 });

describe.each(
  defaults.flatMap(({ config, keys }) =>
    config.use_sliding_window ? [] : [[config.model_type, small(config), keys] as const],
  ),
)('%s without a key', (name, config, keys) => {
  const logits = async (fields: Record<string, unknown>) => {
    const model = await Model.random({ ...config, ...fields, dtype: 'float32' }, { device: 'cpu' });
    const session = await model.createSession();
    const result = await session.prefill([1, 50, 7, 23, 90]);
    model.dispose();
    return result;
  };
  const other = (value: unknown): unknown => {
    if (typeof value === 'boolean') return !value;
    if (typeof value === 'string') return value === 'relu' ? 'silu' : 'relu';
    return value === null ? 5 : (value as number) / 2;
  };

  it.each(Object.entries(keys))('%s has its default, %j', async (key, value) => {
    const without = await logits({});
    expect(firstBitDifference(await logits({ [key]: value }), without)).toBe(-1);
    expect(firstBitDifference(await logits({ [key]: other(value) }), without)).not.toBe(-1);
  });

  it('accepts all of them', async () => {
    if (Object.keys(keys).length === 0) throw new Error(`no keys for ${name}`);
    expect(firstBitDifference(await logits(keys), await logits({}))).toBe(-1);
  });
});

it('Gemma has hidden_activation beside hidden_act, without effect', async () => {
  expect(await load({ ...architectures.gemma, hidden_activation: 'gelu_pytorch_tanh' })).toBe('gemma');
});

it('LongRoPE of Phi-3 begins after 4,096 tokens if config.json does not say', async () => {
  const factors = { short_factor: Array(8).fill(1), long_factor: Array(8).fill(2) };
  const base = {
    ...architectures.phi3,
    max_position_embeddings: 65536,
    rope_scaling: { type: 'longrope', ...factors },
  };
  const logits = async (fields: object) => {
    const model = await Model.random({ ...base, ...fields, dtype: 'float32' }, { device: 'cpu' });
    const session = await model.createSession();
    const result = await session.prefill([1, 5, 7]);
    model.dispose();
    return result;
  };
  const without = await logits({});
  expect(firstBitDifference(await logits({ original_max_position_embeddings: 4096 }), without)).toBe(-1);
  expect(firstBitDifference(await logits({ original_max_position_embeddings: 8192 }), without)).not.toBe(-1);
});

it.each(['SigmaForCausalLM', 'sigma', 'diffqkv'])('a DiffQKV config may be named %s', async (name) => {
  const config = { ...architectures.sigma, num_key_value_heads: 2, value_head_dim: 8 };
  expect(await configOf({ ...config, architectures: [name], model_type: undefined })).toMatchObject({
    architecture: 'sigma',
    headDimVo: 8,
  });
});

it('ERNIE 4.5 may have the class of its own checkpoints, Ernie4_5_ForCausalLM', async () => {
  const config = { ...architectures.ernie4_5, architectures: ['Ernie4_5_ForCausalLM'] };
  expect(await load(config)).toBe('ernie4_5');
});

// Keys of public files that transformers does not read.
it.each([
  ['llama', { max_sequence_length: 2048 }],
  ['qwen2', { dual_chunk_attention_config: { chunk_size: 64, local_size: 8, original_max_position_embeddings: 64 } }],
  ['gemma2', { sliding_window: 8, sliding_window_size: 4096 }],
])('%s accepts %j, of which one key has no effect', async (name, fields) => {
  const logits = async (more: Record<string, unknown>) => {
    const model = await Model.random({ ...architectures[name], ...more, dtype: 'float32' }, { device: 'cpu' });
    const session = await model.createSession();
    const result = await session.prefill(Array.from({ length: 20 }, (_, i) => (i * 7) % 16));
    model.dispose();
    return result;
  };
  const without = Object.fromEntries(Object.entries(fields).slice(0, -1));
  expect(firstBitDifference(await logits(fields), await logits(without))).toBe(-1);
});

it('YaRN may have attn_factor, without effect, as DeepSeek-R1-0528-Qwen3-8B does', async () => {
  const logits = async (fields: Record<string, unknown>) => {
    const rope_scaling = { rope_type: 'yarn', factor: 4, original_max_position_embeddings: 16, ...fields };
    const model = await Model.random({ ...architectures.qwen3, rope_scaling, dtype: 'float32' }, { device: 'cpu' });
    const session = await model.createSession();
    const result = await session.prefill([1, 5, 7]);
    model.dispose();
    return result;
  };
  const without = await logits({});
  expect(firstBitDifference(await logits({ attn_factor: 0.878, extrapolation_factor: 2 }), without)).toBe(-1);
  expect(firstBitDifference(await logits({ attention_factor: 0.878 }), without)).not.toBe(-1);
});

it('Youtu-LLM may have the older model_type of its checkpoints, youtu_llm', async () => {
  expect(await load({ ...architectures.youtu, model_type: 'youtu_llm' })).toBe('youtu');
});

it.each([
  ['no bytes', ''],
  ['zeros', '\0\0\0'],
  ['a zero', '{"a": \0}'],
  ['invalid UTF-8', '\xff'],
  ['too many bytes', ' '.repeat(2 ** 20 + 1)],
])('config.json with %s is rejected by its name', async (_, text) => {
  const contents = new Map([['config.json', Buffer.from(text, 'latin1')]]);
  const { code, message } = await errorOf(async () => checkConfig(contents, 'org/name'));
  expect([code, message]).toEqual(['ERR_INVALID_CHECKPOINT', expect.stringContaining('org/name/config.json: ')]);
});

describe('multimodal configs', () => {
  const wrapper = {
    gemma3: { architectures: ['Gemma3ForConditionalGeneration'], model_type: 'gemma3', boi_token_index: 1 },
    mistral: { architectures: ['Mistral3ForConditionalGeneration'], model_type: 'mistral3', spatial_merge_size: 2 },
  };
  const parse = (config: Record<string, unknown>) =>
    addon().parseConfig({ directory: 'model', config: JSON.stringify(config) });

  it.each(Object.entries(wrapper))('have the text model of %s in text_config', async (name, outer) => {
    const { architectures: _, ...text } = architectures[name] as Record<string, unknown>;
    const config = { ...outer, vision_config: { hidden_size: 8 }, text_config: text };
    expect(await configOf(config)).toEqual(await configOf(architectures[name] as Record<string, unknown>));
    const error = (fields: Record<string, unknown>) => errorOf(() => configOf({ ...config, ...fields }));
    for (const [fields, part] of [
      [{ new_key: 1 }, 'new_key is 1: this key is unknown beside text_config'],
      [{ num_experts: 8 }, 'num_experts is 8: not supported (mixture of experts)'],
      [{ text_config: { ...text, num_experts: 8 } }, 'text_config.num_experts is 8: not supported'],
      [{ quantization_config: { bits: 4 } }, "quant_method is ''"],
      [{ architectures: ['ModelForSequenceClassification'] }, "is named 'ModelForSequenceClassification'"],
      [{ text_config: { ...text, new_key: 1 } }, 'text_config.new_key is 1'],
      [{ text_config: { ...text, model_type: 'qwen2' } }, 'text_config has another architecture'],
      [{ text_config: undefined }, 'is not supported'],
      [{ architectures: ['LlavaForConditionalGeneration'], model_type: 'llava' }, 'as in a multimodal model'],
    ] as const) {
      const { code, message } = await error(fields);
      expect({ code, message }).toEqual({ code: 'ERR_UNSUPPORTED_MODEL', message: expect.stringContaining(part) });
    }
    const { code, message } = await error({ text_config: { ...text, vocab_size: 0 } });
    expect([code, message]).toEqual(['ERR_INVALID_ARGUMENT', expect.stringContaining('text_config.vocab_size is 0')]);
  });

  it.each([
    ['gemma3', { architectures: ['Gemma3ForConditionalGeneration'] }],
    ['gemma3', { model_type: 'gemma3' }],
    ['mistral', { architectures: ['Mistral3ForConditionalGeneration'] }],
    ['mistral', { model_type: 'mistral3' }],
  ])('of %s are known by %j', (name, names) => {
    const { architectures: _, ...text } = architectures[name] as Record<string, unknown>;
    expect(parse({ ...names, text_config: text }).architecture).toBe(name);
  });

  it('read the tokens and the tie of the output matrix beside text_config first', () => {
    const { architectures: _, ...text } = architectures.gemma3 as Record<string, unknown>;
    const of = (outer: object, inner: object) =>
      parse({ ...wrapper.gemma3, ...outer, text_config: { ...text, ...inner } });
    expect(of({ bos_token_id: 3 }, { bos_token_id: 2 }).bosTokenId).toBe(3);
    expect(of({}, { bos_token_id: 2 }).bosTokenId).toBe(2);
    expect(of({ eos_token_id: [1, 5] }, { eos_token_id: 1 }).eosTokenIds).toEqual([1, 5]);
    expect(of({ tie_word_embeddings: true }, { tie_word_embeddings: false }).tieWordEmbeddings).toBe(true);
    expect(of({}, { tie_word_embeddings: true }).tieWordEmbeddings).toBe(true);
  });

  it('are rejected if they have a soft cap of logits, which transformers applies to a text model only', async () => {
    const { architectures: names, ...text } = architectures.gemma3 as Record<string, unknown>;
    const of = (cap: number | null) => ({ ...wrapper.gemma3, text_config: { ...text, final_logit_softcapping: cap } });
    const { code, message } = await errorOf(() => configOf(of(30)));
    expect([code, message]).toEqual([
      'ERR_UNSUPPORTED_MODEL',
      expect.stringContaining('text_config.final_logit_softcapping is 30'),
    ]);
    expect((await configOf(of(null))).architecture).toBe('gemma3');
    expect(await load({ ...text, architectures: names, final_logit_softcapping: 30 })).toBe('gemma3');
  });

  it('may lack what the class of Gemma 3 has as its defaults, as google/gemma-3-4b-it does', () => {
    const text = { hidden_size: 2560, intermediate_size: 10240, num_hidden_layers: 34, sliding_window: 1024 };
    const text_config = { ...text, model_type: 'gemma3_text', rope_scaling: { factor: 8, rope_type: 'linear' } };
    expect(parse({ ...wrapper.gemma3, eos_token_id: [1, 106], text_config })).toMatchObject({
      ...{ numQHeads: 8, numKHeads: 4, numVHeads: 4, headDimQk: 256, vocabSize: 262208, slidingWindow: 1024 },
      ...{ maxPositionEmbeddings: 131072, numWindowLayers: 29, eosTokenIds: [1, 106] },
    });
  });
});
