#include "model/weights.h"

#include <functional>
#include <set>
#include <string>

#include "model/loader.h"
#include "model/model.h"

namespace diffqkv {
namespace {

const char* const kQ = "self_attn.q_proj.weight";
const char* const kQGate = "self_attn.q_gate_proj.weight";
const char* const kQUp = "self_attn.q_up_proj.weight";
const char* const kQDown = "self_attn.q_down_proj.weight";
const char* const kKLift = "self_attn.k_lift_proj.weight";

std::string layer_name(int64_t layer, const char* suffix) {
  return "model.layers." + std::to_string(layer) + "." + suffix;
}

// Name, shape and destination of one tensor of a layer. in_features is 0 for a vector, a norm
// weight.
struct LayerSpec {
  const char* suffix;
  int64_t out_features;
  int64_t in_features;
  Buffer LayerWeights::*buffer;
};

std::vector<LayerSpec> layer_specs(const Config& config) {
  const int64_t hidden = config.hidden_size;
  const int64_t inner = config.intermediate_size;
  const int64_t aug = config.aug_q_size;
  std::vector<LayerSpec> specs = {
      {"input_layernorm.weight", hidden, 0, &LayerWeights::input_norm},
      {"post_attention_layernorm.weight", hidden, 0, &LayerWeights::post_attention_norm},
      {kQ, config.q_size(), hidden, &LayerWeights::q},
      {"self_attn.k_proj.weight", config.k_size(), hidden, &LayerWeights::k},
      {"self_attn.v_proj.weight", config.v_size(), hidden, &LayerWeights::v},
      {"self_attn.o_proj.weight", hidden, config.o_size(), &LayerWeights::o},
      {"mlp.gate_proj.weight", inner, hidden, &LayerWeights::gate},
      {"mlp.up_proj.weight", inner, hidden, &LayerWeights::up},
      {"mlp.down_proj.weight", hidden, inner, &LayerWeights::down},
  };
  if (aug > 0) {
    specs.push_back({kQGate, aug, config.q_size(), &LayerWeights::q_gate});
    specs.push_back({kQUp, aug, config.q_size(), &LayerWeights::q_up});
    specs.push_back({kQDown, config.q_size(), aug, &LayerWeights::q_down});
  }
  const KeyLift& lift = config.key_lift;
  if (lift.kind == KeyLift::linear) {
    specs.push_back({kKLift, config.head_dim_qk, config.head_dim_k, &LayerWeights::k_lift});
  } else if (lift.kind == KeyLift::swiglu) {
    specs.push_back(
        {"self_attn.k_lift_gate_proj.weight", lift.inner_size, config.head_dim_k, &LayerWeights::k_lift_gate});
    specs.push_back({"self_attn.k_lift_up_proj.weight", lift.inner_size, config.head_dim_k, &LayerWeights::k_lift_up});
    specs.push_back(
        {"self_attn.k_lift_down_proj.weight", config.head_dim_qk, lift.inner_size, &LayerWeights::k_lift_down});
  }
  return specs;
}

const char* const kEmbed = "model.embed_tokens.weight";
const char* const kNorm = "model.norm.weight";
const char* const kLmHead = "lm_head.weight";

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); i++) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

[[noreturn]] void fail_missing(const Checkpoint& checkpoint, const std::string& name, const std::string& why) {
  throw Error(ErrorCode::invalid_checkpoint, checkpoint.path() + ": the tensor '" + name + "' is missing" + why);
}

void check_tensor(const Checkpoint& checkpoint, const std::string& name, int64_t out_features, int64_t in_features,
                  const std::string& why = "") {
  const StoredTensor* tensor = checkpoint.find(name);
  if (!tensor) fail_missing(checkpoint, name, why);
  std::vector<int64_t> shape{out_features};
  if (in_features) shape.push_back(in_features);
  const std::string place = tensor->place();
  if (tensor->shape != shape) {
    throw Error(ErrorCode::invalid_checkpoint,
                place + "has shape " + shape_text(tensor->shape) + "; config.json requires " + shape_text(shape));
  }
  if (!weight_dtype(*tensor)) {
    throw Error(ErrorCode::unsupported_model, place + "has type " + tensor->dtype + "; it must be BF16, F16 or F32");
  }
}

