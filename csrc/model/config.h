// The shape of a model, in this project's terms. Only config.cc and architectures.cc have the names
// of Hugging Face's config.json.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/activation.h"
#include "backend/error.h"
#include "model/architectures.h"
#include "model/quantization.h"

namespace diffqkv {

inline constexpr int64_t kMaxPositions = int64_t{1} << 30;  // positions are int32 on the device

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

// Multi-head latent attention (MLA, arXiv 2405.04434). K and V of all heads are products of one
// latent vector of a token and matrices of each head, k_nope = W_uk c and v = W_uv c; k has also a
// rotated part that the heads share. The cache has c and that part: one K head of rank + rope
// dimensions, which is also the V head. W_uk is applied to Q and W_uv to the output of attention
// (absorbed), so attention reads only what is cached.
struct Latent {
  int64_t q_rank = 0;  // of the low-rank W_q; 0: one matrix
  int64_t rank = 0;    // of c; 0: no MLA
  int64_t nope = 0;    // dimensions of a head of Q that are not rotated
  int64_t rope = 0;    // and those that are, after them
  int64_t v = 0;       // dimensions of a V head
  // The dimension of (c, rotated part) at each dimension of a cached row, so that RoPE rotates
  // dimension d with d + (rank + rope) / 2.
  std::vector<int32_t> order;
};

// Angular frequencies of the pairs of a head. A pair with frequency 0 is not rotated.
struct RopeTable {
  std::vector<double> inv_freq;    // [head_dim_qk / 2], with RoPE scaling applied
  std::vector<double> k_inv_freq;  // [head_dim_k / 2], for K before it is cached
  // YaRN and LongRoPE multiply the rotated Q and K by this factor.
  double attention_factor = 1;
};

struct LayerConfig {
  int64_t window = 0;  // number of keys that a query sees, with its own; 0: all before it
  int rope = 0;        // index in Config::ropes, or -1: none
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
  // Of the norms of the residual stream. Granite multiplies what a layer adds to it by a factor r.
  // The stream here is divided by r instead, so that its eps is rms_norm_eps / r^2.
  double residual_eps = 0;
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  bool tie_word_embeddings = false;
  bool tie_word_embeddings_given = false;  // if not, they are tied if the checkpoint has no lm_head
  // The config ties them, but the checkpoint has another lm_head, which is used.
  bool has_untied_lm_head = false;
  std::optional<int64_t> bos_token_id;
  std::vector<int64_t> eos_token_ids;  // of config.json and generation_config.json
  std::string dtype;                   // as in config.json ("bfloat16"); empty if it has none
  Activation activation = Activation::silu;
  std::vector<LayerConfig> layers;  // [num_layers]
  std::vector<RopeTable> ropes;
  // LongRoPE and dynamic RoPE have other frequencies in a context longer than this. 0: all contexts
  // have the same.
  int64_t original_context = 0;
  std::vector<RopeTable> long_ropes;  // LongRoPE, else empty
  // Dynamic RoPE: the frequencies depend on the length (dynamic_rope in rope_config.h).
  double dynamic_factor = 0;  // 0: none
  bool is_dynamic() const { return dynamic_factor > 0; }
  int64_t rotary_dim = 0;  // dimensions of a head that are rotated
  // The rows of W_q, W_k and W_v have another order than in the checkpoint: row i of each group of
  // order.size() rows is row order[i] of that group there. Empty: the same order. Q and K have it so
  // that dimension d is rotated with d + head_dim_qk / 2, and all three if the model is differential.
  std::vector<int32_t> q_order, k_order, v_order;
  // Differential attention (arXiv 2410.05258): the query heads are pairs (a, b) that read one V head
  // of twice the size, and their output is (1 - lambda_init) rms_norm(attention(a) - lambda
  // attention(b)). The V heads are num_k_heads / 2; for each of them come its heads a, then its
  // heads b.
  bool differential = false;
  double score_scale = 0;    // of q . k
  double score_softcap = 0;  // 0: none
  double embedding_scale = 1;
  double logit_scale = 1;    // multiplies the weights of the last norm
  double logit_softcap = 0;  // 0: none

  // The widest window of a layer: no key before it is read again. 0: a layer sees all keys.
  int64_t widest_window = 0;

  Quantization quantization;  // how the checkpoint stores matrices

  Latent latent;
  bool is_latent() const { return latent.rank > 0; }

  int64_t q_size() const { return num_q_heads * head_dim_qk; }
  int64_t k_size() const { return num_k_heads * head_dim_k; }  // elements of a cached row
  int64_t v_size() const { return num_v_heads * head_dim_vo; }
  int64_t attention_size() const { return num_q_heads * head_dim_vo; }
  int64_t o_size() const {  // input of o_proj
    if (is_latent()) return num_q_heads * latent.v;
    return differential ? attention_size() / 2 : attention_size();
  }
};

// Reads the text of a config.json. `origin` (a path, or "config") begins every message. Errors in
// the text have the code `malformed`: ERR_INVALID_CHECKPOINT for a file, ERR_INVALID_ARGUMENT for
// an argument. An unsupported architecture or feature is ERR_UNSUPPORTED_MODEL.
Config parse_config(std::string_view text, const std::string& origin, ErrorCode malformed);

// Reads the texts of config.json and, if it is not null, of generation_config.json, which may have
// more eos tokens. `directory` begins every message.
Config parse_checkpoint_config(const std::string& directory, const std::string& config,
                               const std::optional<std::string>& generation_config);
// Reads these files of a directory.
Config load_config(const std::string& directory);

}  // namespace diffqkv
