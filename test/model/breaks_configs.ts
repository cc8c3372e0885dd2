// Broken configs, and configs of unsupported models.

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { writeConfig } from '../support/checkpoints';
import type { Checkpoint } from '../support/reference_model';
import { type Break, config, raw } from './breaks';

const badNumber = (field: string): Break[] =>
  (
    [
      ['negative', -1],
      ['zero', 0],
      ['a fraction', 1.5],
      ['huge', 2 ** 53],
      ['2^31', 2 ** 31],
      ['a string', '4'],
      ['a list', [4]],
      ['an object', {}],
      ['true', true],
    ] as [string, unknown][]
  ).map(([what, value]) => ({
    name: `${field} ${what}`,
    apply: config({ [field]: value }),
    names: ['config.json', field],
  }));

/** RoPE parameters of Llama 3. */
export const llama3 = {
  rope_type: 'llama3',
  factor: 8,
  low_freq_factor: 1,
  high_freq_factor: 4,
  original_max_position_embeddings: 32,
};

/** Writes the config with one field whose value is this text. */
export const configField =
  (field: string, text: string) =>
  (directory: string, checkpoint: Checkpoint): void => {
    const json = JSON.stringify({ ...checkpoint.config, [field]: '(value)' });
    writeFileSync(join(directory, 'config.json'), json.replace('"(value)"', text));
  };