// Rejects tensors that the model would ignore although they change the result: in a layer (a bias,
// a norm of Q, a layer after num_layers), and of the embedding, the last norm and the output
// matrix. Other tensors outside the layers are ignored, and so are buffers that cache RoPE
// frequencies.
void check_no_other_tensors(const Config& config, const Checkpoint& checkpoint) {
  for (const std::string module : {"lm_head.", "model.norm.", "model.embed_tokens."}) {
    for (auto it = checkpoint.tensors().lower_bound(module); it != checkpoint.tensors().end(); ++it) {
      const auto& [name, tensor] = *it;
      if (name.compare(0, module.size(), module) != 0) break;
      if (name == module + "weight") continue;
      throw Error(ErrorCode::unsupported_model, tensor.place() + "is not supported; only " + module + "weight is");
    }
  }
  const std::string prefix = "model.layers.";
  std::set<std::string> known = {"self_attn.rotary_emb.inv_freq"};
  for (const LayerSpec& spec : layer_specs(config)) known.insert(spec.suffix);
  for (auto it = checkpoint.tensors().lower_bound(prefix); it != checkpoint.tensors().end(); ++it) {
    const auto& [name, tensor] = *it;
    if (name.compare(0, prefix.size(), prefix) != 0) break;
    const std::string place = tensor.place();
    const size_t dot = name.find('.', prefix.size());
    const std::string number = name.substr(prefix.size(), dot == std::string::npos ? dot : dot - prefix.size());
    const bool is_number =
        !number.empty() && number.size() <= 9 && number.find_first_not_of("0123456789") == std::string::npos;
    if (is_number && std::stoll(number) >= config.num_layers) {
      throw Error(ErrorCode::invalid_checkpoint, place + "is in a layer at or after num_hidden_layers (" +
                                                     std::to_string(config.num_layers) + ") of config.json");
    }
    const std::string suffix = dot == std::string::npos ? "" : name.substr(dot + 1);
    if (is_number && known.count(suffix)) continue;
    if (suffix == kQGate || suffix == kQUp || suffix == kQDown) {
      throw Error(ErrorCode::invalid_checkpoint,
                  place + "belongs to augmented Q, which config.json and the first layer do not have");
    }
    throw Error(ErrorCode::unsupported_model,
                place + "is not part of a Sigma or Llama layer, and would change the result of the model");
  }
}

}  // namespace

uint64_t Weights::bytes() const {
  uint64_t total = embed.bytes() + lm_head.bytes() + norm.bytes() + inv_freq.bytes() + k_inv_freq.bytes();
  for (const LayerWeights& l : layers) {
    for (const Buffer* b : {&l.input_norm, &l.post_attention_norm, &l.q, &l.q_gate, &l.q_up, &l.q_down, &l.k, &l.v,
                            &l.o, &l.gate, &l.up, &l.down, &l.k_lift, &l.k_lift_gate, &l.k_lift_up, &l.k_lift_down}) {
      total += b->bytes();
    }
  }
  return total;
}

uint64_t count_parameters(const Config& config) {
  uint64_t layer = 0;
  for (const LayerSpec& spec : layer_specs(config))
    layer += static_cast<uint64_t>(spec.out_features) * (spec.in_features ? spec.in_features : 1);
  const uint64_t embed = static_cast<uint64_t>(config.vocab_size) * config.hidden_size;
  return embed * (config.tie_word_embeddings ? 1 : 2) + config.hidden_size + layer * config.num_layers;
}

