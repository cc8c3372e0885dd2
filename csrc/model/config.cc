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

// "sigma" or "llama". Head counts decide whether a config is DiffQKV, not its name: there are
// public configs named "sigma" of other architectures.
std::string decide_architecture(const Fields& fields) {
  const bool has_k = fields.has("num_key_heads"), has_v = fields.has("num_value_heads");
  const std::string lacking = has_k ? "num_value_heads" : has_v ? "num_key_heads" : "num_key_heads and num_value_heads";
  bool named_sigma = false;
  bool named_llama = false;
  std::string quoted;
  for (const std::string& name : architecture_names(fields)) {
    if (name == "SigmaForCausalLM" || name == "sigma" || name == "diffqkv") {
      named_sigma = true;
    } else if (name == "LlamaForCausalLM" || name == "llama") {
      named_llama = true;
    } else {
      fields.unsupported("the architecture '" + printable(name) +
                         "' is not supported; it must be Sigma (DiffQKV) or Llama" +
                         (has_k && has_v ? "" : ". A DiffQKV config has " + lacking));
    }
    quoted += (quoted.empty() ? "'" : ", '") + name + "'";
  }
  if (has_k && has_v) return "sigma";
  if (named_llama && !named_sigma && !has_k && !has_v) return "llama";
  fields.unsupported("the config (" +
                     (quoted.empty() ? std::string("no model_type, no architectures") : printable(quoted)) +
                     ") has no " + lacking +
                     ", so it is not DiffQKV; models named Sigma without them have another architecture. Sigma "
                     "(DiffQKV) and Llama are "
                     "supported");
}

// Whether a key enables a feature: not missing, null, false, 0 or empty.
bool enables(const Fields& fields, const char* key) {
  if (!fields.has(key)) return false;
  const JsonValue& value = fields.get(key);
  if (value.is(Kind::boolean)) return value.boolean();
  if (value.is_number()) return value.number() != 0;
  return value.is(Kind::string) || value.size() > 0;
}

// Rejects features that change the result and are not implemented. Ignoring them would silently
// produce wrong text.
void check_features(const Fields& fields) {
  static constexpr struct {
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
      {"qk_norm", "normalized Q and K"},
      {"use_qk_norm", "normalized Q and K"},
  };
  for (const auto& feature : kFeatures) {
    if (enables(fields, feature.key)) {
      fields.unsupported(fields.name(feature.key) + " is " + Fields::shown(fields.get(feature.key)) +
                         ": not supported (" + feature.what + ")");
    }
  }
  if (enables(fields, "sliding_window") && fields.boolean("use_sliding_window", true)) {
    fields.unsupported("sliding_window is " + Fields::shown(fields.get("sliding_window")) +
                       ": not supported (sliding-window attention)");
  }
  const std::string activation = fields.string("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    fields.unsupported("hidden_act is '" + printable(activation) + "'; it must be 'silu'");
  }
}

// The fields of rope_parameters or rope_scaling. The numbers below rope_theta are those of Llama 3.
struct Rope {
  std::optional<double> theta;
  std::string type = "default";
  double factor = 1;
  double low = 1;
  double high = 4;
  double original = 1;

  bool operator==(const Rope&) const = default;
};

void check_whole_rotary(const Fields& fields) {
  if (fields.has("partial_rotary_factor") && fields.positive("partial_rotary_factor") != 1) {
    fields.unsupported(fields.name("partial_rotary_factor") + " is not 1: RoPE of a part of the head is not supported");
  }
}

// `place` is the name of the object in the file.
Rope read_rope_object(const Fields& fields, const std::string& place) {
  Rope rope;
  if (fields.has("rope_theta")) rope.theta = fields.positive("rope_theta");
  check_whole_rotary(fields);
  rope.type = fields.string("rope_type", fields.string("type", "default").c_str());
  if (rope.type == "default") return rope;
  if (rope.type != "llama3") {
    fields.unsupported(place + ": RoPE scaling of type '" + printable(rope.type) +
                       "' is not supported; it must be 'llama3' or 'default'");
  }
  rope.factor = fields.positive("factor");
  if (rope.factor < 1) {
    fields.malformed(fields.name("factor") + " is " + number_text(rope.factor) + "; it must be at least 1");
  }
  rope.low = fields.positive("low_freq_factor");
  rope.high = fields.positive("high_freq_factor");
  rope.original = static_cast<double>(fields.integer("original_max_position_embeddings", 1, kMaxPositions));
  if (rope.low >= rope.high) {
    fields.malformed(fields.name("low_freq_factor") + " (" + number_text(rope.low) +
                     ") must be below high_freq_factor (" + number_text(rope.high) + ")");
  }
  return rope;
}

