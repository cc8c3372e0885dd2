// A model's shape in this project's words. config.cc is the one file that knows the names of Hugging Face's
// config.json.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/error.h"

namespace diffqkv {

// Half K dim (tables 2, 10 and 13 of the paper): K is cached at a smaller size, head_dim_k, and a trained layer, shared by a
// layer's K heads, lifts it to head_dim_qk. The paper says neither what layer that is nor on which side of RoPE it stands: all are
// here, and the config names the variant.
struct KeyLift {
  enum Kind { none, linear, swiglu };
  Kind kind = none;
  bool before_rope = false;  // k = rope(lift(cached)), else k = lift(cached), cached after RoPE at head_dim_k
  int64_t inner_size = 0;    // of swiglu
  // q . (W k) = (W^T q) . k: Q takes the lift over, and decoding reads no more than is cached.
  bool absorbed() const { return kind == linear && !before_rope; }
  bool on_keys() const { return kind != none && !absorbed(); }
};

struct Config {
  // aug_q_size before the checkpoint's tensors have settled it (resolve_config in weights.h).
  static constexpr int64_t kUnknown = -1;

  std::string architecture;  // "sigma" or "llama"
  int64_t hidden_size = 0, intermediate_size = 0;
  int64_t aug_q_size = 0;  // 0 without augmented Q
  int64_t num_layers = 0, vocab_size = 0;
  int64_t num_q_heads = 0, num_k_heads = 0, num_v_heads = 0;
  int64_t head_dim_qk = 0, head_dim_vo = 0;
  int64_t head_dim_k = 0;  // of K as it is cached: head_dim_qk, but for a key_lift
  KeyLift key_lift;
  int64_t max_position_embeddings = 0;
  double rope_theta = 0, rms_norm_eps = 0;
  bool tie_word_embeddings = false;
  bool tie_word_embeddings_given = false;  // else the checkpoint decides: it has an lm_head or not
  std::optional<int64_t> bos_token_id;
  std::vector<int64_t> eos_token_ids;  // of config.json and generation_config.json, each once
  std::string dtype;                   // as config.json says it ("bfloat16"); empty where it does not
  std::vector<double> inv_freq;        // [head_dim_qk / 2], RoPE scaling applied
  std::vector<double> k_inv_freq;      // [head_dim_k / 2]: of K on its way to the cache

  int64_t q_size() const { return num_q_heads * head_dim_qk; }
  int64_t k_size() const { return num_k_heads * head_dim_k; }  // of one cached row
  int64_t v_size() const { return num_v_heads * head_dim_vo; }
  int64_t o_size() const { return num_q_heads * head_dim_vo; }  // what attention gives to o_proj
};

// Reads the text of a config.json. `origin` stands in front of every message (a path, or "config"). What the text gets
// wrong is `malformed` (ERR_INVALID_CHECKPOINT for a file, ERR_INVALID_ARGUMENT for an argument); an architecture or a
// feature that this project does not have is ERR_UNSUPPORTED_MODEL and named.
Config parse_config(std::string_view text, const std::string& origin, ErrorCode malformed);

// directory/config.json, and the eos tokens of directory/generation_config.json where there is one.
Config load_config(const std::string& directory);

}  // namespace diffqkv
