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
  const char* key = "";    // of config.json, a boolean; used with given_by_key
  bool otherwise = false;  // if the key is missing
};

// Which layers have a window, and its size.
struct WindowRule {
  enum Pattern {
    none,          // no layer; a window in config.json is rejected
    all,           // every layer
    from_layer,    // the layers from max_window_layers on
    periodic,      // all but every n-th layer
    without_rope,  // the layers without RoPE
  };
  Pattern pattern = none;
  bool reads_layer_types = true;  // layer_types replaces the pattern; if not, it must agree with it
  // The size if the key sliding_window is missing; 0: no window.
  int64_t otherwise = 0;
  bool enabled_by_key = false;       // sliding_window has no effect unless use_sliding_window is true
  const char* period_key = nullptr;  // with periodic
  int64_t period = 0;                // with periodic, if the key is missing or null
};

// Which layers rotate Q and K.
enum class RopeLayers {
  all,
  by_key,         // no_rope_layers has 1 for those that do
  with_a_window,  // all, if no layer has a window
};

// How config.json gives the factor of the scores.
struct ScaleRule {
  enum Kind {
    from_head_size,
    inverse_root,
    factor
  };  // 1 over the root of the size of a Q head, or of the key, or the key
  Kind kind = from_head_size;
  const char* key = "";
  double otherwise = 1;  // if the key is missing
};

// Multi-head latent attention (arXiv 2405.04434): see Latent in config.h. The defaults of its keys.
struct LatentRule {
  bool present = false;
  int64_t q_lora_rank = 0, kv_lora_rank = 0, qk_nope_head_dim = 0, qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;         // 0: hidden_size / num_attention_heads
  bool reads_interleave = false;  // the key rope_interleave, by default true
};

struct Architecture {
  const char* name;                       // ModelConfig.architecture
  const char* title;                      // in messages
  std::vector<std::string_view> aliases;  // in `architectures` and `model_type`
  // The name of the row that replaces this one if config.json has layer_types, or null. AutoConfig of
  // transformers does so; text_config of a multimodal model is read as it is.
  const char* with_layer_types = nullptr;
  // Names of multimodal models that have this one in text_config. Without images they are equal.
  std::vector<std::string_view> multimodal_aliases = {};
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

  // Names of the tensors in a layer. The norms before attention and FFN, and of what each of them
  // adds to the residual stream; null if there is none.
  const char* input_norm = "input_layernorm.weight";
  const char* attention_out_norm = nullptr;
  const char* ffn_norm = "post_attention_layernorm.weight";
  const char* ffn_out_norm = nullptr;
  // RMSNorm of Q and K before RoPE, or null. It applies to each head, with one weight for all, or to
  // all heads together.
  const char* q_norm = nullptr;
  const char* k_norm = nullptr;
  bool norm_whole_rows = false;
  // Norm weights are stored less 1.
  bool norm_plus_one = false;
  // Q, K and V in one matrix, and gate and up of the FFN; null if they have their own.
  const char* qkv = nullptr;
  const char* gate_up = nullptr;
  // Differential attention (arXiv 2410.05258): see Config::differential.
  bool differential = false;
  LatentRule latent = {};
  // The keys scale_emb, scale_depth and dim_model_base are read.
  bool has_depth_scale = false;
  bool has_gate = true;  // false: the FFN is W_down act(W_up x)

  const char* activation_key = "hidden_act";
  const char* activation = "silu";  // if the key is missing
  bool gelu_is_tanh = false;        // "gelu" means "gelu_pytorch_tanh"
  bool scales_embedding = false;    // by sqrt(hidden_size)
  ScaleRule attention_scale = {};
  // The keys embedding_multiplier, residual_multiplier and logits_scaling are read.
  bool has_multipliers = false;
  // Of attn_logit_softcapping and final_logit_softcapping, if they are missing; 0: none.
  double attention_softcap = 0;
  double logit_softcap = 0;

  WindowRule window = {};
  RopeLayers rope_layers = RopeLayers::all;
  bool interleaved_rope = false;  // pairs are (2d, 2d + 1), not (d, d + n/2)
  // Layers with a window have RoPE parameters of their own. If config.json has no object for each
  // layer type, they are not scaled, and their base is this key, or the default of rope_theta if it is null.
  bool local_rope = false;
  const char* local_rope_theta_key = nullptr;
  std::optional<double> local_rope_theta = std::nullopt;

  // Defaults of its configuration class in transformers. A key without a default is required.
  std::optional<double> rope_theta = std::nullopt;
  std::optional<double> rms_norm_eps = std::nullopt;
  int64_t default_head_dim = 0;  // 0: hidden_size / num_attention_heads
  // 0: required; num_attention_heads; the same.
  int64_t default_q_heads = 0, default_k_heads = 0, default_v_heads = 0;
  int64_t default_vocab_size = 0;  // 0: required
  int64_t default_max_positions = 2048;
  int64_t original_max_position_embeddings = 0;                // 0: the key is read in rope_parameters only
  std::optional<double> partial_rotary_factor = std::nullopt;  // none: the whole head is rotated
};

const std::vector<Architecture>& architectures();

// The row with this name in `architectures` or `model_type`, or null.
const Architecture* find_architecture(std::string_view alias);
// The row of the text model of a multimodal model with this name, or null.
const Architecture* find_multimodal(std::string_view alias);

// "Sigma (DiffQKV), Llama or Qwen3"
std::string architecture_titles();

// Whether a key of config.json is read for this architecture, or known not to change the result.
bool is_known_key(const Architecture& architecture, std::string_view key);
// The same for the keys beside text_config, which are about images.
bool is_known_multimodal_key(std::string_view key);
// The same for the keys of rope_parameters and rope_scaling.
bool is_known_rope_key(std::string_view key);

}  // namespace diffqkv