export const configs: Break[] = [
  { name: 'not JSON', apply: raw('{"a": }', 'config.json'), names: ['config.json', /JSON/] },
  { name: 'empty', apply: raw('', 'config.json'), names: ['config.json'] },
  {
    name: 'NaN',
    apply: configField('num_key_heads', 'NaN'),
    names: ['config.json', 'num_key_heads is NaN'],
  },
  {
    name: 'num_attention_heads -Infinity',
    apply: configField('num_attention_heads', '-Infinity'),
    names: ['config.json', 'num_attention_heads is -Infinity'],
  },
  // Python's json module does not read these either.
  ...['-NaN', 'nan', 'infinity', '+Infinity', '--Infinity', 'Inf', '1NaN', 'NaN1', 'NaN NaN', 'NaN"x"', '{NaN: 1}'].map(
    (text) => ({ name: `${text}, not JSON`, apply: configField('other', text), names: ['config.json', /JSON/] }),
  ),
  ...(
    [
      ['[1]', 'array'],
      ['"sigma"', 'string'],
      ['null', 'null'],
      ['true', 'boolean'],
      ['7', 'number'],
      ['0.5', 'number'],
    ] as const
  ).map(([text, type]) => ({
    name: `${text}, no object`,
    apply: raw(text, 'config.json'),
    names: ['config.json', `must be a JSON object, not ${type}`],
  })),
  {
    name: 'nested 200,000 deep',
    apply: raw(`{"a":${'['.repeat(200_000)}${']'.repeat(200_000)}}`, 'config.json'),
    names: ['config.json'],
  },
  ...[
    'hidden_size',
    'num_hidden_layers',
    'num_attention_heads',
    'num_key_heads',
    'num_value_heads',
    'intermediate_size',
    'vocab_size',
    'head_dim',
    'max_position_embeddings',
  ].flatMap(badNumber),
  ...['hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size', 'vocab_size'].map((field) => ({
    name: `${field} missing`,
    apply: config({ [field]: undefined }),
    names: ['config.json', field],
  })),
  ...['hidden_size', 'intermediate_size', 'vocab_size', 'head_dim'].map((field) => ({
    name: `${field} differs from the tensors`,
    apply: (directory: string, checkpoint: Checkpoint) =>
      writeConfig(directory, { ...checkpoint.config, [field]: (checkpoint.config[field] as number) * 2 }),
    names: [/model\.|lm_head/],
  })),
  { name: 'head_dim odd', apply: config({ head_dim: 15 }), names: ['config.json', 'head_dim', '15'] },
  {
    name: 'num_key_heads does not divide',
    apply: config({ num_key_heads: 3 }),
    names: ['config.json', 'num_key_heads', '3', '4'],
  },
  {
    name: 'num_value_heads does not divide',
    apply: config({ num_value_heads: 3 }),
    names: ['config.json', 'num_value_heads', '3', '4'],
  },
  {
    name: 'more key heads than query heads',
    apply: config({ num_key_heads: 8 }),
    names: ['config.json', 'num_key_heads', '8'],
  },
  {
    name: 'num_key_value_heads does not divide',
    apply: config({ num_key_value_heads: 3 }),
    names: ['config.json', 'num_key_value_heads', '3'],
    llama: true,
  },
  {
    name: 'num_key_value_heads zero',
    apply: config({ num_key_value_heads: 0 }),
    names: ['config.json', 'num_key_value_heads'],
    llama: true,
  },
  ...[0, -1e-5, 'small', null, 2].map((value) => ({
    name: `rms_norm_eps ${value}`,
    apply: config({ rms_norm_eps: value }),
    names: ['config.json', 'rms_norm_eps'],
  })),
  ...[0, -1, 0.5, 'large', [1]].map((value) => ({
    name: `rope_theta ${JSON.stringify(value)}`,
    apply: config({ rope_theta: value }),
    names: ['config.json', 'rope_theta'],
  })),
  {
    name: 'rope_theta 1e999',
    apply: (directory, checkpoint) =>
      writeFileSync(
        join(directory, 'config.json'),
        JSON.stringify(checkpoint.config).replace('"rope_theta":50000', '"rope_theta":1e999'),
      ),
    names: ['config.json'],
  },
  {
    name: 'RoPE scaling longrope without factors',
    apply: config({ rope_scaling: { rope_type: 'longrope', factor: 4 } }),
    names: ['config.json', 'short_factor'],
  },
  {
    name: 'tie_word_embeddings a string',
    apply: config({ tie_word_embeddings: 'yes' }),
    names: ['config.json', 'tie_word_embeddings'],
  },
  { name: 'eos_token_id a string', apply: config({ eos_token_id: 'end' }), names: ['config.json', 'eos_token_id'] },
  { name: 'eos_token_id negative', apply: config({ eos_token_id: [1, -2] }), names: ['config.json', 'eos_token_id'] },
  {
    name: 'architectures a string',
    apply: config({ architectures: 'SigmaForCausalLM' }),
    names: ['config.json', 'architectures'],
  },
  { name: 'rope_scaling a string', apply: config({ rope_scaling: 'llama3' }), names: ['config.json', 'rope_scaling'] },
  {
    name: 'rope_scaling without factor',
    apply: config({
      rope_scaling: {
        rope_type: 'llama3',
        low_freq_factor: 1,
        high_freq_factor: 4,
        original_max_position_embeddings: 64,
      },
    }),
    names: ['config.json', 'factor'],
  },
  {
    name: 'rope_scaling factor below 1',
    apply: config({
      rope_scaling: {
        rope_type: 'llama3',
        factor: 0.5,
        low_freq_factor: 1,
        high_freq_factor: 4,
        original_max_position_embeddings: 64,
      },
    }),
    names: ['config.json', 'factor', '0.5'],
  },
  {
    name: 'RoPE scaling dynamic without a factor',
    apply: config({ rope_scaling: { type: 'dynamic' } }),
    names: ['config.json', 'factor'],
  },
  {
    name: 'RoPE scaling dynamic without max_position_embeddings',
    apply: config({ rope_scaling: { type: 'dynamic', factor: 2 }, max_position_embeddings: undefined }),
    names: ['config.json', 'max_position_embeddings'],
  },
  {
    name: 'yarn without factor',
    apply: config({ rope_scaling: { rope_type: 'yarn', original_max_position_embeddings: 64 } }),
    names: ['config.json', 'factor'],
  },
  ...[
    { attention_factor: 0 },
    { attention_factor: 1e9 },
    { beta_fast: -1 },
    { beta_slow: 'slow' },
    { truncate: 1 },
    { original_max_position_embeddings: 0 },
  ].map((fields) => ({
    name: `yarn with ${JSON.stringify(fields)}`,
    apply: config({ rope_scaling: { rope_type: 'yarn', factor: 4, ...fields } }),
    names: ['config.json', Object.keys(fields)[0] as string],
  })),
  {
    name: 'yarn with rope_theta 1',
    apply: config({ rope_scaling: { rope_type: 'yarn', factor: 4 }, rope_theta: 1 }),
    names: ['config.json', 'rope_theta'],
  },
  {
    name: 'linear without factor',
    apply: config({ rope_scaling: { type: 'linear' } }),
    names: ['config.json', 'factor'],
  },
  {
    name: 'rope_parameters and rope_scaling',
    apply: config({ rope_parameters: { rope_theta: 50000 }, rope_scaling: llama3 }),
    names: ['config.json', 'rope_parameters', 'rope_scaling', 'differ'],
  },
  {
    name: 'rope_parameters and rope_scaling with other factors',
    apply: config({ rope_parameters: llama3, rope_scaling: { ...llama3, factor: 4 } }),
    names: ['config.json', 'rope_parameters', 'rope_scaling', 'differ'],
  },
  {
    name: 'rope_parameters and rope_scaling with other bases',
    apply: config({ rope_parameters: { rope_theta: 1e4 }, rope_scaling: { rope_theta: 1e5 } }),
    names: ['config.json', 'rope_parameters', 'rope_scaling', 'differ'],
  },
  {
    name: 'rope_parameters of a layer type without factor',
    apply: config({ rope_parameters: { full_attention: { ...llama3, factor: undefined } } }),
    names: ['config.json', 'rope_parameters.full_attention.factor'],
  },
  {
    name: 'rope_scaling factor negative',
    apply: config({
      rope_scaling: {
        rope_type: 'llama3',
        factor: -8,
        low_freq_factor: 1,
        high_freq_factor: 4,
        original_max_position_embeddings: 64,
      },
    }),
    names: ['config.json', 'factor', '-8'],
  },
  {
    name: 'rope_scaling low above high',
    apply: config({
      rope_scaling: {
        rope_type: 'llama3',
        factor: 8,
        low_freq_factor: 4,
        high_freq_factor: 1,
        original_max_position_embeddings: 64,
      },
    }),
    names: ['config.json', 'low_freq_factor'],
  },
  {
    name: 'rope_scaling low equal to high',
    apply: config({
      rope_scaling: {
        rope_type: 'llama3',
        factor: 8,
        low_freq_factor: 4,
        high_freq_factor: 4,
        original_max_position_embeddings: 64,
      },
    }),
    names: ['config.json', 'low_freq_factor'],
  },
];

