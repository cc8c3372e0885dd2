// The Sigma model (and Llama, its special case) in float64 over a decoded checkpoint, without
// folding augmented Q: the formulas of the paper's section 2 in order, without a cache.

import type { Numbers } from './numbers';
import {
  attention,
  augmentedQ,
  embed,
  type Llama3RopeScaling,
  matmul,
  rmsNorm,
  rope,
  ropeFrequencies,
  type SelectiveV,
} from './reference';

/** A config.json and its tensors by Hugging Face name. */
export interface Checkpoint {
  config: Record<string, unknown>;
  tensors: Map<string, CheckpointTensor>;
}

export interface CheckpointTensor {
  type: 'F32' | 'F16' | 'BF16';
  shape: number[];
  data: Float32Array;
}

interface ModelOptions {
  /** Default 1. */
  numLogits?: number;
  selectiveV?: SelectiveV;
}

/** Logits of the last `numLogits` tokens, one array per token. */
export function modelLogits(
  checkpoint: Checkpoint,
  tokens: readonly number[],
  options: ModelOptions = {},
): Float64Array[] {
  const states = modelStates(checkpoint, tokens, options);
  const { tensors, config } = checkpoint;
  const head = (tensors.get('lm_head.weight') ?? tensors.get('model.embed_tokens.weight')) as CheckpointTensor;
  return states.map((state) => matmul(state, head.data, 1, config.hidden_size as number, head.shape[0] as number));
}

/** The hidden states of the same tokens after the final norm. */
export function modelStates(
  checkpoint: Checkpoint,
  tokens: readonly number[],
  options: ModelOptions = {},
): Float64Array[] {
  const config = checkpoint.config as Record<string, number> & {
    rope_scaling?: Llama3RopeScaling;
    key_lift?: { kind: 'linear' | 'swiglu'; position: 'after_rope' | 'before_rope' };
  };
  const weight = (name: string): Float32Array => {
    const tensor = checkpoint.tensors.get(name);
    if (!tensor) throw new Error(`no tensor ${name}`);
    return tensor.data;
  };
  const rows = (name: string): number => checkpoint.tensors.get(name)?.shape[0] ?? 0;

  const hiddenSize = config.hidden_size as number;
  const numQHeads = config.num_attention_heads as number;
  const numKHeads = config.num_key_heads ?? config.num_key_value_heads ?? numQHeads;
  const numVHeads = config.num_value_heads ?? config.num_key_value_heads ?? numQHeads;
  const headDim = config.head_dim ?? hiddenSize / numQHeads;
  const eps = config.rms_norm_eps as number;
  const headDimVo = config.value_head_dim ?? headDim;
  const headDimK = config.key_head_dim ?? headDim; // the head size of cached K
  const turned = (x: Numbers, heads: number, size: number): Float64Array =>
    rope(
      x,
      positions,
      heads,
      size,
      ropeFrequencies(size, config.rope_theta ?? 10000, config.rope_scaling ?? undefined),
    );
  const numTokens = tokens.length;
  const positions = tokens.map((_, i) => i);
  const linear = (x: Numbers, name: string): Float64Array =>
    matmul(x, weight(name), numTokens, x.length / numTokens, rows(name));
  const gated = (x: Numbers, gate: string, up: string, down: string): Float64Array =>
    augmentedQ({
      x,
      gate: weight(gate),
      up: weight(up),
      down: weight(down),
      numTokens,
      inFeatures: x.length / numTokens,
      innerSize: rows(gate),
      outFeatures: rows(down),
    });
  const add = (a: Float64Array, b: Float64Array): Float64Array => a.map((value, i) => value + (b[i] as number));

  let h = embed(weight('model.embed_tokens.weight'), tokens, hiddenSize);
  for (let layer = 0; layer < (config.num_hidden_layers as number); layer++) {
    const at = `model.layers.${layer}`;
    const x = rmsNorm(h, weight(`${at}.input_layernorm.weight`), eps).out;
    let q = linear(x, `${at}.self_attn.q_proj.weight`);
    if (checkpoint.tensors.has(`${at}.self_attn.q_up_proj.weight`)) {
      const [gate, up, down] = ['gate', 'up', 'down'].map((part) => `${at}.self_attn.q_${part}_proj.weight`);
      q = gated(q, gate as string, up as string, down as string);
    }
    // The lift of half K dim, head by head, before or after RoPE.
    const lift = (cached: Numbers): Float64Array => {
      const [gate, up, down] = ['gate', 'up', 'down'].map((part) => `${at}.self_attn.k_lift_${part}_proj.weight`);
      const shape = { numTokens: numTokens * numKHeads, inFeatures: headDimK, outFeatures: headDim };
      if (config.key_lift?.kind === 'linear') {
        return matmul(cached, weight(`${at}.self_attn.k_lift_proj.weight`), shape.numTokens, headDimK, headDim);
      }
      return augmentedQ({
        x: cached,
        gate: weight(gate as string),
        up: weight(up as string),
        down: weight(down as string),
        innerSize: rows(gate as string),
        ...shape,
      });
    };
    let k = linear(x, `${at}.self_attn.k_proj.weight`);
    if (config.key_lift?.position === 'before_rope') k = lift(k);
    k = turned(k, numKHeads, k.length / (numTokens * numKHeads));
    if (config.key_lift?.position === 'after_rope') k = lift(k);
    const v = linear(x, `${at}.self_attn.v_proj.weight`);
    const { out } = attention({
      q: turned(q, numQHeads, headDim),
      k,
      v,
      batchSize: 1,
      qLen: numTokens,
      kvLen: numTokens,
      numQHeads,
      numKHeads,
      numVHeads,
      headDimQk: headDim,
      headDimVo,
      causal: true,
      selectiveV: options.selectiveV,
    });
    h = add(h, linear(out, `${at}.self_attn.o_proj.weight`));
    const y = rmsNorm(h, weight(`${at}.post_attention_layernorm.weight`), eps).out;
    h = add(h, gated(y, `${at}.mlp.gate_proj.weight`, `${at}.mlp.up_proj.weight`, `${at}.mlp.down_proj.weight`));
  }
  const numLogits = options.numLogits ?? 1;
  const last = rmsNorm(h.subarray(h.length - numLogits * hiddenSize), weight('model.norm.weight'), eps).out;
  return Array.from({ length: numLogits }, (_, i) => last.slice(i * hiddenSize, (i + 1) * hiddenSize));
}
