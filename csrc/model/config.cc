#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>

#include "model/checkpoint.h"
#include "model/input_file.h"
#include "model/json_text.h"

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
constexpr size_t kMaxEos = 256;                      // duplicates are searched in quadratic time
constexpr int64_t kMaxPositions = int64_t{1} << 30;  // positions are int32 on the device

std::string number_text(double value) {
  char text[40];
  snprintf(text, sizeof text, "%.9g", value);
  return text;
}

using Kind = JsonValue::Kind;

// Reads the fields of one JSON object and throws errors that name them.
class Fields {
 public:
  Fields(const JsonValue& object, std::string origin, ErrorCode malformed, std::string prefix = "")
      : object_(object), origin_(std::move(origin)), malformed_(malformed), prefix_(std::move(prefix)) {}

  // Present and not null.
  bool has(const char* key) const {
    const JsonValue* value = object_.find(key);
    return value && !value->is(Kind::null);
  }

  [[noreturn]] void malformed(const std::string& what) const { fail_at(malformed_, origin_, what); }
  [[noreturn]] void unsupported(const std::string& what) const { fail_at(ErrorCode::unsupported_model, origin_, what); }

  int64_t integer(const char* key, int64_t min, int64_t max) const {
    const JsonValue& value = get(key);
    const std::string range = "; it must be an integer from " + std::to_string(min) + " to " + std::to_string(max);
    if (!value.is(Kind::integer) || value.integer() < min || value.integer() > max)
      malformed(name(key) + " is " + shown(value) + range);
    return value.integer();
  }
  int64_t integer(const char* key, int64_t min, int64_t max, int64_t otherwise) const {
    return has(key) ? integer(key, min, max) : otherwise;
  }

  double positive(const char* key) const {
    const JsonValue& value = get(key);
    const bool good = value.is_number() && std::isfinite(value.number()) && value.number() > 0;
    if (!good) malformed(name(key) + " is " + shown(value) + "; it must be a finite number above 0");
    return value.number();
  }

  bool boolean(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!get(key).is(Kind::boolean)) malformed(name(key) + " is " + shown(get(key)) + "; it must be true or false");
    return get(key).boolean();
  }

  std::string string(const char* key, const char* otherwise) const {
    if (!has(key)) return otherwise;
    if (!get(key).is(Kind::string)) malformed(name(key) + " is " + shown(get(key)) + "; it must be a string");
    return get(key).text();
  }

  Fields object(const char* key) const {
    if (!get(key).is(Kind::object)) malformed(name(key) + " is " + shown(get(key)) + "; it must be an object");
    return Fields(get(key), origin_, malformed_, name(key) + ".");
  }

  const JsonValue& get(const char* key) const {
    const JsonValue* value = object_.find(key);
    if (!value) malformed(name(key) + " is missing");
    return *value;
  }

  std::vector<std::string> keys() const { return object_.keys(); }
  std::string name(const char* key) const { return prefix_ + key; }

  static std::string shown(const JsonValue& value) {
    if (value.is(Kind::object)) return "an object";
    if (value.is(Kind::array)) return "an array";
    return printable(value.written());
  }

 private:
  const JsonValue& object_;
  std::string origin_;
  ErrorCode malformed_;
  std::string prefix_;
};

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
      fields.unsupported("the architecture '" + printable(name) + "' is not supported; it must be " +
                         architecture_titles() + (has_k && has_v ? "" : ". A DiffQKV config has " + lacking));
    }
    quoted += (quoted.empty() ? "'" : ", '") + name + "'";
    if (row == sigma) {
      is_sigma = true;
    } else if (other && other != row) {
      fields.unsupported("the config has the names of two architectures (" + printable(quoted) + ")");
    } else {
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
    {"quantization_config", "quantized weights"},
    {"attn_logit_softcapping", "soft-capped scores"},
    {"final_logit_softcapping", "soft-capped logits"},
    {"rope_interleaved", "interleaved RoPE"},
    {"use_mrope", "multimodal RoPE"},
    {"pruned_heads", "pruned heads"},
    {"add_cross_attention", "cross-attention"},
    {"qk_norm", "normalized Q and K"},
    {"use_qk_norm", "normalized Q and K"},
};