bool folding_saves_bytes(const Config& config) {
  const int64_t aug = config.aug_q_size;
  const int64_t q = config.q_size();
  const int64_t hidden = config.hidden_size;
  return aug > 0 && 2 * aug * hidden < q * hidden + 2 * aug * q;
}

void resolve_config(Config& config, const Checkpoint& checkpoint) {
  if (config.aug_q_size == Config::kUnknown) {
    const StoredTensor* up = checkpoint.find(layer_name(0, kQUp));
    const bool any = up || checkpoint.find(layer_name(0, kQGate)) || checkpoint.find(layer_name(0, kQDown));
    if (any && !up) fail_missing(checkpoint, layer_name(0, kQUp), ", although other tensors of augmented Q exist");
    if (up && (up->shape.size() != 2 || up->shape[0] < 1 || up->shape[0] > (1 << 22))) {
      throw Error(ErrorCode::invalid_checkpoint, up->place() + "has shape " + shape_text(up->shape) +
                                                     "; it must be [aug_q_dim, " + std::to_string(config.q_size()) +
                                                     "]");
    }
    config.aug_q_size = up ? up->shape[0] : 0;
  }
  if (!config.tie_word_embeddings_given) config.tie_word_embeddings = !checkpoint.find(kLmHead);

  check_tensor(checkpoint, kEmbed, config.vocab_size, config.hidden_size);
  check_tensor(checkpoint, kNorm, config.hidden_size, 0);
  if (!config.tie_word_embeddings) {
    check_tensor(checkpoint, kLmHead, config.vocab_size, config.hidden_size,
                 " (tie_word_embeddings is false in config.json)");
  }
  const std::vector<LayerSpec> specs = layer_specs(config);
  for (int64_t layer = 0; layer < config.num_layers; layer++) {
    for (const LayerSpec& spec : specs)
      check_tensor(checkpoint, layer_name(layer, spec.suffix), spec.out_features, spec.in_features);
  }
  check_no_other_tensors(config, checkpoint);
}

namespace {

// The type of the matrices, or f32 if they have several: neither f16 nor bf16 represents all values
// of the other.
DType common_dtype(const Config& config, const Checkpoint& checkpoint) {
  std::set<std::string> dtypes = {checkpoint.find(kEmbed)->dtype};
  if (!config.tie_word_embeddings) dtypes.insert(checkpoint.find(kLmHead)->dtype);
  for (const LayerSpec& spec : layer_specs(config)) {
    for (int64_t layer = 0; spec.in_features && layer < config.num_layers; layer++)
      dtypes.insert(checkpoint.find(layer_name(layer, spec.suffix))->dtype);
  }
  return dtypes.size() == 1 ? weight_dtype(*checkpoint.find(kEmbed)).value() : DType::f32;
}

Buffer upload_doubles(const std::shared_ptr<Backend>& backend, const std::vector<double>& values) {
  Buffer buffer(backend, values.size() * sizeof(double));
  backend->upload(buffer.data(), values.data(), buffer.bytes());
  return buffer;
}

}  // namespace

