// The table of architectures. A row says in which ways the models of an architecture differ from
// those of the others. config.cc, weights.cc and forward.cc read the rows; none of them tests for
// an architecture by its name.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace diffqkv {

// Whether some linear layers have biases.
struct BiasRule {
  enum Kind { absent, present, given_by_key };
  Kind kind = absent;
  const char* key = "";  // of config.json, a boolean; used with given_by_key
};

struct Architecture {
  const char* name;                       // ModelConfig.architecture
  const char* title;                      // in messages
  std::vector<std::string_view> aliases;  // in `architectures` and `model_type`
  // Keys of config.json. DiffQKV models have a head count for K and one for V, and fields of this
  // project; the others have one key for both.
  bool diffqkv = false;
  const char* k_heads_key = "num_key_value_heads";
  const char* v_heads_key = "num_key_value_heads";
  // Keys that only this architecture reads. A key that no list has is rejected, unless it is null.
  std::vector<std::string_view> keys = {};

  BiasRule qkv_bias = {};
  BiasRule o_bias = {};
  BiasRule mlp_bias = {};
  // RMSNorm of each head of Q and K before RoPE, with one weight for all heads: names of the
  // tensors in a layer, or null.
  const char* q_norm = nullptr;
  const char* k_norm = nullptr;

  // Defaults of its configuration class in transformers. A key without a default is required.
  std::optional<double> rope_theta = std::nullopt;
  std::optional<double> rms_norm_eps = std::nullopt;
  int64_t default_head_dim = 0;  // 0: hidden_size / num_attention_heads
  // Of use_sliding_window, without which sliding_window has no effect.
  bool use_sliding_window = true;
};

const std::vector<Architecture>& architectures();

// The row with this name in `architectures` or `model_type`, or null.
const Architecture* find_architecture(std::string_view alias);

// "Sigma (DiffQKV), Llama or Qwen3"
std::string architecture_titles();

// Whether a key of config.json is read for this architecture, or known not to change the result.
bool is_known_key(const Architecture& architecture, std::string_view key);
// The same for the keys of rope_parameters and rope_scaling.
bool is_known_rope_key(std::string_view key);

}  // namespace diffqkv