// Rejects keys that change the result, or may change it. Ignoring them would silently produce wrong
// text.
void check_features(const Fields& fields, const Architecture& architecture) {
  const auto is_feature = [](const std::string& key) {
    return std::any_of(std::begin(kFeatures), std::end(kFeatures), [&](const auto& f) { return key == f.key; });
  };
  for (const auto& feature : kFeatures) {
    if (enables(fields, feature.key) && !is_known_key(architecture, feature.key)) {
      fields.unsupported(fields.name(feature.key) + " is " + Fields::shown(fields.get(feature.key)) +
                         ": not supported (" + feature.what + ")");
    }
  }
  // An architecture that needs use_sliding_window has a default for sliding_window.
  const bool has_window = enables(fields, "sliding_window");
  if (fields.boolean("use_sliding_window", architecture.use_sliding_window) &&
      (has_window || !architecture.use_sliding_window)) {
    const char* key = has_window ? "sliding_window" : "use_sliding_window";
    fields.unsupported(std::string(key) + " is " + Fields::shown(fields.get(key)) +
                       ": not supported (sliding-window attention)");
  }
  if (fields.has("layer_types")) {
    const JsonValue& types = fields.get("layer_types");
    if (!types.is(Kind::array)) fields.malformed("layer_types is " + Fields::shown(types) + "; it must be an array");
    for (size_t i = 0; i < types.size(); i++) {
      if (types[i].is(Kind::string) && types[i].text() == "full_attention") continue;
      fields.unsupported("layer_types has " + Fields::shown(types[i]) + "; it must be \"full_attention\"");
    }
  }
  const std::string activation = fields.string("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    fields.unsupported("hidden_act is '" + printable(activation) + "'; it must be 'silu'");
  }
  for (const std::string& key : fields.keys()) {
    if (!fields.has(key.c_str()) || is_known_key(architecture, key) || is_feature(key)) continue;
    fields.unsupported(printable(key) + " is " + Fields::shown(fields.get(key.c_str())) + ": this key is unknown for " +
                       architecture.title +
                       " and may change the result of the model; remove it from config.json if it does not");
  }
}

// The fields of rope_parameters or rope_scaling.
struct Rope {
  std::optional<double> theta;
  std::string type = "default";
  double factor = 1;    // of linear, llama3 and yarn
  double original = 1;  // of llama3 and yarn: the context length before scaling
  // Of llama3.
  double low = 1;
  double high = 4;
  // Of yarn.
  double beta_fast = 32;
  double beta_slow = 1;
  double attention_factor = 1;
  bool truncate = true;

  bool operator==(const Rope&) const = default;
};

void check_whole_rotary(const Fields& fields) {
  if (fields.has("partial_rotary_factor") && fields.positive("partial_rotary_factor") != 1) {
    fields.unsupported(fields.name("partial_rotary_factor") + " is not 1: RoPE of a part of the head is not supported");
  }
}

// YaRN (arXiv 2309.00071), with the defaults of modeling_rope_utils of transformers.
void read_yarn(const Fields& fields, int64_t max_positions, Rope& rope) {
  const auto positive = [&](const char* key, double otherwise) {
    return fields.has(key) ? fields.positive(key) : otherwise;
  };
  rope.original =
      static_cast<double>(fields.integer("original_max_position_embeddings", 1, kMaxPositions, max_positions));
  rope.beta_fast = positive("beta_fast", 32);
  rope.beta_slow = positive("beta_slow", 1);
  rope.truncate = fields.boolean("truncate", true);
  const auto scale = [&](double mscale) { return rope.factor <= 1 ? 1 : 0.1 * mscale * std::log(rope.factor) + 1; };
  const bool has_both = fields.has("mscale") && fields.has("mscale_all_dim");
  rope.attention_factor =
      positive("attention_factor",
               has_both ? scale(fields.positive("mscale")) / scale(fields.positive("mscale_all_dim")) : scale(1));
  if (!(rope.attention_factor > 1e-3 && rope.attention_factor < 1e3)) {
    fields.malformed(fields.name("attention_factor") + " is " + number_text(rope.attention_factor) +
                     "; it must be above 0.001 and below 1000");
  }
}

