// The weights of a model in device memory, loaded from a checkpoint or drawn at random.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "model/checkpoint.h"
#include "model/config.h"

namespace diffqkv {

struct LoadOptions;

// A matrix or a vector. A quantized matrix has its scales after its integers.
struct WeightBuffer : Buffer {
  WeightBuffer() = default;
  WeightBuffer(Buffer buffer, DType dtype) : Buffer(std::move(buffer)), dtype(dtype) {}
  WeightView view() const {
    const void* scales = group_size ? as<char>() + scales_offset : nullptr;
    return {data(), dtype, scales, group_size, scale_dtype, true};
  }

  DType dtype = DType::f32;
  int64_t group_size = 0;  // of a quantized matrix
  DType scale_dtype = DType::bf16;
  size_t scales_offset = 0;
};

// How matrices are quantized.
struct WeightFormat {
  DType dtype = DType::i8;  // or i4
  int64_t group_size = 32;
  bool lm_head = true;  // whether that one is, too
};

// Matrices are [out_features, in_features] in Weights::dtype, or quantized, except kv_b, absorb,
// expand and those of the K lift; norm weights and biases are f32. What the model does not have is
// empty.
struct LayerWeights {
  // [hidden_size]: before attention and FFN, and of what they add to the residual stream.
  WeightBuffer input_norm, attention_out_norm;
  WeightBuffer ffn_norm, ffn_out_norm;
  WeightBuffer q_norm, k_norm;  // [head_dim_qk], or [q_size] and [k_size]
  // Of MLA. Low-rank W_q: [q_rank, hidden_size] and the norm [q_rank]; q is then [num_q_heads (nope +
  // rope), q_rank]. Parts of W_kv_a: [rank, hidden_size], [rope, hidden_size], and the norm [rank].
  WeightBuffer q_a, q_a_bias, q_a_norm;
  WeightBuffer latent, latent_bias, latent_norm, rotary, rotary_bias;
  // From W_kv_b, for each head: a row of attention's Q is absorb q, and a V head is expand o.
  WeightBuffer kv_b;    // W_kv_b, [num_q_heads (nope + v), rank]; only while loading
  WeightBuffer absorb;  // [num_q_heads, head_dim_k, nope + rope]
  WeightBuffer expand;  // [num_q_heads, v, head_dim_k]
  // Of differential attention, f32 [head_dim_qk]: lambda = exp(q1 . k1) - exp(q2 . k2) + lambda_init.
  WeightBuffer lambda_q1, lambda_k1, lambda_q2, lambda_k2;
  WeightBuffer difference_norm;  // [head_dim_vo]: 1 - lambda_init in all elements
  float lambda = 0;
  WeightBuffer q_bias, k_bias, v_bias;  // f32, as all biases: [q_size], [k_size], [v_size]
  WeightBuffer o_bias;                  // [hidden_size]
  WeightBuffer gate_bias, up_bias;      // [intermediate_size]
  WeightBuffer down_bias;               // [hidden_size]
  WeightBuffer q;                       // [q_size, hidden_size]; empty if folded into q_gate and q_up
  WeightBuffer q_gate, q_up;            // [aug_q_size, q_size], or folded [aug_q_size, hidden_size]
  WeightBuffer q_down;                  // [q_size, aug_q_size]
  WeightBuffer k;                       // [k_size, hidden_size]
  WeightBuffer v;                       // [v_size, hidden_size]
  WeightBuffer o;                       // [hidden_size, o_size]
  WeightBuffer k_lift;                  // [head_dim_qk, head_dim_k], or its transpose if absorbed by Q
  WeightBuffer k_lift_gate, k_lift_up;  // [inner_size, head_dim_k]
  WeightBuffer k_lift_down;             // [head_dim_qk, inner_size]
  WeightBuffer gate, up;                // [intermediate_size, hidden_size]
  WeightBuffer down;                    // [hidden_size, intermediate_size]
};

// A RopeTable in device memory, f64.
struct RopeBuffers {
  Buffer inv_freq;    // [head_dim_qk / 2]
  Buffer k_inv_freq;  // [head_dim_k / 2]
};

// Bytes in device memory by part.
struct WeightBytes {
  uint64_t embedding = 0, output = 0;  // output: 0 if it is the embedding
  uint64_t attention = 0;
  uint64_t augmented_q = 0;  // with W_q, if that is folded into it
  uint64_t ffn = 0;
  uint64_t other = 0;  // norms and the tables of RoPE

  uint64_t total() const { return embedding + output + attention + augmented_q + ffn + other; }
};

struct Weights {
  DType dtype = DType::f32;  // of the embedding, of matrices that are not quantized, and of activations
  // If matrices are quantized, at load or in the checkpoint: of most of their elements.
  std::optional<WeightFormat> format;
  // The output of q_proj is used only by the gate and up matrices of augmented Q, with nothing
  // nonlinear between them. If folded, q_gate is W_gate W_q and q_up is W_up W_q.
  bool folded = false;
  // Config::embedding_scale. The factor of Gemma is rounded to dtype, as in transformers, because the
  // model was trained so.
  float embedding_scale = 1;
  WeightBuffer embed;    // [vocab_size, hidden_size]
  WeightBuffer lm_head;  // the same shape; empty if tied to embed, unless only lm_head is quantized
  WeightBuffer norm;     // [hidden_size], f32
  // Of MLA, 0 and 1: a cached row is place_latent c + place_rotary r.
  WeightBuffer place_latent;                   // [head_dim_k, rank]
  WeightBuffer place_rotary;                   // [head_dim_k, rope]
  std::vector<RopeBuffers> ropes, long_ropes;  // of Config::ropes and Config::long_ropes
  std::vector<LayerWeights> layers;

  WeightView output_matrix() const { return lm_head.data() ? lm_head.view() : embed.view(); }
  WeightBytes bytes() const;
  // All of them, in an order that depends on nothing but the model's shape. Some are empty.
  std::vector<const Buffer*> buffers() const;
};

// Number of parameters in the checkpoint, before folding. Tied embeddings count once.
uint64_t count_parameters(const Config& config);

// Whether W_gate W_q and W_up W_q have fewer bytes than the three matrices that they replace.
bool folding_saves_bytes(const Config& config);

// Determines values that config.json does not give (aug_q_size, tie_word_embeddings) from the
// tensors of the checkpoint. An lm_head that differs from the embedding is used even if the config
// ties them, as in transformers 5. Then checks that every tensor of the model exists with the right shape
// and a supported type, and that no layer has a tensor that the model would ignore.
void resolve_config(Config& config, const Checkpoint& checkpoint);

// Call resolve_config first. Matrices have the type options.dtype, by default that of the
// checkpoint's matrices, or f32 if these have different types. With options.weight_format, they are
// quantized from the values in the checkpoint.
Weights load_weights(std::shared_ptr<Backend> backend, const Config& config, const Checkpoint& checkpoint,
                     const LoadOptions& options);

// Normal distribution with standard deviation 1 / sqrt(in_features). Norm weights are 1; a
// bias is drawn as a row of a matrix. Folded
// matrices are drawn directly.
Weights random_weights(std::shared_ptr<Backend> backend, const Config& config, DType dtype, const LoadOptions& options,
                       uint64_t seed);

}  // namespace diffqkv