Weights load_weights(std::shared_ptr<Backend> backend, const Config& config, const Checkpoint& checkpoint,
                     const LoadOptions& options) {
  const std::vector<LayerSpec> specs = layer_specs(config);
  const auto tensor = [&](const std::string& name) -> const StoredTensor& { return *checkpoint.find(name); };

  uint64_t total_bytes =
      tensor(kEmbed).bytes + tensor(kNorm).bytes + (config.tie_word_embeddings ? 0 : tensor(kLmHead).bytes);
  for (int64_t layer = 0; layer < config.num_layers; layer++) {
    for (const LayerSpec& spec : specs) total_bytes += tensor(layer_name(layer, spec.suffix)).bytes;
  }

  Weights weights;
  weights.dtype = options.dtype ? *options.dtype : common_dtype(config, checkpoint);
  weights.folded = folding_saves_bytes(config);

  Loader loader(backend, options, total_bytes);
  weights.inv_freq = upload_doubles(backend, config.inv_freq);
  weights.k_inv_freq = upload_doubles(backend, config.k_inv_freq);
  weights.embed = loader.load(tensor(kEmbed), weights.dtype);
  weights.layers.resize(config.num_layers);
  for (int64_t layer = 0; layer < config.num_layers; layer++) {
    LayerWeights& out = weights.layers[layer];
    for (const LayerSpec& spec : specs) {
      const bool folds = weights.folded && (spec.suffix == kQ || spec.suffix == kQGate || spec.suffix == kQUp);
      if (folds) continue;
      const StoredTensor& stored = tensor(layer_name(layer, spec.suffix));
      const bool transposed = spec.suffix == kKLift && config.key_lift.absorbed();
      out.*spec.buffer = transposed ? loader.load_transposed(stored, weights.dtype)
                                    : loader.load(stored, spec.in_features ? weights.dtype : DType::f32);
    }
    if (weights.folded) {
      FoldedQ folded = loader.fold(tensor(layer_name(layer, kQ)), tensor(layer_name(layer, kQGate)),
                                   tensor(layer_name(layer, kQUp)), weights.dtype);
      out.q_gate = std::move(folded.gate);
      out.q_up = std::move(folded.up);
    }
  }
  weights.norm = loader.load(tensor(kNorm), DType::f32);
  if (!config.tie_word_embeddings) weights.lm_head = loader.load(tensor(kLmHead), weights.dtype);
  loader.finish();
  return weights;
}

Weights random_weights(std::shared_ptr<Backend> backend, const Config& config, DType dtype, const LoadOptions& options,
                       uint64_t seed) {
  Weights weights;
  weights.dtype = dtype;
  weights.folded = folding_saves_bytes(config);

  // The shapes after folding.
  std::vector<LayerSpec> specs = layer_specs(config);
  if (weights.folded) {
    std::erase_if(specs, [](const LayerSpec& spec) { return spec.suffix == kQ; });
    for (LayerSpec& spec : specs) {
      if (spec.suffix == kQGate || spec.suffix == kQUp) spec.in_features = config.hidden_size;
    }
  }
  for (LayerSpec& spec : specs) {
    if (spec.suffix == kKLift && config.key_lift.absorbed()) std::swap(spec.out_features, spec.in_features);
  }
  const auto bytes = [&](int64_t out_features, int64_t in_features) {
    return static_cast<uint64_t>(out_features) * (in_features ? in_features * dtype_size(dtype) : sizeof(float));
  };
  uint64_t total_bytes = bytes(config.vocab_size, config.hidden_size) * (config.tie_word_embeddings ? 1 : 2) +
                         bytes(config.hidden_size, 0);
  for (const LayerSpec& spec : specs) total_bytes += bytes(spec.out_features, spec.in_features) * config.num_layers;

  Loader loader(backend, options, total_bytes);
  uint64_t stream = 0;  // each tensor uses its own stream of random numbers
  const auto draw = [&](int64_t out_features, int64_t in_features) {
    return in_features ? loader.draw(out_features, in_features, dtype, seed, stream++) : loader.ones(out_features);
  };
  weights.inv_freq = upload_doubles(backend, config.inv_freq);
  weights.k_inv_freq = upload_doubles(backend, config.k_inv_freq);
  weights.embed = draw(config.vocab_size, config.hidden_size);
  weights.norm = draw(config.hidden_size, 0);
  if (!config.tie_word_embeddings) weights.lm_head = draw(config.vocab_size, config.hidden_size);
  weights.layers.resize(config.num_layers);
  for (LayerWeights& layer : weights.layers) {
    for (const LayerSpec& spec : specs) layer.*spec.buffer = draw(spec.out_features, spec.in_features);
  }
  loader.finish();
  return weights;
}

}  // namespace diffqkv