// `place` is the name of the object in the file.
Rope read_rope_object(const Fields& fields, const std::string& place, int64_t max_positions) {
  Rope rope;
  for (const std::string& key : fields.keys()) {
    if (!fields.has(key.c_str()) || is_known_rope_key(key)) continue;
    fields.unsupported(place + "." + printable(key) + " is " + Fields::shown(fields.get(key.c_str())) +
                       ": this key is unknown and may change the result of the model");
  }
  if (fields.has("rope_theta")) rope.theta = fields.positive("rope_theta");
  check_whole_rotary(fields);
  rope.type = fields.string("rope_type", fields.string("type", "default").c_str());
  if (rope.type == "default") return rope;
  const bool llama3 = rope.type == "llama3";
  const bool yarn = rope.type == "yarn";
  if (!llama3 && !yarn && rope.type != "linear") {
    fields.unsupported(place + ": RoPE scaling of type '" + printable(rope.type) +
                       "' is not supported; it must be 'linear', 'llama3', 'yarn' or 'default'");
  }
  rope.factor = fields.positive("factor");
  if (rope.factor < 1) {
    fields.malformed(fields.name("factor") + " is " + number_text(rope.factor) + "; it must be at least 1");
  }
  if (llama3) {
    rope.low = fields.positive("low_freq_factor");
    rope.high = fields.positive("high_freq_factor");
    rope.original = static_cast<double>(fields.integer("original_max_position_embeddings", 1, kMaxPositions));
    if (rope.low >= rope.high) {
      fields.malformed(fields.name("low_freq_factor") + " (" + number_text(rope.low) +
                       ") must be below high_freq_factor (" + number_text(rope.high) + ")");
    }
  }
  if (yarn) read_yarn(fields, max_positions, rope);
  return rope;
}

// Empty if the key is missing. Files of transformers 5 may have an object for each layer type, such
// as { full_attention: {...}, sliding_attention: {...} }. These must be equal.
std::optional<Rope> read_rope_key(const Fields& fields, const char* key, int64_t max_positions) {
  if (!fields.has(key)) return std::nullopt;
  const Fields object = fields.object(key);
  const std::vector<std::string> names = object.keys();
  const auto is_object = [&](const std::string& name) { return object.get(name.c_str()).is(Kind::object); };
  const auto layer_type = std::find_if(names.begin(), names.end(), is_object);
  if (layer_type == names.end()) return read_rope_object(object, key, max_positions);
  std::optional<Rope> first;
  for (const std::string& name : names) {
    const std::string place = std::string(key) + "." + printable(name);
    if (!is_object(name)) {
      fields.unsupported(place + " is beside the RoPE parameters of the layer type '" + printable(*layer_type) +
                         "'; only other layer types are supported there");
    }
    const Rope rope = read_rope_object(object.object(name.c_str()), place, max_positions);
    if (first && rope != *first) {
      fields.unsupported(std::string(key) + ": the layer types '" + printable(*layer_type) + "' and '" +
                         printable(name) + "' have different RoPE parameters; this is not supported");
    }
    first = rope;
  }
  return first;
}

// The RoPE parameters of the config. rope_theta is set.
Rope read_rope_fields(const Fields& fields, const Config& config) {
  check_whole_rotary(fields);
  // Newer files have all fields in rope_parameters, older ones have rope_theta beside rope_scaling.
  const std::optional<Rope> newer = read_rope_key(fields, "rope_parameters", config.max_position_embeddings);
  std::optional<Rope> older = read_rope_key(fields, "rope_scaling", config.max_position_embeddings);
  Rope rope = newer ? *newer : older.value_or(Rope());
  if (newer && older) {
    if (!rope.theta) rope.theta = older->theta;
    if (!older->theta) older->theta = rope.theta;
    if (rope != *older) {
      fields.malformed("rope_parameters and rope_scaling are both set and differ; keep one of them");
    }
  }
  if (!rope.theta) {
    const std::optional<double>& otherwise = config.architecture->rope_theta;
    rope.theta = otherwise && !fields.has("rope_theta") ? *otherwise : fields.positive("rope_theta");
  }
  // Below 1 the angles would grow with d, beyond the range that float64 can reduce.
  if (*rope.theta < 1) {
    fields.malformed("rope_theta is " + number_text(*rope.theta) + "; it must be at least 1");
  }
  return rope;
}

