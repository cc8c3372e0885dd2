#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

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

// Reads rope_theta and computes inv_freq[d] = theta^(-2d / head_dim_qk), with the scaling of Llama
// 3 as in modeling_rope_utils of transformers: wavelengths above original_max_position_embeddings /
// low_freq_factor are multiplied by `factor`, those below original_max_position_embeddings /
// high_freq_factor are unchanged, and between them the frequencies are interpolated linearly.
void read_rope(const Fields& fields, Config& config) {
  // Newer files have all fields in rope_parameters, older ones have rope_theta beside rope_scaling.
  const char* key = fields.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (fields.has("rope_parameters") && fields.has("rope_scaling")) {
    fields.malformed("rope_parameters and rope_scaling are both set; keep one of them");
  }
  const bool scaled = fields.has(key);
  const Fields scaling = scaled ? fields.object(key) : fields;
  if (scaled && scaling.has("rope_theta")) {
    config.rope_theta = scaling.positive("rope_theta");
  } else if (config.architecture == "llama" && !fields.has("rope_theta")) {
    config.rope_theta = 10000;  // LlamaConfig's default
  } else {
    config.rope_theta = fields.positive("rope_theta");
  }
  // Below 1 the angles would grow with d, beyond the range that float64 can reduce.
  if (config.rope_theta < 1) {
    fields.malformed("rope_theta is " + number_text(config.rope_theta) + "; it must be at least 1");
  }
  for (const Fields* place : {&fields, &scaling}) {
    if (place->has("partial_rotary_factor") && place->positive("partial_rotary_factor") != 1) {
      place->unsupported(place->name("partial_rotary_factor") +
                         " is not 1: RoPE of a part of the head is not supported");
    }
  }
  std::string type = "default";
  if (scaled) type = scaling.string("rope_type", scaling.string("type", "default").c_str());
  if (type != "default" && type != "llama3") {
    fields.unsupported(std::string(key) + ": RoPE scaling of type '" + printable(type) +
                       "' is not supported; it must be 'llama3' or 'default'");
  }
  double factor = 1;
  double low = 1;
  double high = 4;
  double original = 1;
  if (type == "llama3") {
    factor = scaling.positive("factor");
    if (factor < 1) fields.malformed(scaling.name("factor") + " is " + number_text(factor) + "; it must be at least 1");
    low = scaling.positive("low_freq_factor");
    high = scaling.positive("high_freq_factor");
    original = static_cast<double>(scaling.integer("original_max_position_embeddings", 1, kMaxPositions));
    if (low >= high) {
      fields.malformed(scaling.name("low_freq_factor") + " (" + number_text(low) +
                       ") must be below high_freq_factor (" + number_text(high) + ")");
    }
  }
  const auto frequencies = [&](int64_t head_dim) {
    std::vector<double> inv_freq(head_dim / 2);
    for (size_t d = 0; d < inv_freq.size(); d++) {
      double freq = std::pow(config.rope_theta, -2.0 * static_cast<double>(d) / static_cast<double>(head_dim));
      if (type == "llama3") {
        const double wavelength = 2 * M_PI / freq;
        // 0 for long wavelengths, 1 for short ones.
        const double kept = std::clamp((original / wavelength - low) / (high - low), 0.0, 1.0);
        freq = (1 - kept) * freq / factor + kept * freq;
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
