// The weights of a model in device memory, loaded from a checkpoint or drawn at random.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "model/checkpoint.h"
#include "model/config.h"

namespace diffqkv {

struct LoadOptions;

// Matrices are [out_features, in_features] in Weights::dtype; norm weights and biases are f32. What
// the model does not have is empty.
struct LayerWeights {
  // [hidden_size]: before attention and FFN, and of what they add to the residual stream.
  Buffer input_norm, attention_out_norm;
  Buffer ffn_norm, ffn_out_norm;
  Buffer q_norm, k_norm;  // [head_dim_qk], or [q_size] and [k_size]
  // Of MLA. Low-rank W_q: [q_rank, hidden_size] and the norm [q_rank]; q is then [num_q_heads (nope +
  // rope), q_rank]. Parts of W_kv_a: [rank, hidden_size], [rope, hidden_size], and the norm [rank].
  Buffer q_a, q_a_bias, q_a_norm;
  Buffer latent, latent_bias, latent_norm, rotary, rotary_bias;
  // From W_kv_b, for each head: a row of attention's Q is absorb q, and a V head is expand o.
  Buffer kv_b;    // W_kv_b, [num_q_heads (nope + v), rank]; only while loading
  Buffer absorb;  // [num_q_heads, head_dim_k, nope + rope]
  Buffer expand;  // [num_q_heads, v, head_dim_k]
  // Of differential attention, f32 [head_dim_qk]: lambda = exp(q1 . k1) - exp(q2 . k2) + lambda_init.
  Buffer lambda_q1, lambda_k1, lambda_q2, lambda_k2;
  Buffer difference_norm;  // [head_dim_vo]: 1 - lambda_init in all elements
  float lambda = 0;
  Buffer q_bias, k_bias, v_bias;  // f32, as all biases: [q_size], [k_size], [v_size]
  Buffer o_bias;                  // [hidden_size]
  Buffer gate_bias, up_bias;      // [intermediate_size]
  Buffer down_bias;               // [hidden_size]
  Buffer q;                       // [q_size, hidden_size]; empty if folded into q_gate and q_up
  Buffer q_gate, q_up;            // [aug_q_size, q_size], or folded [aug_q_size, hidden_size]
  Buffer q_down;                  // [q_size, aug_q_size]
  Buffer k;                       // [k_size, hidden_size]
  Buffer v;                       // [v_size, hidden_size]
  Buffer o;                       // [hidden_size, o_size]
  Buffer k_lift;                  // [head_dim_qk, head_dim_k], or its transpose if absorbed by Q
  Buffer k_lift_gate, k_lift_up;  // [inner_size, head_dim_k]
  Buffer k_lift_down;             // [head_dim_qk, inner_size]
  Buffer gate, up;                // [intermediate_size, hidden_size]
  Buffer down;                    // [hidden_size, intermediate_size]
};

// A RopeTable in device memory, f64.
struct RopeBuffers {
  Buffer inv_freq;    // [head_dim_qk / 2]
  Buffer k_inv_freq;  // [head_dim_k / 2]
};

struct Weights {
  DType dtype = DType::f32;
  // The output of q_proj is used only by the gate and up matrices of augmented Q, with nothing
  // nonlinear between them. If folded, q_gate is W_gate W_q and q_up is W_up W_q.
  bool folded = false;
  // Config::embedding_scale. The factor of Gemma is rounded to dtype, as in transformers, because the
  // model was trained so.
  float embedding_scale = 1;
  Buffer embed;    // [vocab_size, hidden_size]
  Buffer lm_head;  // the same shape; empty if tied to embed
  Buffer norm;     // [hidden_size], f32
  // Of MLA, 0 and 1: a cached row is place_latent c + place_rotary r.
  Buffer place_latent;                         // [head_dim_k, rank]
  Buffer place_rotary;                         // [head_dim_k, rope]
  std::vector<RopeBuffers> ropes, long_ropes;  // of Config::ropes and Config::long_ropes
  std::vector<LayerWeights> layers;

  const void* output_matrix() const { return lm_head.data() ? lm_head.data() : embed.data(); }
  uint64_t bytes() const;
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
// checkpoint's matrices, or f32 if these have different types.
Weights load_weights(std::shared_ptr<Backend> backend, const Config& config, const Checkpoint& checkpoint,
                     const LoadOptions& options);

// Normal distribution with standard deviation 1 / sqrt(in_features). Norm weights are 1; a
// bias is drawn as a row of a matrix. Folded
// matrices are drawn directly.
Weights random_weights(std::shared_ptr<Backend> backend, const Config& config, DType dtype, const LoadOptions& options,
                       uint64_t seed);

}  // namespace diffqkv
