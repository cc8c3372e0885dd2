// The shape of a model, in this project's terms. Only config.cc and architectures.cc have the names
// of Hugging Face's config.json.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/error.h"
#include "model/architectures.h"

namespace diffqkv {

// Half K dim (arXiv 2501.13629, tables 2, 10 and 13): K is cached at a smaller size, head_dim_k. A
// trained layer, shared by the K heads of a layer, lifts it to head_dim_qk. The paper specifies
// neither the kind of that layer nor whether RoPE comes before it, so the config names the variant.
struct KeyLift {
  enum Kind { none, linear, swiglu };
  Kind kind = none;
  // true: k = rope(lift(cached)). false: k = lift(cached), and RoPE is applied at head_dim_k before
  // caching.
  bool before_rope = false;
  int64_t inner_size = 0;  // of swiglu
  // The lift is applied to Q instead, because q . (W k) = (W^T q) . k. Attention then reads only
  // what is cached.
  bool absorbed() const { return kind == linear && !before_rope; }
  // The lift is applied to the cached keys before attention.
  bool on_keys() const { return kind != none && !absorbed(); }
};

struct Config {
  // aug_q_size if config.json does not give it; resolve_config (weights.h) reads it from the
  // checkpoint.
  static constexpr int64_t kUnknown = -1;

  const Architecture* architecture = nullptr;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t aug_q_size = 0;  // 0 without augmented Q
  int64_t num_layers = 0;
  int64_t vocab_size = 0;
  int64_t num_q_heads = 0;
  int64_t num_k_heads = 0;
  int64_t num_v_heads = 0;
  int64_t head_dim_qk = 0;
  int64_t head_dim_vo = 0;
  int64_t head_dim_k = 0;  // of cached K: head_dim_qk, unless there is a key_lift
  KeyLift key_lift;
  int64_t max_position_embeddings = 0;
  double rope_theta = 0;
  double rms_norm_eps = 0;
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  bool tie_word_embeddings = false;
  bool tie_word_embeddings_given = false;  // if not, they are tied if the checkpoint has no lm_head
  std::optional<int64_t> bos_token_id;
  std::vector<int64_t> eos_token_ids;  // of config.json and generation_config.json
  std::string dtype;                   // as in config.json ("bfloat16"); empty if it has none
  std::vector<double> inv_freq;        // [head_dim_qk / 2], with RoPE scaling applied
  std::vector<double> k_inv_freq;      // [head_dim_k / 2], for K before it is cached
  // YaRN multiplies the rotated Q and K by this factor. The forward graph multiplies the scores by
  // its square instead.
  double rope_attention_factor = 1;

  int64_t q_size() const { return num_q_heads * head_dim_qk; }
  int64_t k_size() const { return num_k_heads * head_dim_k; }  // elements of a cached row
  int64_t v_size() const { return num_v_heads * head_dim_vo; }
  int64_t o_size() const { return num_q_heads * head_dim_vo; }  // input features of o_proj
};

// Reads the text of a config.json. `origin` (a path, or "config") begins every message. Errors in
// the text have the code `malformed`: ERR_INVALID_CHECKPOINT for a file, ERR_INVALID_ARGUMENT for
// an argument. An unsupported architecture or feature is ERR_UNSUPPORTED_MODEL.
Config parse_config(std::string_view text, const std::string& origin, ErrorCode malformed);

// Reads directory/config.json, and the eos tokens of directory/generation_config.json if it exists.
Config load_config(const std::string& directory);

}  // namespace diffqkv
