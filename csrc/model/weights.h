// A model's weights in device memory: from a checkpoint, or drawn at random.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "model/checkpoint.h"
#include "model/config.h"

namespace diffqkv {

struct LoadOptions;

// Matrices are [out_features, in_features] in Weights::dtype, norm weights f32.
struct LayerWeights {
  Buffer input_norm, post_attention_norm;  // [hidden_size]
  Buffer q;                                // [q_size, hidden_size]; empty where it is folded into q_gate and q_up
  Buffer q_gate, q_up;  // [aug_q_size, q_size], or folded [aug_q_size, hidden_size]; empty without augmented Q
  Buffer q_down;        // [q_size, aug_q_size]; empty without augmented Q
  Buffer k, v, o;       // [k_size, hidden_size], [v_size, hidden_size], [hidden_size, o_size]
  Buffer k_lift;  // [head_dim_qk, head_dim_k], or its transpose where Q takes it over; empty but for a linear lift
  Buffer k_lift_gate, k_lift_up,
      k_lift_down;        // [inner_size, head_dim_k] twice, [head_dim_qk, inner_size]: a lift by SwiGLU
  Buffer gate, up, down;  // [intermediate_size, hidden_size] twice, [hidden_size, intermediate_size]
};

struct Weights {
  DType dtype = DType::f32;
  // q_proj feeds nothing but the two augmented-Q matrices, and linearly: W_gate W_q and W_up W_q stand for the three.
  bool folded = false;
  Buffer embed;       // [vocab_size, hidden_size]
  Buffer lm_head;     // the same; empty where it is tied to embed
  Buffer norm;        // [hidden_size], f32
  Buffer inv_freq;    // [head_dim_qk / 2], f64
  Buffer k_inv_freq;  // [head_dim_k / 2], f64
  std::vector<LayerWeights> layers;

  const void* output_matrix() const { return lm_head.data() ? lm_head.data() : embed.data(); }
  uint64_t bytes() const;
};

// Parameters as in the checkpoint, before folding; tied embeddings count once.
uint64_t count_parameters(const Config& config);

// Whether W_gate W_q and W_up W_q take fewer bytes than the three matrices that they stand for.
bool folding_saves_bytes(const Config& config);

// Settles what config.json left open (aug_q_size, tie_word_embeddings) by the checkpoint's tensors, then demands that
// every tensor of the model is there with its shape and a known type, and that no layer has one which the model would
// leave out.
void resolve_config(Config& config, const Checkpoint& checkpoint);

// After resolve_config. The matrices take `options.dtype`, by default the type of the embedding matrix.
Weights load_weights(std::shared_ptr<Backend> backend, const Config& config, const Checkpoint& checkpoint,
                     const LoadOptions& options);

// Normal with deviation 1 / sqrt(in_features), norm weights 1. The folded matrices are drawn directly.
Weights random_weights(std::shared_ptr<Backend> backend, const Config& config, DType dtype, const LoadOptions& options,
                       uint64_t seed);

}  // namespace diffqkv
