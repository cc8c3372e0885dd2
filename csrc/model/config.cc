#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "model/checkpoint.h"
#include "model/config_fields.h"
#include "model/input_file.h"
#include "model/rope_config.h"

namespace diffqkv {
namespace {

// Limits far above real models. Under them no product of sizes overflows an int64: a matrix has at
// most 2^24 * 2^20 elements, and a model at most 2^12 layers of about ten matrices.
constexpr int64_t kMaxHidden = int64_t{1} << 20;
constexpr int64_t kMaxInner = int64_t{1} << 22;
constexpr int64_t kMaxLayers = int64_t{1} << 12;
constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kMaxHeads = int64_t{1} << 14;
constexpr int64_t kMaxHeadDim = int64_t{1} << 12;
constexpr int64_t kMaxQSize = int64_t{1} << 22;
constexpr size_t kMaxEos = 256;  // duplicates are searched in quadratic time

using Kind = JsonValue::Kind;

// The names of the architecture: the entries of `architectures`, then `model_type`.
std::vector<std::string> architecture_names(const Fields& fields) {
  std::vector<std::string> names;
  if (fields.has("architectures")) {
    const JsonValue& list = fields.get("architectures");
    for (size_t i = 0; i < list.size() && list.is(Kind::array) && list[i].is(Kind::string); i++)
      names.push_back(list[i].text());
    if (!list.is(Kind::array) || names.size() < list.size())
      fields.malformed("architectures must be an array of strings");
  }
  if (fields.has("model_type")) names.push_back(fields.string("model_type", ""));
  return names;
}

// Whether `row` is the one that replaces `other` if config.json has layer_types. A file may have the
// names of both.
bool replaces(const Architecture& row, const Architecture& other) {
  return other.with_layer_types && std::string_view(row.name) == other.with_layer_types;
}

// Head counts decide whether a config is DiffQKV, not its name: there are public configs named
// "sigma" of other architectures. A config that is named Llama and has both counts is DiffQKV.
const Architecture* decide_architecture(const Fields& fields) {
  const bool has_k = fields.has("num_key_heads"), has_v = fields.has("num_value_heads");
  const std::string lacking = has_k ? "num_value_heads" : has_v ? "num_key_heads" : "num_key_heads and num_value_heads";
  const Architecture* sigma = find_architecture("sigma");
  const Architecture* other = nullptr;
  bool is_sigma = false;
  std::string quoted;
  for (const std::string& name : architecture_names(fields)) {
    const Architecture* row = find_architecture(name);
    if (!row) {
      for (const char* key : {"text_config", "llm_config", "language_config"}) {
        if (!fields.has(key) || fields.has("hidden_size")) continue;
        fields.unsupported("the sizes of the text model are in " + std::string(key) + ", as in a multimodal model (" +
                           printable(name) + "), which is not supported: pass a checkpoint of a text model");
      }
      fields.unsupported("the architecture '" + printable(name) + "' is not supported; it must be " +
                         architecture_titles() + (has_k && has_v ? "" : ". A DiffQKV config has " + lacking));
    }
    quoted += (quoted.empty() ? "'" : ", '") + name + "'";
    if (row == sigma) {
      is_sigma = true;
    } else if (other && replaces(*row, *other)) {
      other = row;
    } else if (other && other != row && !replaces(*other, *row)) {
      fields.unsupported("the config has the names of two architectures (" + printable(quoted) + ")");
    } else if (!other) {
      other = row;
    }
  }
  const bool may_be_sigma = !other || other == find_architecture("llama");
  if (has_k && has_v && may_be_sigma) return sigma;
  if (!may_be_sigma && is_sigma) {
    fields.unsupported("the config has the names of two architectures (" + printable(quoted) + ")");
  }
  if (other && !is_sigma && (!may_be_sigma || (!has_k && !has_v))) return other;
  fields.unsupported(
      "the config (" + (quoted.empty() ? std::string("no model_type, no architectures") : printable(quoted)) +
      ") has no " + lacking + ", so it is not DiffQKV; models named Sigma without them have another architecture. " +
      architecture_titles() + " is supported");
}

// Whether a key enables a feature: not missing, null, false, 0 or empty.
bool enables(const Fields& fields, const char* key) {
  if (!fields.has(key)) return false;
  const JsonValue& value = fields.get(key);
  if (value.is(Kind::boolean)) return value.boolean();
  if (value.is_number()) return value.number() != 0;
  return value.is(Kind::string) || value.size() > 0;
}

// Features that are not implemented. A key that turns its feature off is accepted.
constexpr struct {
  const char* key;
  const char* what;
} kFeatures[] = {
    {"attention_bias", "biases in attention"},
    {"qkv_bias", "biases in attention"},
    {"mlp_bias", "biases in the FFN"},
    {"num_experts", "mixture of experts"},
    {"num_local_experts", "mixture of experts"},
    {"n_routed_experts", "mixture of experts"},
    {"moe_intermediate_size", "mixture of experts"},
    {"kv_lora_rank", "multi-head latent attention"},
    {"q_lora_rank", "multi-head latent attention"},
    {"attn_logit_softcapping", "soft-capped scores"},
    {"final_logit_softcapping", "soft-capped logits"},
    {"rope_interleaved", "interleaved RoPE"},
    {"use_bidirectional_attention", "attention to later tokens"},
    {"lm_head_bias", "a bias of the output matrix"},
    {"use_mrope", "multimodal RoPE"},
    {"pruned_heads", "pruned heads"},
    {"add_cross_attention", "cross-attention"},
    {"qk_norm", "normalized Q and K"},
    {"use_qk_norm", "normalized Q and K"},
};

void reject_features(const Fields& fields, const Architecture& architecture) {
  for (const auto& feature : kFeatures) {
    if (enables(fields, feature.key) && !is_known_key(architecture, feature.key)) {
      fields.unsupported(fields.name(feature.key) + " is " + Fields::shown(fields.get(feature.key)) +
                         ": not supported (" + feature.what + ")");
    }
  }
}

// Rejects keys that change the result, or may change it. Ignoring them would silently produce wrong
// text.
void check_features(const Fields& fields, const Architecture& architecture) {
  const auto is_feature = [](const std::string& key) {
    return std::any_of(std::begin(kFeatures), std::end(kFeatures), [&](const auto& f) { return key == f.key; });
  };
  reject_features(fields, architecture);
  // Files of Phi-4-mini have these keys, which transformers does not read.
  for (const char* key : {"full_attn_mod", "interpolate_factor"}) {
    if (is_known_key(architecture, key) && fields.integer(key, INT32_MIN, INT32_MAX, 1) != 1)
      fields.unsupported(std::string(key) + " is " + Fields::shown(fields.get(key)) + "; it must be 1");
  }
  for (const std::string& key : fields.keys()) {
    if (!fields.has(key.c_str()) || is_known_key(architecture, key) || is_feature(key)) continue;
    fields.unsupported(fields.name(printable(key).c_str()) + " is " + Fields::shown(fields.get(key.c_str())) +
                       ": this key is unknown for " + architecture.title +
                       " and may change the result of the model; remove it from config.json if it does not");
  }
}

const Architecture* with_layer_types(const Fields& fields, const Architecture* row) {
  const bool replaced = row->with_layer_types && fields.has("layer_types");
  return replaced ? find_architecture(row->with_layer_types) : row;
}

// The config of a text model, or text_config of a known multimodal model.
struct TextConfig {
  Fields fields;
  const Architecture* architecture;
};

TextConfig text_config(const Fields& config) {
  const Architecture* row = nullptr;
  const std::vector<std::string> names = architecture_names(config);
  if (config.has("text_config")) {
    for (const std::string& name : names) row = row ? row : find_multimodal(name);
  }
  if (!row) return {config, with_layer_types(config, decide_architecture(config))};
  for (const std::string& name : names) {
    if (find_multimodal(name) == row) continue;
    config.unsupported("the config is named '" + printable(name) + "', which is not a multimodal " + row->title);
  }
  reject_features(config, *row);
  for (const std::string& key : config.keys()) {
    if (!config.has(key.c_str()) || is_known_multimodal_key(key) || is_known_key(*row, key)) continue;
    config.unsupported(printable(key) + " is " + Fields::shown(config.get(key.c_str())) +
                       ": this key is unknown beside text_config and may change the result of the model; remove it "
                       "from config.json if it does not");
  }
  const Fields text = config.object("text_config");
  const bool is_named = !architecture_names(text).empty();
  if (is_named && decide_architecture(text) != row) {
    config.unsupported("text_config has another architecture than " + std::string(row->title) +
                       ", which this multimodal model has");
  }
  // The classes of multimodal models in transformers have their own output layer, which has no cap.
  if (enables(text, "final_logit_softcapping")) {
    config.unsupported(text.name("final_logit_softcapping") + " is " +
                       Fields::shown(text.get("final_logit_softcapping")) +
                       ": not supported in a multimodal model (soft-capped logits)");
  }
  return {text, row};
}

// eos_token_id is a number, a list of numbers, or null.
void read_eos(const Fields& fields, std::vector<int64_t>& ids) {
  if (!fields.has("eos_token_id")) return;
  const JsonValue& value = fields.get("eos_token_id");
  if (value.is(Kind::array) && value.size() > kMaxEos)
    fields.malformed("eos_token_id has " + std::to_string(value.size()) + " tokens; the limit is " +
                     std::to_string(kMaxEos));
  const auto add = [&](const JsonValue& item) {
    const bool good = item.is(Kind::integer) && item.integer() >= 0 && item.integer() <= INT32_MAX;
    if (!good)
      fields.malformed("eos_token_id has the value " + Fields::shown(item) +
                       "; it must be a token id, a list of token ids or null");
    if (std::find(ids.begin(), ids.end(), item.integer()) == ids.end()) ids.push_back(item.integer());
  };
  if (!value.is(Kind::array)) return add(value);
  for (size_t i = 0; i < value.size(); i++) add(value[i]);
}

// This project's own fields: value_head_dim, and key_head_dim with key_lift { kind, position,
// intermediate_size }.
void read_key_and_value_dims(const Fields& fields, Config& config) {
  config.head_dim_vo = fields.integer("value_head_dim", 1, kMaxHeadDim, config.head_dim_vo);
  if (config.num_q_heads * config.head_dim_vo > kMaxQSize) {
    fields.malformed("num_attention_heads * value_head_dim is " +
                     std::to_string(config.num_q_heads * config.head_dim_vo) + "; the limit is " +
                     std::to_string(kMaxQSize));
  }
  config.head_dim_k = fields.integer("key_head_dim", 2, config.head_dim_qk, config.head_dim_qk);
  if (config.head_dim_k % 2 != 0) {
    fields.malformed("key_head_dim is " + std::to_string(config.head_dim_k) +
                     "; it must be even, because RoPE rotates pairs");
  }
  if (!fields.has("key_lift")) {
    if (config.head_dim_k == config.head_dim_qk) return;
    fields.malformed("key_head_dim (" + std::to_string(config.head_dim_k) + ") is below head_dim (" +
                     std::to_string(config.head_dim_qk) + "), but key_lift, the layer that lifts K, is missing");
  }
  const Fields lift = fields.object("key_lift");
  const auto one_of = [&](const char* key, const char* first, const char* second) {
    lift.get(key);  // missing is malformed
    const std::string value = lift.string(key, "");
    if (value != first && value != second) {
      lift.malformed(lift.name(key) + " is '" + printable(value) + "'; it must be '" + first + "' or '" + second + "'");
    }
    return value == second;
  };
  const bool swiglu = one_of("kind", "linear", "swiglu");
  config.key_lift.kind = swiglu ? KeyLift::swiglu : KeyLift::linear;
  config.key_lift.before_rope = one_of("position", "after_rope", "before_rope");
  if (swiglu) config.key_lift.inner_size = lift.integer("intermediate_size", 1, kMaxInner);
}

// The activation of the FFN, by its names in transformers.
Activation read_activation(const Fields& fields, const Architecture& architecture) {
  static constexpr struct {
    const char* name;
    Activation activation;
  } kNames[] = {
      {"silu", Activation::silu},          {"swish", Activation::silu},
      {"gelu", Activation::gelu},          {"gelu_pytorch_tanh", Activation::gelu_tanh},
      {"gelu_new", Activation::gelu_tanh}, {"gelu_fast", Activation::gelu_tanh},
      {"relu", Activation::relu},          {"relu2", Activation::relu2},
  };
  const char* key = architecture.activation_key;
  const std::string name = fields.string(key, architecture.activation);
  if (name == "gelu" && architecture.gelu_is_tanh) return Activation::gelu_tanh;
  for (const auto& row : kNames) {
    if (name == row.name) return row.activation;
  }
  fields.unsupported(fields.name(key) + " is '" + printable(name) +
                     "'; it must be 'silu', 'gelu', 'gelu_pytorch_tanh', 'relu' or 'relu2'");
}

// For each layer, 1 if it rotates Q and K (no_rope_layers; the name says the opposite).
std::vector<bool> read_rope_layers(const Fields& fields, int64_t num_layers) {
  std::vector<bool> rotated(num_layers);
  if (!fields.has("no_rope_layers")) {
    const int64_t interval = fields.integer("no_rope_layer_interval", 1, kMaxLayers, 4);
    for (int64_t i = 0; i < num_layers; i++) rotated[i] = (i + 1) % interval != 0;
    return rotated;
  }
  const JsonValue& list = fields.get("no_rope_layers");
  bool good = list.is(Kind::array) && static_cast<int64_t>(list.size()) >= num_layers;
  for (int64_t i = 0; good && i < num_layers; i++) {
    good = list[i].is(Kind::integer) && (list[i].integer() == 0 || list[i].integer() == 1);
    if (good) rotated[i] = list[i].integer() == 1;
  }
  if (!good) {
    fields.malformed("no_rope_layers must be an array with a 0 or a 1 for each of the " + std::to_string(num_layers) +
                     " layers");
  }
  return rotated;
}

// The window of the layers that have one; 0 if none has.
int64_t read_window(const Fields& fields, const WindowRule& rule) {
  if (rule.pattern == WindowRule::none) {
    if (fields.boolean("use_sliding_window", true) && enables(fields, "sliding_window")) {
      fields.unsupported("sliding_window is " + Fields::shown(fields.get("sliding_window")) +
                         ": not supported (sliding-window attention)");
    }
    return 0;
  }
  if (rule.enabled_by_key && !fields.boolean("use_sliding_window", false)) return 0;
  if (!fields.given("sliding_window")) return rule.otherwise;
  return fields.integer("sliding_window", 1, kMaxPositions, 0);
}

// Whether each layer has a window by the pattern of the architecture.
std::vector<bool> window_pattern(const Fields& fields, const WindowRule& rule, const std::vector<bool>& rotated) {
  const int64_t num_layers = static_cast<int64_t>(rotated.size());
  std::vector<bool> windowed(num_layers, rule.pattern == WindowRule::all);
  if (rule.pattern == WindowRule::from_layer) {
    const int64_t first = fields.integer("max_window_layers", 0, kMaxLayers, 28);
    for (int64_t i = first; i < num_layers; i++) windowed[i] = true;
  } else if (rule.pattern == WindowRule::periodic) {
    const int64_t period = rule.period_key ? fields.integer(rule.period_key, 1, kMaxLayers, rule.period) : rule.period;
    for (int64_t i = 0; i < num_layers; i++) windowed[i] = (i + 1) % period != 0;
  } else if (rule.pattern == WindowRule::without_rope) {
    for (int64_t i = 0; i < num_layers; i++) windowed[i] = !rotated[i];
  }
  return windowed;
}

// layer_types, for each layer whether it is "sliding_attention" and not "full_attention".
std::vector<bool> read_layer_types(const Fields& fields, int64_t num_layers) {
  const JsonValue& types = fields.get("layer_types");
  if (!types.is(Kind::array)) fields.malformed("layer_types is " + Fields::shown(types) + "; it must be an array");
  if (static_cast<int64_t>(types.size()) != num_layers) {
    fields.malformed("layer_types has " + std::to_string(types.size()) + " entries for " + std::to_string(num_layers) +
                     " layers");
  }
  std::vector<bool> windowed(num_layers);
  for (int64_t i = 0; i < num_layers; i++) {
    const std::string type = types[i].is(Kind::string) ? types[i].text() : "";
    if (type != "full_attention" && type != "sliding_attention") {
      fields.unsupported("layer_types has " + Fields::shown(types[i]) +
                         "; it must have \"full_attention\" or \"sliding_attention\"");
    }
    windowed[i] = type == "sliding_attention";
  }
  return windowed;
}

// Window and RoPE of each layer.
void read_layers(const Fields& fields, Config& config) {
  const Architecture& architecture = *config.architecture;
  const WindowRule& rule = architecture.window;
  const int64_t num_layers = config.num_layers;
  std::vector<bool> rotated(num_layers, true);
  if (architecture.rope_layers == RopeLayers::by_key) rotated = read_rope_layers(fields, num_layers);
  const int64_t window = read_window(fields, rule);
  const bool has_types = fields.has("layer_types");
  std::vector<bool> windowed(num_layers, false);
  if (has_types) windowed = read_layer_types(fields, num_layers);
  const bool any = std::find(windowed.begin(), windowed.end(), true) != windowed.end();
  if (any && window == 0) {
    fields.unsupported("layer_types has \"sliding_attention\", but " +
                       (rule.pattern == WindowRule::none
                            ? std::string(architecture.title) + " has no layers with a window"
                            : "sliding_window is not set"));
  }
  const bool may_lack_window =
      rule.pattern != WindowRule::periodic || architecture.rope_layers == RopeLayers::with_a_window;
  if (window == 0 && !has_types && !may_lack_window) {
    fields.unsupported("sliding_window is null, but " + std::string(architecture.title) + " has layers with a window");
  }
  if (window > 0 && (!has_types || !rule.reads_layer_types)) {
    const std::vector<bool> pattern = window_pattern(fields, rule, rotated);
    if (has_types && windowed != pattern) {
      fields.unsupported("layer_types differs from sliding_window, which is for all layers of " +
                         std::string(architecture.title));
    }
    windowed = pattern;
  }
  if (architecture.rope_layers == RopeLayers::with_a_window && window > 0) rotated = windowed;
  config.layers.resize(num_layers);
  const bool all_windowed = std::find(windowed.begin(), windowed.end(), false) == windowed.end();
  config.widest_window = all_windowed ? window : 0;
  for (int64_t i = 0; i < num_layers; i++) {
    config.layers[i].window = windowed[i] ? window : 0;
    config.layers[i].rope = !rotated[i] ? -1 : windowed[i] && architecture.local_rope ? 1 : 0;
  }
}

// The factors of the embedding, the scores, the residual stream and the logits, and the soft caps.
void read_scales(const Fields& fields, Config& config) {
  const Architecture& architecture = *config.architecture;
  const auto factor = [&](const char* key, double otherwise) {
    const double value = fields.positive(key, otherwise);
    if (!(value >= 1e-6 && value <= 1e6))
      fields.malformed(fields.name(key) + " is " + number_text(value) + "; it must be from 1e-6 to 1e6");
    return value;
  };
  const ScaleRule& rule = architecture.attention_scale;
  if (rule.kind == ScaleRule::from_head_size) {
    const int64_t size = config.is_latent() ? config.latent.nope + config.latent.rope : config.head_dim_qk;
    config.score_scale = 1 / std::sqrt(static_cast<double>(size));
  } else {
    const double value = factor(rule.key, rule.otherwise);
    config.score_scale = rule.kind == ScaleRule::factor ? value : 1 / std::sqrt(value);
  }
  const auto softcap = [&](const char* key, double otherwise) {
    if (std::find(architecture.keys.begin(), architecture.keys.end(), key) == architecture.keys.end()) return 0.0;
    if (!fields.given(key)) return otherwise;
    return fields.has(key) ? factor(key, 0) : 0.0;
  };
  config.score_softcap = softcap("attn_logit_softcapping", architecture.attention_softcap);
  config.logit_softcap = softcap("final_logit_softcapping", architecture.logit_softcap);
  if (architecture.scales_embedding) config.embedding_scale = std::sqrt(static_cast<double>(config.hidden_size));
  config.residual_eps = config.rms_norm_eps;
  if (architecture.has_depth_scale) {
    const auto layers = static_cast<double>(config.num_layers), hidden = static_cast<double>(config.hidden_size);
    const double residual =
        factor("scale_depth", fields.given("scale_depth") ? std::sqrt(layers) : 1.4) / std::sqrt(layers);
    config.embedding_scale = factor("scale_emb", 12) / residual;
    config.residual_eps = config.rms_norm_eps / (residual * residual);
    config.logit_scale = factor("dim_model_base", fields.given("dim_model_base") ? hidden : 256) / hidden;
  }
  if (!architecture.has_multipliers) return;
  const double residual = factor("residual_multiplier", 1);
  config.embedding_scale = factor("embedding_multiplier", 1) / residual;
  config.residual_eps = config.rms_norm_eps / (residual * residual);
  config.logit_scale = 1 / factor("logits_scaling", 1);
}

// In the checkpoint the heads a are the first half of the query heads, those b the second half, and
// likewise their K heads. V head j is the heads j and j + num_v_heads of v_proj, side by side.
void make_differential(const Fields& fields, Config& config) {
  if (config.num_k_heads % 2 != 0) {
    fields.malformed("num_key_value_heads is " + std::to_string(config.num_k_heads) +
                     "; it must be even, because the attention heads are pairs");
  }
  config.differential = true;
  config.num_v_heads = config.num_k_heads / 2;
  config.head_dim_vo = 2 * config.head_dim_qk;
  const int64_t head_dim = config.head_dim_qk;
  // The order of `count` heads in which each half of a pair of groups of `group` heads comes from
  // another half of the stored heads.
  const auto paired = [&](int64_t count, int64_t group) {
    std::vector<int32_t> order;
    for (int64_t head = 0; head < count; head++) {
      const int64_t pair = head / (2 * group), within = head % (2 * group);
      const int64_t stored = pair * group + within % group + (within < group ? 0 : count / 2);
      for (int64_t d = 0; d < head_dim; d++) order.push_back(static_cast<int32_t>(stored * head_dim + d));
    }
    return order;
  };
  config.q_order = paired(config.num_q_heads, config.num_q_heads / config.num_k_heads);
  config.k_order = paired(config.num_k_heads, 1);
  config.v_order = paired(config.num_k_heads, 1);
}

// MLA: one K head, which is also the V head.
void make_latent(const Fields& fields, Config& config) {
  const LatentRule& rule = config.architecture->latent;
  Latent& latent = config.latent;
  // A missing key has the default, and null means one matrix.
  if (!fields.given("q_lora_rank"))
    latent.q_rank = rule.q_lora_rank;
  else
    latent.q_rank = fields.integer("q_lora_rank", 1, kMaxHidden, 0);
  latent.rank = fields.integer("kv_lora_rank", 2, kMaxHeadDim, rule.kv_lora_rank);
  latent.nope = fields.integer("qk_nope_head_dim", 1, kMaxHeadDim, rule.qk_nope_head_dim);
  latent.rope = fields.integer("qk_rope_head_dim", 2, kMaxHeadDim, rule.qk_rope_head_dim);
  const int64_t v = rule.v_head_dim ? rule.v_head_dim : config.hidden_size / config.num_q_heads;
  latent.v = fields.integer("v_head_dim", 1, kMaxHeadDim, std::max<int64_t>(v, 1));
  for (const char* key : {"kv_lora_rank", "qk_rope_head_dim"}) {
    const int64_t size = key[0] == 'k' ? latent.rank : latent.rope;
    if (size % 2 != 0) fields.malformed(std::string(key) + " is " + std::to_string(size) + "; it must be even");
  }
  if (config.num_k_heads != config.num_q_heads) {
    fields.unsupported("num_key_value_heads is " + std::to_string(config.num_k_heads) +
                       "; latent attention has one K and one V head for each of the " +
                       std::to_string(config.num_q_heads) + " query heads");
  }
  config.num_k_heads = config.num_v_heads = 1;
  config.head_dim_qk = config.head_dim_k = config.head_dim_vo = latent.rank + latent.rope;
}

// The key is required if it has no default (0).
int64_t read_count(const Fields& fields, const char* key, int64_t max, int64_t otherwise) {
  return otherwise > 0 ? fields.integer(key, 1, max, otherwise) : fields.integer(key, 1, max);
}

void read_heads(const Fields& fields, Config& config) {
  const Architecture& architecture = *config.architecture;
  config.num_q_heads = read_count(fields, "num_attention_heads", kMaxHeads, architecture.default_q_heads);
  const char* k_key = architecture.k_heads_key;
  const char* v_key = architecture.v_heads_key;
  // A null means num_attention_heads for every architecture.
  const auto otherwise_heads = [&](const char* key, int64_t by_default) {
    return by_default > 0 && !fields.given(key) ? by_default : config.num_q_heads;
  };
  config.num_k_heads = fields.integer(k_key, 1, kMaxHeads, otherwise_heads(k_key, architecture.default_k_heads));
  config.num_v_heads = fields.integer(v_key, 1, kMaxHeads, otherwise_heads(v_key, architecture.default_v_heads));
  const auto check = [&](const char* key, int64_t num_heads) {
    if (config.num_q_heads % num_heads == 0) return;
    fields.malformed("num_attention_heads (" + std::to_string(config.num_q_heads) + ") is not a multiple of " + key +
                     " (" + std::to_string(num_heads) + ")");
  };
  check(k_key, config.num_k_heads);
  check(v_key, config.num_v_heads);
  // A null means hidden_size / num_attention_heads for every architecture.
  const int64_t default_size = fields.given("head_dim") ? 0 : architecture.default_head_dim;
  if (!fields.has("head_dim") && default_size == 0 && config.hidden_size % config.num_q_heads != 0) {
    fields.malformed("head_dim is missing, and hidden_size (" + std::to_string(config.hidden_size) +
                     ") is not a multiple of num_attention_heads (" + std::to_string(config.num_q_heads) + ")");
  }
  const int64_t otherwise = default_size ? default_size : config.hidden_size / config.num_q_heads;
  const int64_t size = fields.has("head_dim") ? fields.integer("head_dim", 2, kMaxHeadDim) : otherwise;
  if (size % 2 != 0 || size < 2 || size > kMaxHeadDim) {
    fields.malformed("head_dim is " + std::to_string(size) + "; it must be from 2 to " + std::to_string(kMaxHeadDim) +
                     ", and even, because RoPE rotates pairs");
  }
  config.head_dim_qk = config.head_dim_vo = config.head_dim_k = size;
  if (architecture.diffqkv) read_key_and_value_dims(fields, config);
  if (architecture.differential) make_differential(fields, config);
  if (architecture.latent.present) make_latent(fields, config);
  if (config.q_size() > kMaxQSize) {
    fields.malformed("num_attention_heads * head_dim is " + std::to_string(config.q_size()) + "; the limit is " +
                     std::to_string(kMaxQSize));
  }
}

}  // namespace

Config parse_config(std::string_view text, const std::string& origin, ErrorCode malformed) {
  const JsonValue json = parse_json_object(text, origin, malformed);
  const Fields all(json, origin, malformed);
  const TextConfig text_model = text_config(all);
  const Fields& fields = text_model.fields;
  const Architecture& architecture = *text_model.architecture;
  Config config;
  config.architecture = &architecture;
  check_features(fields, architecture);
  config.hidden_size = fields.integer("hidden_size", 1, kMaxHidden);
  config.intermediate_size = fields.integer("intermediate_size", 1, kMaxInner);
  config.num_layers = fields.integer("num_hidden_layers", 1, kMaxLayers);
  config.vocab_size = read_count(fields, "vocab_size", kMaxVocab, architecture.default_vocab_size);
  config.max_position_embeddings =
      fields.integer("max_position_embeddings", 1, kMaxPositions, architecture.default_max_positions);
  config.aug_q_size = architecture.diffqkv ? fields.integer("aug_q_dim", 0, kMaxInner, Config::kUnknown) : 0;
  const bool has_eps = fields.has("rms_norm_eps") || !architecture.rms_norm_eps;
  config.rms_norm_eps = has_eps ? fields.positive("rms_norm_eps") : *architecture.rms_norm_eps;
  if (config.rms_norm_eps > 1)
    fields.malformed("rms_norm_eps is " + number_text(config.rms_norm_eps) + "; it must be at most 1");
  for (const Fields* place : {&fields, &all}) {  // the latter takes precedence
    config.tie_word_embeddings = place->boolean("tie_word_embeddings", config.tie_word_embeddings);
    config.tie_word_embeddings_given = config.tie_word_embeddings_given || place->has("tie_word_embeddings");
    if (place->has("bos_token_id")) config.bos_token_id = place->integer("bos_token_id", 0, INT32_MAX);
    read_eos(*place, config.eos_token_ids);
    config.dtype = place->string("dtype", place->string("torch_dtype", config.dtype.c_str()).c_str());
  }
  const auto has_bias = [&](const BiasRule& rule) {
    return rule.kind == BiasRule::given_by_key ? fields.boolean(rule.key, rule.otherwise)
                                               : rule.kind == BiasRule::present;
  };
  config.qkv_bias = has_bias(architecture.qkv_bias);
  config.o_bias = has_bias(architecture.o_bias);
  config.mlp_bias = has_bias(architecture.mlp_bias);
  config.activation = read_activation(fields, architecture);
  read_heads(fields, config);
  config.quantization = read_quantization(all.has("quantization_config") ? all : fields);
  read_scales(fields, config);
  read_rope(fields, config);
  read_layers(fields, config);
  return config;
}

Config parse_checkpoint_config(const std::string& directory, const std::string& config,
                               const std::optional<std::string>& generation_config) {
  Config result = parse_config(config, directory + "/config.json", ErrorCode::invalid_checkpoint);
  if (generation_config) {
    // Some checkpoints list the end-of-turn token of a chat only here.
    const std::string path = directory + "/generation_config.json";
    const JsonValue json = parse_json_object(*generation_config, path, ErrorCode::invalid_checkpoint);
    read_eos(Fields(json, path, ErrorCode::invalid_checkpoint), result.eos_token_ids);
  }
  return result;
}

Config load_config(const std::string& directory) {
  check_directory(directory);
  constexpr uint64_t kMaxBytes = 1 << 20;  // real files have a few thousand
  const std::string config = InputFile(directory + "/config.json").read_text(kMaxBytes);
  const std::string generation_path = directory + "/generation_config.json";
  std::optional<std::string> generation_config;
  if (file_exists(generation_path)) generation_config = InputFile(generation_path).read_text(kMaxBytes);
  return parse_checkpoint_config(directory, config, generation_config);
}

}  // namespace diffqkv