export const unsupported: Break[] = [
  {
    name: 'another architecture',
    apply: config({ architectures: ['GPT2LMHeadModel'], model_type: 'gpt2' }),
    names: ['config.json', /GPT2LMHeadModel|gpt2/],
  },
  {
    name: 'another architecture with the right head counts',
    apply: config({ architectures: ['FalconForCausalLM'], model_type: 'falcon' }),
    names: ['config.json', /FalconForCausalLM|falcon/],
  },
  {
    name: 'model_type sigma without key heads',
    apply: config({ num_key_heads: undefined, num_value_heads: undefined }),
    names: ['config.json', 'num_key_heads', 'num_value_heads', 'DiffQKV'],
  },
  {
    name: 'model_type sigma with only num_key_value_heads',
    apply: config({ num_key_heads: undefined, num_value_heads: undefined, num_key_value_heads: 2 }),
    names: ['config.json', 'num_key_heads', 'DiffQKV'],
  },
  {
    name: 'only num_value_heads missing',
    apply: config({ num_value_heads: undefined }),
    names: ['config.json', 'num_value_heads'],
  },
  {
    name: 'no architecture at all',
    apply: config({
      architectures: undefined,
      model_type: undefined,
      num_key_heads: undefined,
      num_value_heads: undefined,
    }),
    names: ['config.json', 'model_type'],
  },
  { name: 'another activation', apply: config({ hidden_act: 'tanh' }), names: ['config.json', 'tanh'] },
  { name: 'attention bias', apply: config({ attention_bias: true }), names: ['config.json', 'attention_bias'] },
  {
    name: 'rope_parameters that differ by layer type',
    apply: config({ rope_parameters: { full_attention: { rope_theta: 1e6 }, sliding_attention: { rope_theta: 1e4 } } }),
    code: 'ERR_UNSUPPORTED_MODEL',
    names: ['config.json', 'rope_parameters', 'full_attention', 'sliding_attention'],
  },
  {
    name: 'rope_parameters of a layer type beside others',
    apply: config({ rope_parameters: { full_attention: llama3, rope_theta: 1e4 } }),
    code: 'ERR_UNSUPPORTED_MODEL',
    names: ['config.json', 'rope_parameters.rope_theta', 'full_attention'],
  },
  {
    name: 'rope_parameters of a layer type of type ntk',
    apply: config({ rope_parameters: { full_attention: { rope_type: 'ntk' } } }),
    code: 'ERR_UNSUPPORTED_MODEL',
    names: ['config.json', 'rope_parameters.full_attention', 'ntk'],
  },
  {
    name: 'RoPE scaling ntk, in the old format',
    apply: config({ rope_scaling: { type: 'ntk', factor: 4 } }),
    names: ['config.json', 'ntk'],
  },
  {
    name: 'RoPE scaling yarn with a lift of K',
    apply: config({
      rope_scaling: { rope_type: 'yarn', factor: 4 },
      key_head_dim: 8,
      key_lift: { kind: 'linear', position: 'after_rope' },
    }),
    names: ['config.json', 'yarn', 'key_lift'],
  },
  {
    name: 'quantized',
    apply: config({ quantization_config: { quant_method: 'bitsandbytes' } }),
    names: ['config.json', 'quantization_config'],
  },
  { name: 'experts', apply: config({ num_experts: 8 }), names: ['config.json', 'num_experts'] },
].map((broken) => ({ ...broken, code: 'ERR_UNSUPPORTED_MODEL' as const }));