// Empty if the key is missing. Files of transformers 5 may have an object for each layer type, such
// as { full_attention: {...}, sliding_attention: {...} }. These must be equal.
std::optional<Rope> read_rope_key(const Fields& fields, const char* key) {
  if (!fields.has(key)) return std::nullopt;
  const Fields object = fields.object(key);
  const std::vector<std::string> names = object.keys();
  const auto is_object = [&](const std::string& name) { return object.get(name.c_str()).is(Kind::object); };
  const auto layer_type = std::find_if(names.begin(), names.end(), is_object);
  if (layer_type == names.end()) return read_rope_object(object, key);
  std::optional<Rope> first;
  for (const std::string& name : names) {
    const std::string place = std::string(key) + "." + printable(name);
    if (!is_object(name)) {
      fields.unsupported(place + " is beside the RoPE parameters of the layer type '" + printable(*layer_type) +
                         "'; only other layer types are supported there");
    }
    const Rope rope = read_rope_object(object.object(name.c_str()), place);
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
  const std::optional<Rope> newer = read_rope_key(fields, "rope_parameters");
  std::optional<Rope> older = read_rope_key(fields, "rope_scaling");
  Rope rope = newer ? *newer : older.value_or(Rope());
  if (newer && older) {
    if (!rope.theta) rope.theta = older->theta;
    if (!older->theta) older->theta = rope.theta;
    if (rope != *older) {
      fields.malformed("rope_parameters and rope_scaling are both set and differ; keep one of them");
    }
  }
  if (!rope.theta) {
    const bool has_default = config.architecture == "llama" && !fields.has("rope_theta");  // of LlamaConfig
    rope.theta = has_default ? 10000 : fields.positive("rope_theta");
  }
  // Below 1 the angles would grow with d, beyond the range that float64 can reduce.
  if (*rope.theta < 1) {
    fields.malformed("rope_theta is " + number_text(*rope.theta) + "; it must be at least 1");
  }
  return rope;
}

// Computes inv_freq[d] = theta^(-2d / head_dim_qk), with the scaling of Llama 3 as in
// modeling_rope_utils of transformers: wavelengths above original_max_position_embeddings /
// low_freq_factor are multiplied by `factor`, those below original_max_position_embeddings /
// high_freq_factor are unchanged, and between them the frequencies are interpolated linearly.
void read_rope(const Fields& fields, Config& config) {
  const Rope rope = read_rope_fields(fields, config);
  config.rope_theta = *rope.theta;
  const auto frequencies = [&](int64_t head_dim) {
    std::vector<double> inv_freq(head_dim / 2);
    for (size_t d = 0; d < inv_freq.size(); d++) {
      double freq = std::pow(config.rope_theta, -2.0 * static_cast<double>(d) / static_cast<double>(head_dim));
      if (rope.type == "llama3") {
        const double wavelength = 2 * M_PI / freq;
        // 0 for long wavelengths, 1 for short ones.
        const double kept = std::clamp((rope.original / wavelength - rope.low) / (rope.high - rope.low), 0.0, 1.0);
        freq = (1 - kept) * freq / rope.factor + kept * freq;
      }
      inv_freq[d] = freq;
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
  const bool sigma = config.architecture == "sigma";
  const char* k_key = sigma ? "num_key_heads" : "num_key_value_heads";
  const char* v_key = sigma ? "num_value_heads" : "num_key_value_heads";
  config.num_k_heads = fields.integer(k_key, 1, kMaxHeads, config.num_q_heads);
  config.num_v_heads = fields.integer(v_key, 1, kMaxHeads, config.num_q_heads);
  const auto check = [&](const char* key, int64_t num_heads) {
    if (config.num_q_heads % num_heads == 0) return;
    fields.malformed("num_attention_heads (" + std::to_string(config.num_q_heads) + ") is not a multiple of " + key +
                     " (" + std::to_string(num_heads) + ")");
  };
  check(k_key, config.num_k_heads);
  check(v_key, config.num_v_heads);
  if (!fields.has("head_dim") && config.hidden_size % config.num_q_heads != 0) {
    fields.malformed("head_dim is missing, and hidden_size (" + std::to_string(config.hidden_size) +
                     ") is not a multiple of num_attention_heads (" + std::to_string(config.num_q_heads) + ")");
  }
  const int64_t size =
      fields.has("head_dim") ? fields.integer("head_dim", 2, kMaxHeadDim) : config.hidden_size / config.num_q_heads;
  if (size % 2 != 0 || size < 2 || size > kMaxHeadDim) {
    fields.malformed("head_dim is " + std::to_string(size) + "; it must be from 2 to " + std::to_string(kMaxHeadDim) +
                     ", and even, because RoPE rotates pairs");
  }
  config.head_dim_qk = config.head_dim_vo = config.head_dim_k = size;
  if (sigma) read_key_and_value_dims(fields, config);
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
  check_features(fields);
  const bool sigma = config.architecture == "sigma";
  config.hidden_size = fields.integer("hidden_size", 1, kMaxHidden);
  config.intermediate_size = fields.integer("intermediate_size", 1, kMaxInner);
  config.num_layers = fields.integer("num_hidden_layers", 1, kMaxLayers);
  config.vocab_size = fields.integer("vocab_size", 1, kMaxVocab);
  config.max_position_embeddings = fields.integer("max_position_embeddings", 1, kMaxPositions, 2048);
  config.aug_q_size = sigma ? fields.integer("aug_q_dim", 0, kMaxInner, Config::kUnknown) : 0;
  // 1e-6 is the default of LlamaConfig. The paper has none for Sigma.
  config.rms_norm_eps = !sigma && !fields.has("rms_norm_eps") ? 1e-6 : fields.positive("rms_norm_eps");
  if (config.rms_norm_eps > 1)
    fields.malformed("rms_norm_eps is " + number_text(config.rms_norm_eps) + "; it must be at most 1");
  config.tie_word_embeddings = fields.boolean("tie_word_embeddings", false);
  config.tie_word_embeddings_given = fields.has("tie_word_embeddings");
  if (fields.has("bos_token_id")) config.bos_token_id = fields.integer("bos_token_id", 0, INT32_MAX);
  read_eos(fields, config.eos_token_ids);
  config.dtype = fields.string("dtype", fields.string("torch_dtype", "").c_str());
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