// The share of extrapolation in pair d of YaRN: 1 for short wavelengths, which keep their frequency,
// 0 for long ones, whose frequency is divided by the factor, and linear between.
double yarn_extrapolation(const Rope& rope, int64_t d, int64_t head_dim) {
  // The pair that turns this many times within the original context length.
  const auto pair_of = [&](double rotations) {
    return static_cast<double>(head_dim) * std::log(rope.original / (rotations * 2 * M_PI)) /
           (2 * std::log(*rope.theta));
  };
  double low = pair_of(rope.beta_fast);
  double high = pair_of(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(head_dim - 1));
  if (low == high) high += 0.001;
  return 1 - std::clamp((static_cast<double>(d) - low) / (high - low), 0.0, 1.0);
}

// The share of the unscaled frequency in a pair of Llama 3: 0 for wavelengths above
// original_max_position_embeddings / low_freq_factor, 1 for those below
// original_max_position_embeddings / high_freq_factor, and linear between.
double llama3_extrapolation(const Rope& rope, double freq) {
  const double wavelength = 2 * M_PI / freq;
  return std::clamp((rope.original / wavelength - rope.low) / (rope.high - rope.low), 0.0, 1.0);
}

// Computes inv_freq[d] = theta^(-2d / head_dim_qk), with the scaling of modeling_rope_utils of
// transformers.
void read_rope(const Fields& fields, Config& config) {
  const Rope rope = read_rope_fields(fields, config);
  config.rope_theta = *rope.theta;
  config.rope_attention_factor = rope.attention_factor;
  if (rope.type == "yarn" && config.rope_theta <= 1) fields.malformed("rope_theta is 1; YaRN needs more");
  if (rope.type == "yarn" && config.key_lift.kind != KeyLift::none) {
    fields.unsupported("RoPE scaling of type 'yarn' is not supported together with key_lift");
  }
  const auto frequencies = [&](int64_t head_dim) {
    std::vector<double> inv_freq(head_dim / 2);
    for (size_t d = 0; d < inv_freq.size(); d++) {
      const double freq = std::pow(config.rope_theta, -2.0 * static_cast<double>(d) / static_cast<double>(head_dim));
      double kept = rope.type == "default" ? 1 : 0;
      if (rope.type == "llama3") kept = llama3_extrapolation(rope, freq);
      if (rope.type == "yarn") kept = yarn_extrapolation(rope, static_cast<int64_t>(d), head_dim);
      inv_freq[d] = (1 - kept) * freq / rope.factor + kept * freq;
    }
    return inv_freq;
  };
  config.inv_freq = frequencies(config.head_dim_qk);
  config.k_inv_freq = frequencies(config.head_dim_k);
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

void read_heads(const Fields& fields, Config& config) {
  config.num_q_heads = fields.integer("num_attention_heads", 1, kMaxHeads);
  const Architecture& architecture = *config.architecture;
  const char* k_key = architecture.k_heads_key;
  const char* v_key = architecture.v_heads_key;
  config.num_k_heads = fields.integer(k_key, 1, kMaxHeads, config.num_q_heads);
  config.num_v_heads = fields.integer(v_key, 1, kMaxHeads, config.num_q_heads);
  const auto check = [&](const char* key, int64_t num_heads) {
    if (config.num_q_heads % num_heads == 0) return;
    fields.malformed("num_attention_heads (" + std::to_string(config.num_q_heads) + ") is not a multiple of " + key +
                     " (" + std::to_string(num_heads) + ")");
  };
  check(k_key, config.num_k_heads);
  check(v_key, config.num_v_heads);
  if (!fields.has("head_dim") && architecture.default_head_dim == 0 && config.hidden_size % config.num_q_heads != 0) {
    fields.malformed("head_dim is missing, and hidden_size (" + std::to_string(config.hidden_size) +
                     ") is not a multiple of num_attention_heads (" + std::to_string(config.num_q_heads) + ")");
  }
  const int64_t otherwise =
      architecture.default_head_dim ? architecture.default_head_dim : config.hidden_size / config.num_q_heads;
  const int64_t size = fields.has("head_dim") ? fields.integer("head_dim", 2, kMaxHeadDim) : otherwise;
  if (size % 2 != 0 || size < 2 || size > kMaxHeadDim) {
    fields.malformed("head_dim is " + std::to_string(size) + "; it must be from 2 to " + std::to_string(kMaxHeadDim) +
                     ", and even, because RoPE rotates pairs");
  }
  config.head_dim_qk = config.head_dim_vo = config.head_dim_k = size;
  if (architecture.diffqkv) read_key_and_value_dims(fields, config);
  if (config.q_size() > kMaxQSize) {
    fields.malformed("num_attention_heads * head_dim is " + std::to_string(config.q_size()) + "; the limit is " +
                     std::to_string(kMaxQSize));
  }
}

}  // namespace

