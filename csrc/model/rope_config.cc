#include "model/rope_config.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

namespace diffqkv {
namespace {

using Kind = JsonValue::Kind;

// The fields of rope_parameters or rope_scaling.
struct Rope {
  std::optional<double> theta;
  std::string type = "default";
  double factor = 1;         // of linear, llama3 and yarn
  double original = 1;       // of llama3, yarn and longrope: the context length before scaling
  double rotary_factor = 1;  // share of the dimensions of a head that are rotated: the first ones
  // Of llama3.
  double low = 1;
  double high = 4;
  // Of yarn.
  double beta_fast = 32;
  double beta_slow = 1;
  bool truncate = true;
  double attention_factor = 1;  // of yarn and longrope
  double score_factor = 1;      // of MLA: multiplies the scores
  // Of longrope, for contexts up to and above the original length.
  std::vector<double> short_factor;
  std::vector<double> long_factor;

  bool operator==(const Rope&) const = default;
};

// What an object of RoPE parameters may depend on.
struct RopeContext {
  const Architecture& architecture;
  std::optional<int64_t> max_positions;  // none: max_position_embeddings is missing
  std::optional<int64_t> original;       // original_max_position_embeddings beside rope_parameters
  double rotary_factor;                  // if the object has none
};

int64_t max_positions(const Fields& fields, const RopeContext& context) {
  if (!context.max_positions) fields.malformed("max_position_embeddings is missing, and RoPE depends on it");
  return *context.max_positions;
}

double read_rotary_factor(const Fields& fields, const Architecture& architecture, double otherwise) {
  const double factor = fields.positive("partial_rotary_factor", otherwise);
  if (factor > 1) {
    fields.malformed(fields.name("partial_rotary_factor") + " is " + number_text(factor) + "; it must be at most 1");
  }
  if (factor != 1 && !architecture.partial_rotary_factor) {
    fields.unsupported(fields.name("partial_rotary_factor") + " is " + number_text(factor) +
                       "; RoPE of a part of the head is not supported for " + architecture.title);
  }
  return factor;
}

void check_attention_factor(const Fields& fields, double factor) {
  if (factor > 1e-3 && factor < 1e3) return;
  fields.malformed(fields.name("attention_factor") + " is " + number_text(factor) +
                   "; it must be above 0.001 and below 1000");
}

// The factor of YaRN for an extension of the context.
double yarn_scale(double factor, double mscale) { return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1; }

// 0 is the same as no value.
bool has_mscale(const Fields& fields, const char* key) {
  return fields.has(key) && !(fields.get(key).is_number() && fields.get(key).number() == 0);
}

// YaRN (arXiv 2309.00071), with the defaults of modeling_rope_utils of transformers.
void read_yarn(const Fields& fields, Rope& rope) {
  rope.beta_fast = fields.positive("beta_fast", 32);
  rope.beta_slow = fields.positive("beta_slow", 1);
  rope.truncate = fields.boolean("truncate", true);
  const auto scale = [&](double mscale) { return yarn_scale(rope.factor, mscale); };
  const bool has_both = has_mscale(fields, "mscale") && has_mscale(fields, "mscale_all_dim");
  rope.attention_factor = fields.positive(
      "attention_factor",
      has_both ? scale(fields.positive("mscale")) / scale(fields.positive("mscale_all_dim")) : scale(1));
  check_attention_factor(fields, rope.attention_factor);
}

// LongRoPE (arXiv 2402.13753): each pair has a factor of its own, and another one in a context
// longer than the original. The default of attention_factor is that of transformers.
void read_longrope(const Fields& fields, const RopeContext& context, Rope& rope) {
  const auto read_factors = [&](const char* key) {
    const JsonValue& list = fields.get(key);
    if (!list.is(Kind::array))
      fields.malformed(fields.name(key) + " is " + Fields::shown(list) + "; it must be an array");
    std::vector<double> factors;
    for (size_t i = 0; i < list.size(); i++) {
      const bool good = list[i].is_number() && list[i].number() >= 1e-3 && list[i].number() <= 1e6;
      if (!good) {
        fields.malformed(fields.name(key) + " has " + Fields::shown(list[i]) +
                         "; it must have numbers from 0.001 to 1e6");
      }
      factors.push_back(list[i].number());
    }
    return factors;
  };
  rope.short_factor = read_factors("short_factor");
  rope.long_factor = read_factors("long_factor");
  const double factor = fields.positive(
      "factor", fields.has("factor") ? 1 : static_cast<double>(max_positions(fields, context)) / rope.original);
  const double log_ratio = factor <= 1 || rope.original <= 1 ? 0 : std::log(factor) / std::log(rope.original);
  rope.attention_factor = fields.positive("attention_factor", std::sqrt(1 + log_ratio));
  check_attention_factor(fields, rope.attention_factor);
}

// `place` is the name of the object in the file.
Rope read_rope_object(const Fields& fields, const std::string& place, const RopeContext& context) {
  Rope rope;
  for (const std::string& key : fields.keys()) {
    if (!fields.has(key.c_str()) || is_known_rope_key(key)) continue;
    fields.unsupported(place + "." + printable(key) + " is " + Fields::shown(fields.get(key.c_str())) +
                       ": this key is unknown and may change the result of the model");
  }
  if (fields.has("rope_theta")) rope.theta = fields.positive("rope_theta");
  rope.rotary_factor = read_rotary_factor(fields, context.architecture, context.rotary_factor);
  rope.type = fields.string("rope_type", fields.string("type", "default").c_str());
  // Files of Phi-3 have these names for LongRoPE.
  const bool is_phi = context.architecture.original_max_position_embeddings > 0;
  if (is_phi && (rope.type == "su" || rope.type == "yarn")) rope.type = "longrope";
  if (rope.type == "default") return rope;
  if (context.architecture.latent.present && has_mscale(fields, "mscale_all_dim")) {  // of every type
    const double scale = yarn_scale(fields.positive("factor"), fields.positive("mscale_all_dim"));
    rope.score_factor = scale * scale;
    check_attention_factor(fields, rope.score_factor);
  }
  const bool llama3 = rope.type == "llama3";
  const bool longrope = rope.type == "longrope";
  const bool yarn = rope.type == "yarn";
  if (!llama3 && !longrope && !yarn && rope.type != "linear" && rope.type != "dynamic") {
    fields.unsupported(place + ": RoPE scaling of type '" + printable(rope.type) +
                       "' is not supported; it must be 'linear', 'dynamic', 'llama3', 'longrope', 'yarn' or "
                       "'default'");
  }
  if (llama3 || longrope || yarn) {
    // Phi-3 has the key beside the object, and that one takes precedence.
    if (llama3 && !is_phi) fields.get("original_max_position_embeddings");  // missing is malformed
    const bool given = fields.has("original_max_position_embeddings");
    int64_t otherwise = 0;
    if (is_phi) {
      otherwise = context.original.value_or(context.architecture.original_max_position_embeddings);
    } else if (!given) {
      otherwise = max_positions(fields, context);
    }
    const int64_t original = fields.integer("original_max_position_embeddings", 1, kMaxPositions, otherwise);
    if (is_phi && original != otherwise) {
      fields.unsupported(fields.name("original_max_position_embeddings") + " is " + std::to_string(original) +
                         ", but beside the object it is " + std::to_string(otherwise) + ", which transformers uses");
    }
    rope.original = static_cast<double>(original);
  }
  if (longrope) {
    read_longrope(fields, context, rope);
    return rope;
  }
  rope.factor = fields.positive("factor");
  if (rope.factor < 1) {
    fields.malformed(fields.name("factor") + " is " + number_text(rope.factor) + "; it must be at least 1");
  }
  if (llama3) {
    rope.low = fields.positive("low_freq_factor");
    rope.high = fields.positive("high_freq_factor");
    if (rope.low >= rope.high) {
      fields.malformed(fields.name("low_freq_factor") + " (" + number_text(rope.low) +
                       ") must be below high_freq_factor (" + number_text(rope.high) + ")");
    }
  }
  if (yarn) read_yarn(fields, rope);
  if (rope.type == "dynamic") max_positions(fields, context);
  return rope;
}

// RoPE of the layers without a window, and of those with one.
struct LayerRopes {
  Rope full;
  Rope local;
};

// Empty if the key is missing. Files of transformers 5 may have an object for each layer type, such
// as { full_attention: {...}, sliding_attention: {...} }. These must be equal, unless the
// architecture has different ones.
std::optional<LayerRopes> read_rope_key(const Fields& fields, const char* key, const RopeContext& context) {
  if (!fields.has(key)) return std::nullopt;
  const Fields object = fields.object(key);
  const std::vector<std::string> names = object.keys();
  const bool local = context.architecture.local_rope;
  const auto is_object = [&](const std::string& name) { return object.get(name.c_str()).is(Kind::object); };
  const auto layer_type = std::find_if(names.begin(), names.end(), is_object);
  if (layer_type == names.end()) {
    const Rope rope = read_rope_object(object, key, context);
    // The older key is about the layers without a window.
    if (local && std::string(key) != "rope_scaling") {
      fields.unsupported(std::string(key) + " must have an object for each layer type of " +
                         context.architecture.title);
    }
    return LayerRopes{rope, local ? Rope() : rope};
  }
  std::optional<Rope> first, full, windowed;
  for (const std::string& name : names) {
    const std::string place = std::string(key) + "." + printable(name);
    if (!is_object(name)) {
      fields.unsupported(place + " is beside the RoPE parameters of the layer type '" + printable(*layer_type) +
                         "'; only other layer types are supported there");
    }
    const Rope rope = read_rope_object(object.object(name.c_str()), place, context);
    if (local && name != "full_attention" && name != "sliding_attention") {
      fields.unsupported(place + " is the object of an unknown layer type");
    }
    if (!local && first && rope != *first) {
      fields.unsupported(std::string(key) + ": the layer types '" + printable(*layer_type) + "' and '" +
                         printable(name) + "' have different RoPE parameters; this is not supported for " +
                         context.architecture.title);
    }
    first = rope;
    (name == "full_attention" ? full : windowed) = rope;
  }
  if (!local) return LayerRopes{*first, *first};
  return LayerRopes{full.value_or(Rope()), windowed.value_or(Rope())};
}

// The RoPE parameters of the config. The bases are set.
LayerRopes read_rope_fields(const Fields& fields, const Config& config) {
  const Architecture& architecture = *config.architecture;
  std::optional<int64_t> max_positions;
  if (fields.has("max_position_embeddings")) max_positions = config.max_position_embeddings;
  RopeContext context{architecture, max_positions, std::nullopt, architecture.partial_rotary_factor.value_or(1)};
  context.rotary_factor = read_rotary_factor(fields, architecture, context.rotary_factor);
  if (architecture.original_max_position_embeddings > 0 && fields.has("original_max_position_embeddings")) {
    context.original = fields.integer("original_max_position_embeddings", 1, kMaxPositions);
  }
  // Newer files have all fields in rope_parameters, older ones have rope_theta beside rope_scaling.
  const std::optional<LayerRopes> newer = read_rope_key(fields, "rope_parameters", context);
  std::optional<LayerRopes> older = read_rope_key(fields, "rope_scaling", context);
  Rope none;
  none.rotary_factor = context.rotary_factor;
  LayerRopes ropes = newer ? *newer : older.value_or(LayerRopes{none, none});
  if (newer && older) {
    if (!ropes.full.theta) ropes.full.theta = older->full.theta;
    if (!older->full.theta) older->full.theta = ropes.full.theta;
    if (ropes.full != older->full) {
      fields.malformed("rope_parameters and rope_scaling are both set and differ; keep one of them");
    }
  }
  const auto base = [&](const char* key, const std::optional<double>& otherwise) {
    return otherwise && !fields.has(key) ? *otherwise : fields.positive(key);
  };
  if (!ropes.full.theta) ropes.full.theta = base("rope_theta", architecture.rope_theta);
  if (!architecture.local_rope) {
    ropes.local = ropes.full;
  } else if (!ropes.local.theta) {
    const char* key = architecture.local_rope_theta_key;
    // Without a key of their own, transformers does not apply rope_theta to these layers.
    ropes.local.theta = key ? base(key, architecture.local_rope_theta) : architecture.rope_theta;
  }
  for (const Rope* rope : {&ropes.full, &ropes.local}) {
    // Below 1 the angles would grow with d, beyond the range that float64 can reduce.
    if (*rope->theta < 1) {
      fields.malformed("rope_theta is " + number_text(*rope->theta) + "; it must be at least 1");
    }
  }
  return ropes;
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

// inv_freq[d] = theta^(-2d / rotary_dim) for the pairs of the first rotary_dim dimensions, and 0 for
// the other pairs, with the scaling of modeling_rope_utils of transformers. `factors` is null, or
// short_factor or long_factor.
std::vector<double> frequencies(const Rope& rope, int64_t head_dim, int64_t rotary_dim,
                                const std::vector<double>* factors) {
  std::vector<double> inv_freq(head_dim / 2);
  for (int64_t d = 0; d < rotary_dim / 2; d++) {
    const double freq = std::pow(*rope.theta, -2.0 * static_cast<double>(d) / static_cast<double>(rotary_dim));
    double kept = rope.type == "default" || rope.type == "dynamic" || factors ? 1 : 0;
    if (rope.type == "llama3") kept = llama3_extrapolation(rope, freq);
    if (rope.type == "yarn") kept = yarn_extrapolation(rope, d, rotary_dim);
    inv_freq[d] = (1 - kept) * freq / rope.factor + kept * freq;
    if (factors) inv_freq[d] /= (*factors)[d];
  }
  return inv_freq;
}

// The order of the dimensions of a head (Config::q_order): first the first dimensions of the
// pairs, then those that are not rotated; the second half likewise.
std::vector<int32_t> rope_order(int64_t head_dim, int64_t rotary_dim, bool interleaved) {
  if (rotary_dim == head_dim && !interleaved) return {};
  std::vector<int32_t> order(head_dim);
  const int64_t half = head_dim / 2, pairs = rotary_dim / 2;
  int32_t rest = static_cast<int32_t>(rotary_dim);
  for (int64_t d = 0; d < half; d++) {
    if (d >= pairs) {
      order[d] = rest++;
      order[half + d] = rest++;
      continue;
    }
    order[d] = static_cast<int32_t>(interleaved ? 2 * d : d);
    order[half + d] = static_cast<int32_t>(interleaved ? 2 * d + 1 : d + pairs);
  }
  return order;
}

// Latent::order: the pairs of the rotated part first, then the latent vector, in each half.
std::vector<int32_t> latent_order(const Fields& fields, const Config& config) {
  const Latent& latent = config.latent;
  const bool reads = config.architecture->latent.reads_interleave;
  const bool interleaved = reads && fields.boolean("rope_interleave", true);
  const int64_t half = config.head_dim_qk / 2, pairs = latent.rope / 2;
  std::vector<int32_t> order(config.head_dim_qk);
  int32_t next = 0;
  for (int64_t d = 0; d < half; d++) {
    if (d >= pairs) {
      order[d] = next++;
      order[half + d] = next++;
      continue;
    }
    order[d] = static_cast<int32_t>(latent.rank + (interleaved ? 2 * d : d));
    order[half + d] = static_cast<int32_t>(latent.rank + (interleaved ? 2 * d + 1 : d + pairs));
  }
  return order;
}

}  // namespace

RopeTable dynamic_rope(const Config& config, int64_t length) {
  Rope rope;
  const auto dims = static_cast<double>(config.rotary_dim);
  const double ratio = static_cast<double>(length) / static_cast<double>(config.original_context);
  rope.theta =
      config.rope_theta * std::pow(config.dynamic_factor * ratio - (config.dynamic_factor - 1), dims / (dims - 2));
  RopeTable table;
  table.inv_freq = table.k_inv_freq = frequencies(rope, config.head_dim_qk, config.rotary_dim, nullptr);
  return table;
}

void read_rope(const Fields& fields, Config& config) {
  const Architecture& architecture = *config.architecture;
  const LayerRopes ropes = read_rope_fields(fields, config);
  const Rope& full = ropes.full;
  config.rope_theta = *full.theta;
  if (full.type == "yarn" && config.rope_theta <= 1) fields.malformed("rope_theta is 1; YaRN needs more");
  const bool unsuited = full.type == "yarn" || full.type == "longrope" || full.type == "dynamic";
  if (unsuited && config.key_lift.kind != KeyLift::none) {
    fields.unsupported("RoPE scaling of type '" + full.type + "' is not supported together with key_lift");
  }
  const int64_t head_dim = config.head_dim_qk;
  const Latent& latent = config.latent;
  const auto rotary_dim =
      config.is_latent() ? latent.rope : static_cast<int64_t>(static_cast<double>(head_dim) * full.rotary_factor);
  if (rotary_dim % 2 != 0 || rotary_dim < 2) {
    fields.malformed("partial_rotary_factor is " + number_text(full.rotary_factor) + ", so " +
                     std::to_string(rotary_dim) +
                     " dimensions of a head are rotated; it must be an even number above 0");
  }
  config.rotary_dim = rotary_dim;
  config.score_scale *= full.score_factor;
  if (!config.differential)
    config.q_order = config.k_order = rope_order(head_dim, rotary_dim, architecture.interleaved_rope);
  if (config.is_latent()) {
    config.q_order = config.k_order = {};
    config.latent.order = latent_order(fields, config);
  }
  const auto add = [&](const Rope& rope, const std::vector<double>* factors) {
    if (factors && static_cast<int64_t>(factors->size()) != rotary_dim / 2) {
      fields.malformed("short_factor and long_factor must have " + std::to_string(rotary_dim / 2) +
                       " numbers, one for each pair that is rotated");
    }
    RopeTable table;
    table.inv_freq = frequencies(rope, head_dim, rotary_dim, factors);
    table.k_inv_freq = head_dim == config.head_dim_k ? table.inv_freq
                                                     : frequencies(rope, config.head_dim_k, config.head_dim_k, factors);
    table.attention_factor = rope.attention_factor;
    return table;
  };
  const bool longrope = full.type == "longrope";
  config.ropes.push_back(add(full, longrope ? &full.short_factor : nullptr));
  if (longrope) {
    config.long_ropes.push_back(add(full, &full.long_factor));
    config.original_context = static_cast<int64_t>(full.original);
  }
  if (full.type == "dynamic") {
    // Its exponent is rotary_dim / (rotary_dim - 2).
    if (rotary_dim < 4) fields.malformed("dynamic RoPE needs at least 4 rotated dimensions of a head");
    config.dynamic_factor = full.factor;
    config.original_context = config.max_position_embeddings;
    const double context = full.factor * static_cast<double>(config.original_context);
    config.max_position_embeddings = static_cast<int64_t>(std::min(context, static_cast<double>(kMaxPositions)));
  }
  if (!architecture.local_rope) return;
  for (const char* type : {"longrope", "dynamic"}) {
    if (ropes.local.type != type && full.type != type) continue;
    fields.unsupported("RoPE scaling of type '" + std::string(type) + "' is not supported for " + architecture.title);
  }
  config.ropes.push_back(add(ropes.local, nullptr));
}

}  // namespace diffqkv
