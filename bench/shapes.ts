// The shapes of the suites. Sigma: arXiv 2501.13629 v2, table 14 and appendix E.

/** The Llama of the suites weight-types and peers. */
export const LLAMA_SHAPE = {
  hidden_size: 1024,
  intermediate_size: 4096,
  num_hidden_layers: 24,
  num_attention_heads: 16,
  num_key_value_heads: 4,
  head_dim: 64,
  vocab_size: 32000,
  max_position_embeddings: 2048,
  rope_theta: 10000,
  rms_norm_eps: 1e-5,
};

/** The config.json of Sigma-1.5B with `numLayers` layers, in bf16 with tied embeddings. */
export function sigma15bConfig(numLayers: number) {
  return {
    architectures: ['SigmaForCausalLM'],
    model_type: 'sigma',
    torch_dtype: 'bfloat16',
    hidden_act: 'silu',
    hidden_size: 2048,
    intermediate_size: 6144,
    aug_q_dim: 3072,
    num_hidden_layers: numLayers,
    num_attention_heads: 32,
    num_key_heads: 4,
    num_value_heads: 16,
    head_dim: 64,
    rope_theta: 50000,
    rms_norm_eps: 1e-5,
    vocab_size: 128256,
    max_position_embeddings: 32768,
    tie_word_embeddings: true,
    bos_token_id: 128000,
    eos_token_id: 128001,
  };
}

/** The config.json of Sigma-10B with `numLayers` layers. */
export function sigma10bConfig(numLayers: number) {
  return {
    ...sigma15bConfig(numLayers),
    hidden_size: 4096,
    intermediate_size: 14336,
    aug_q_dim: 6144,
    head_dim: 128,
    rope_theta: 500000,
  };
}

/** Number of layers of the whole Sigma-1.5B. */
export const SIGMA_15B_LAYERS = 26;

/** Number of layers of the whole Sigma-10B. */
export const SIGMA_10B_LAYERS = 32;

/** A config.json of the sizes of Llama 3 8B, in bf16. */
export function llama8bConfig() {
  return {
    model_type: 'llama',
    torch_dtype: 'bfloat16',
    hidden_act: 'silu',
    hidden_size: 4096,
    intermediate_size: 14336,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    head_dim: 128,
    rope_theta: 500000,
    rms_norm_eps: 1e-5,
    vocab_size: 128256,
    max_position_embeddings: 32768,
    tie_word_embeddings: false,
  };
}

/** Head counts and head sizes of one attention layer. */
export interface HeadShape {
  numQHeads: number;
  numKHeads: number;
  numVHeads: number;
  headDimQk: number;
  headDimVo: number;
}

/** The attention of Sigma-1.5B, and STD, the GQA that the paper compares it with (as many K heads as V heads). */
export const SIGMA_HEADS: HeadShape = { numQHeads: 32, numKHeads: 4, numVHeads: 16, headDimQk: 64, headDimVo: 64 };
export const STD_HEADS: HeadShape = { ...SIGMA_HEADS, numKHeads: 16 };

/** '32/4/16': Q, K and V heads. */
export function headsName({ numQHeads, numKHeads, numVHeads }: HeadShape): string {
  return `${numQHeads}/${numKHeads}/${numVHeads}`;
}

/** '32/4/16 x 64', or '32/4/16 x 64/128' if K and V rows have different sizes. */
export function shapeName(heads: HeadShape): string {
  const { headDimQk, headDimVo } = heads;
  return `${headsName(heads)} x ${headDimQk === headDimVo ? headDimQk : `${headDimQk}/${headDimVo}`}`;
}

export function headShape(
  [numQHeads, numKHeads, numVHeads]: readonly [number, number, number],
  size: number,
): HeadShape {
  return { numQHeads, numKHeads, numVHeads, headDimQk: size, headDimVo: size };
}

/** '32k' for 32768. A number that is not a multiple of 1024 is not abbreviated. */
export function lengthName(length: number): string {
  return length >= 1024 && length % 1024 === 0 ? `${length / 1024}k` : String(length);
}