Config parse_config(std::string_view text, const std::string& origin, ErrorCode malformed) {
  const JsonValue json = parse_json_object(text, origin, malformed);
  const Fields fields(json, origin, malformed);
  Config config;
  config.architecture = decide_architecture(fields);
  const Architecture& architecture = *config.architecture;
  check_features(fields, architecture);
  config.hidden_size = fields.integer("hidden_size", 1, kMaxHidden);
  config.intermediate_size = fields.integer("intermediate_size", 1, kMaxInner);
  config.num_layers = fields.integer("num_hidden_layers", 1, kMaxLayers);
  config.vocab_size = fields.integer("vocab_size", 1, kMaxVocab);
  config.max_position_embeddings = fields.integer("max_position_embeddings", 1, kMaxPositions, 2048);
  config.aug_q_size = architecture.diffqkv ? fields.integer("aug_q_dim", 0, kMaxInner, Config::kUnknown) : 0;
  const bool has_eps = fields.has("rms_norm_eps") || !architecture.rms_norm_eps;
  config.rms_norm_eps = has_eps ? fields.positive("rms_norm_eps") : *architecture.rms_norm_eps;
  if (config.rms_norm_eps > 1)
    fields.malformed("rms_norm_eps is " + number_text(config.rms_norm_eps) + "; it must be at most 1");
  config.tie_word_embeddings = fields.boolean("tie_word_embeddings", false);
  config.tie_word_embeddings_given = fields.has("tie_word_embeddings");
  if (fields.has("bos_token_id")) config.bos_token_id = fields.integer("bos_token_id", 0, INT32_MAX);
  read_eos(fields, config.eos_token_ids);
  config.dtype = fields.string("dtype", fields.string("torch_dtype", "").c_str());
  const auto has_bias = [&](const BiasRule& rule) {
    return rule.kind == BiasRule::given_by_key ? fields.boolean(rule.key, false) : rule.kind == BiasRule::present;
  };
  config.qkv_bias = has_bias(architecture.qkv_bias);
  config.o_bias = has_bias(architecture.o_bias);
  config.mlp_bias = has_bias(architecture.mlp_bias);
  read_heads(fields, config);
  read_rope(fields, config);
  return config;
}

Config load_config(const std::string& directory) {
  check_directory(directory);
  constexpr uint64_t kMaxBytes = 1 << 20;  // real files have a few thousand
  const std::string path = directory + "/config.json";
  Config config = parse_config(InputFile(path).read_text(kMaxBytes), path, ErrorCode::invalid_checkpoint);
  // Some checkpoints list the end-of-turn token of a chat only here.
  const std::string generation_path = directory + "/generation_config.json";
  if (file_exists(generation_path)) {
    const std::string text = InputFile(generation_path).read_text(kMaxBytes);
    const JsonValue json = parse_json_object(text, generation_path, ErrorCode::invalid_checkpoint);
    read_eos(Fields(json, generation_path, ErrorCode::invalid_checkpoint), config.eos_token_ids);
  }
  return config;
}

}  // namespace diffqkv
