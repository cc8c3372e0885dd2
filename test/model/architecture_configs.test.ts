// Which keys of config.json each architecture accepts. A key that changes the result, or may, is
// rejected by its name.

import { Model } from '../../lib/index';
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

const architectures: Record<string, Record<string, unknown>> = {
  sigma: {
    ...common,
    architectures: ['SigmaForCausalLM'],
    model_type: 'sigma',
    num_key_heads: 1,
    num_value_heads: 2,
  },
  llama: {
    ...common,
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    num_key_value_heads: 1,
  },
  qwen2: {
    ...common,
    architectures: ['Qwen2ForCausalLM'],
    model_type: 'qwen2',
    num_key_value_heads: 1,
  },
  qwen3: {
    ...common,
    architectures: ['Qwen3ForCausalLM'],
    model_type: 'qwen3',
    num_key_value_heads: 1,
  },
};

async function load(config: Record<string, unknown>): Promise<string> {
  const model = await Model.random(config, { device: 'cpu' });
  const { architecture } = model.config;
  model.dispose();
  return architecture;
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

/** Keys that change the result, or may. */
const rejected: [string, unknown][] = [
  ['embedding_multiplier', 12],
  ['use_rope', false],
  ['no_rope_layers', [0]],
  ['new_key', 'x'],
  ['quantization_config', { quant_method: 'gptq' }],
  ['use_qk_norm', true],
  ['final_logit_softcapping', 30],
  ['num_local_experts', 8],
  ['layer_types', ['sliding_attention']],
  ['partial_rotary_factor', 0.5],
];

describe.each(Object.entries(architectures))('%s', (name, config) => {
  it('loads with harmless keys', async () => {
    expect(await load({ ...config, ...harmless })).toBe(name);
  });

  it.each(rejected)('rejects %s', async (key, value) => {
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

  it('rejects a window', async () => {
    const window = { sliding_window: 16, use_sliding_window: true };
    const error = await errorOf(() => load({ ...config, ...window }));
    expect(error.code).toBe('ERR_UNSUPPORTED_MODEL');
    expect(error.message).toContain('sliding_window');
    expect(await load({ ...config, ...window, use_sliding_window: false })).toBe(name);
  });

  it('rejects the name of another architecture beside its own', async () => {
    const other = name.startsWith('qwen') ? 'LlamaForCausalLM' : 'Qwen2ForCausalLM';
    const error = await errorOf(() => load({ ...config, architectures: [other] }));
    expect(error.code).toBe('ERR_UNSUPPORTED_MODEL');
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
    ] as const) {
      const error = await errorOf(() => load({ ...architectures[name], [key]: true }));
      expect(error.code).toBe('ERR_UNSUPPORTED_MODEL');
      expect(error.message).toContain(key);
    }
  });
});
