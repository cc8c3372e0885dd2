#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include "backend/check.h"
#include "model/loader.h"
#include "model/model.h"
#include "model/packed_weights.h"

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

// Name, shape and destination of one tensor of a layer, or of a part of its rows. in_features is 0
// for a vector: a norm weight or a bias.
struct LayerSpec {
  enum Kind { matrix, bias, norm };
  const char* suffix;
  Kind kind;
  int64_t out_features;
  int64_t in_features;
  WeightBuffer LayerWeights::*buffer;
  const std::vector<int32_t>* order = nullptr;  // of Config; may be empty
  int64_t first_row = 0;                        // in the stored tensor
  int64_t stored_rows = 0;                      // of the stored tensor; 0: out_features

  int64_t tensor_rows() const { return stored_rows ? stored_rows : out_features; }
};

std::vector<LayerSpec> layer_specs(const Config& config) {
  const Architecture& architecture = *config.architecture;
  const int64_t hidden = config.hidden_size;
  const int64_t inner = config.intermediate_size;
  const int64_t aug = config.aug_q_size;
  const int64_t q = config.q_size(), k = config.k_size(), v = config.v_size();
  std::vector<LayerSpec> specs;
  const auto add_matrix = [&](const char* suffix, int64_t out_features, int64_t in_features,
                              WeightBuffer LayerWeights::*buffer) {
    specs.push_back({suffix, LayerSpec::matrix, out_features, in_features, buffer});
  };
  const auto add_norm = [&](const char* suffix, int64_t size, WeightBuffer LayerWeights::*buffer) {
    if (suffix) specs.push_back({suffix, LayerSpec::norm, size, 0, buffer});
  };
  const auto add_bias = [&](const char* suffix, int64_t size, WeightBuffer LayerWeights::*buffer) {
    specs.push_back({suffix, LayerSpec::bias, size, 0, buffer});
  };
  // The next parts of a tensor that has `rows` rows.
  const auto add_parts = [&](const char* suffix, int64_t rows, std::initializer_list<LayerSpec> parts) {
    int64_t first_row = 0;
    for (LayerSpec part : parts) {
      part.suffix = suffix;
      part.first_row = first_row;
      part.stored_rows = rows;
      first_row += part.out_features;
      specs.push_back(part);
    }
  };
  add_norm(architecture.input_norm, hidden, &LayerWeights::input_norm);
  add_norm(architecture.attention_out_norm, hidden, &LayerWeights::attention_out_norm);
  add_norm(architecture.ffn_norm, hidden, &LayerWeights::ffn_norm);
  add_norm(architecture.ffn_out_norm, hidden, &LayerWeights::ffn_out_norm);
  const Latent& latent = config.latent;
  if (config.is_latent()) {
    const int64_t q_rows = config.num_q_heads * (latent.nope + latent.rope);
    if (latent.q_rank > 0) {
      add_matrix("self_attn.q_a_proj.weight", latent.q_rank, hidden, &LayerWeights::q_a);
      add_norm("self_attn.q_a_layernorm.weight", latent.q_rank, &LayerWeights::q_a_norm);
      add_matrix("self_attn.q_b_proj.weight", q_rows, latent.q_rank, &LayerWeights::q);
    } else {
      add_matrix(kQ, q_rows, hidden, &LayerWeights::q);
    }
    const int64_t kv_rows = latent.rank + latent.rope;
    add_parts("self_attn.kv_a_proj_with_mqa.weight", kv_rows,
              {{nullptr, LayerSpec::matrix, latent.rank, hidden, &LayerWeights::latent},
               {nullptr, LayerSpec::matrix, latent.rope, hidden, &LayerWeights::rotary}});
    add_norm("self_attn.kv_a_layernorm.weight", latent.rank, &LayerWeights::latent_norm);
    add_matrix("self_attn.kv_b_proj.weight", config.num_q_heads * (latent.nope + latent.v), latent.rank,
               &LayerWeights::kv_b);
    if (config.qkv_bias) {
      if (latent.q_rank > 0) add_bias("self_attn.q_a_proj.bias", latent.q_rank, &LayerWeights::q_a_bias);
      add_parts("self_attn.kv_a_proj_with_mqa.bias", kv_rows,
                {{nullptr, LayerSpec::bias, latent.rank, 0, &LayerWeights::latent_bias},
                 {nullptr, LayerSpec::bias, latent.rope, 0, &LayerWeights::rotary_bias}});
    }
  } else if (architecture.qkv) {
    add_parts(architecture.qkv, q + k + v,
              {{nullptr, LayerSpec::matrix, q, hidden, &LayerWeights::q, &config.q_order},
               {nullptr, LayerSpec::matrix, k, hidden, &LayerWeights::k, &config.k_order},
               {nullptr, LayerSpec::matrix, v, hidden, &LayerWeights::v, &config.v_order}});
  } else {
    specs.push_back({kQ, LayerSpec::matrix, q, hidden, &LayerWeights::q, &config.q_order});
    specs.push_back({"self_attn.k_proj.weight", LayerSpec::matrix, k, hidden, &LayerWeights::k, &config.k_order});
    specs.push_back({"self_attn.v_proj.weight", LayerSpec::matrix, v, hidden, &LayerWeights::v, &config.v_order});
  }
  add_matrix("self_attn.o_proj.weight", hidden, config.o_size(), &LayerWeights::o);
  if (architecture.gate_up) {
    add_parts(architecture.gate_up, 2 * inner,
              {{nullptr, LayerSpec::matrix, inner, hidden, &LayerWeights::gate},
               {nullptr, LayerSpec::matrix, inner, hidden, &LayerWeights::up}});
  } else {
    if (architecture.has_gate) add_matrix("mlp.gate_proj.weight", inner, hidden, &LayerWeights::gate);
    add_matrix("mlp.up_proj.weight", inner, hidden, &LayerWeights::up);
  }
  add_matrix("mlp.down_proj.weight", hidden, inner, &LayerWeights::down);
  if (config.qkv_bias && !config.is_latent()) {
    specs.push_back({"self_attn.q_proj.bias", LayerSpec::bias, q, 0, &LayerWeights::q_bias, &config.q_order});
    specs.push_back({"self_attn.k_proj.bias", LayerSpec::bias, k, 0, &LayerWeights::k_bias, &config.k_order});
    specs.push_back({"self_attn.v_proj.bias", LayerSpec::bias, v, 0, &LayerWeights::v_bias, &config.v_order});
  }
  if (config.o_bias) add_bias("self_attn.o_proj.bias", hidden, &LayerWeights::o_bias);
  if (config.mlp_bias) {
    if (architecture.has_gate) add_bias("mlp.gate_proj.bias", inner, &LayerWeights::gate_bias);
    add_bias("mlp.up_proj.bias", inner, &LayerWeights::up_bias);
    add_bias("mlp.down_proj.bias", hidden, &LayerWeights::down_bias);
  }
  for (const auto& [name, row, head, buffer] :
       {std::tuple(architecture.q_norm, q, config.head_dim_qk, &LayerWeights::q_norm),
        std::tuple(architecture.k_norm, k, config.head_dim_k, &LayerWeights::k_norm)}) {
    if (name)
      specs.push_back({name, LayerSpec::norm, architecture.norm_whole_rows ? row : head, 0, buffer, &config.q_order});
  }
  if (config.differential) {
    // As random weights, they are drawn like biases.
    add_bias("self_attn.lambda_q1", config.head_dim_qk, &LayerWeights::lambda_q1);
    add_bias("self_attn.lambda_k1", config.head_dim_qk, &LayerWeights::lambda_k1);
    add_bias("self_attn.lambda_q2", config.head_dim_qk, &LayerWeights::lambda_q2);
    add_bias("self_attn.lambda_k2", config.head_dim_qk, &LayerWeights::lambda_k2);
  }
  if (aug > 0) {
    add_matrix(kQGate, aug, q, &LayerWeights::q_gate);
    add_matrix(kQUp, aug, q, &LayerWeights::q_up);
    add_matrix(kQDown, q, aug, &LayerWeights::q_down);
  }
  const KeyLift& lift = config.key_lift;
  if (lift.kind == KeyLift::linear) {
    add_matrix(kKLift, config.head_dim_qk, config.head_dim_k, &LayerWeights::k_lift);
  } else if (lift.kind == KeyLift::swiglu) {
    add_matrix("self_attn.k_lift_gate_proj.weight", lift.inner_size, config.head_dim_k, &LayerWeights::k_lift_gate);
    add_matrix("self_attn.k_lift_up_proj.weight", lift.inner_size, config.head_dim_k, &LayerWeights::k_lift_up);
    add_matrix("self_attn.k_lift_down_proj.weight", config.head_dim_qk, lift.inner_size, &LayerWeights::k_lift_down);
  }
  return specs;
}

// Whether LoadOptions::weight_format applies to a matrix. It does not apply to small matrices and to
// those from which others are computed.
bool is_quantized(const LayerSpec& spec) {
  if (spec.kind != LayerSpec::matrix) return false;
  for (const auto wide : {&LayerWeights::kv_b, &LayerWeights::k_lift, &LayerWeights::k_lift_gate,
                          &LayerWeights::k_lift_up, &LayerWeights::k_lift_down}) {
    if (spec.buffer == wide) return false;
  }
  return true;
}

// The other matrix of a pair of gate and up, which are multiplied at once and so have one type. Null
// for other matrices.
const LayerSpec* gated_with(const std::vector<LayerSpec>& specs, const LayerSpec& spec) {
  for (const auto& [gate, up] :
       {std::pair(&LayerWeights::gate, &LayerWeights::up), std::pair(&LayerWeights::q_gate, &LayerWeights::q_up)}) {
    if (spec.buffer != gate && spec.buffer != up) continue;
    for (const LayerSpec& other : specs) {
      if (other.buffer == (spec.buffer == gate ? up : gate)) return &other;
    }
  }
  return nullptr;
}

const char* const kEmbed = "model.embed_tokens.weight";
const char* const kNorm = "model.norm.weight";
const char* const kLmHead = "lm_head.weight";

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
    throw Error(ErrorCode::unsupported_model, place + "is not part of a layer of " + config.architecture->title +
                                                  ", and would change the result of the model");
  }
}

using Buffers = std::vector<const Buffer*>;

// The weights of a layer, by the parts of WeightBytes.
struct LayerBuffers {
  Buffers attention, augmented_q, ffn, other;
};

LayerBuffers layer_buffers(const LayerWeights& l) {
  return {.attention = {&l.q,      &l.k,        &l.v,         &l.o,           &l.q_bias,    &l.k_bias,
                        &l.v_bias, &l.o_bias,   &l.k_lift,    &l.k_lift_gate, &l.k_lift_up, &l.k_lift_down,
                        &l.q_a,    &l.q_a_bias, &l.latent,    &l.latent_bias, &l.rotary,    &l.rotary_bias,
                        &l.absorb, &l.expand,   &l.lambda_q1, &l.lambda_k1,   &l.lambda_q2, &l.lambda_k2},
          .augmented_q = {&l.q_gate, &l.q_up, &l.q_down},
          .ffn = {&l.gate, &l.up, &l.down, &l.gate_bias, &l.up_bias, &l.down_bias},
          .other = {&l.input_norm, &l.attention_out_norm, &l.ffn_norm, &l.ffn_out_norm, &l.q_norm, &l.k_norm,
                    &l.q_a_norm, &l.latent_norm, &l.difference_norm}};
}

Buffers rope_buffers(const Weights& weights) {
  Buffers buffers;
  for (const auto* list : {&weights.ropes, &weights.long_ropes}) {
    for (const RopeBuffers& rope : *list) buffers.insert(buffers.end(), {&rope.inv_freq, &rope.k_inv_freq});
  }
  return buffers;
}

uint64_t sum_bytes(const Buffers& buffers) {
  uint64_t total = 0;
  for (const Buffer* buffer : buffers) total += buffer->bytes();
  return total;
}

}  // namespace

WeightBytes Weights::bytes() const {
  WeightBytes r;
  r.embedding = embed.bytes();
  r.output = lm_head.bytes();
  r.attention = place_latent.bytes() + place_rotary.bytes();
  r.other = norm.bytes() + sum_bytes(rope_buffers(*this));
  for (const LayerWeights& layer : layers) {
    const LayerBuffers parts = layer_buffers(layer);
    r.attention += sum_bytes(parts.attention);
    r.augmented_q += sum_bytes(parts.augmented_q);
    r.ffn += sum_bytes(parts.ffn);
    r.other += sum_bytes(parts.other);
  }
  return r;
}

std::vector<const Buffer*> Weights::buffers() const {
  Buffers all{&embed, &lm_head, &norm, &place_latent, &place_rotary};
  const auto add = [&](const Buffers& some) { all.insert(all.end(), some.begin(), some.end()); };
  add(rope_buffers(*this));
  for (const LayerWeights& layer : layers) {
    const LayerBuffers parts = layer_buffers(layer);
    for (const Buffers* part : {&parts.attention, &parts.augmented_q, &parts.ffn, &parts.other}) add(*part);
  }
  return all;
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

namespace {

// Whether the two have the same shape, type and bytes.
bool are_equal(const StoredTensor& a, const StoredTensor& b) {
  if (a.shape != b.shape || a.dtype != b.dtype) return false;
  constexpr uint64_t kChunk = uint64_t{8} << 20;
  std::vector<uint8_t> left, right;
  for (uint64_t at = 0; at < a.bytes; at += kChunk) {
    left.resize(std::min(kChunk, a.bytes - at));
    right.resize(left.size());
    a.read(left.data(), at, left.size());
    b.read(right.data(), at, right.size());
    if (left != right) return false;
  }
  return true;
}

}  // namespace

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
  const StoredTensor* lm_head = checkpoint.find(kLmHead);
  if (config.tie_word_embeddings && lm_head && !are_equal(*lm_head, *checkpoint.find(kEmbed))) {
    config.tie_word_embeddings = false;
    config.has_untied_lm_head = true;
  }
  if (!config.tie_word_embeddings) {
    check_tensor(checkpoint, kLmHead, config.vocab_size, config.hidden_size,
                 " (tie_word_embeddings is false in config.json)");
  }
  const std::vector<LayerSpec> specs = layer_specs(config);
  for (int64_t layer = 0; layer < config.num_layers; layer++) {
    for (const LayerSpec& spec : specs)
      check_tensor(checkpoint, layer_name(layer, spec.suffix), spec.tensor_rows(), spec.in_features);
  }
  check_no_other_tensors(config, checkpoint);
}

namespace {

// The type of the matrices, or f32 if they have several: neither f16 nor bf16 represents all values
// of the other.
DType common_dtype(const Config& config, const Checkpoint& checkpoint) {
  std::set<std::string> dtypes = {checkpoint.find(kEmbed)->dtype};
  const auto add = [&](const StoredTensor& tensor) {
    if (!tensor.packed) dtypes.insert(tensor.dtype);
  };
  if (!config.tie_word_embeddings) add(*checkpoint.find(kLmHead));
  for (const LayerSpec& spec : layer_specs(config)) {
    for (int64_t layer = 0; spec.in_features && layer < config.num_layers; layer++)
      add(*checkpoint.find(layer_name(layer, spec.suffix)));
  }
  return dtypes.size() == 1 ? weight_dtype(*checkpoint.find(kEmbed)).value() : DType::f32;
}

Buffer upload_doubles(const std::shared_ptr<Backend>& backend, const std::vector<double>& values) {
  Buffer buffer(backend, values.size() * sizeof(double));
  backend->upload(buffer.data(), values.data(), buffer.bytes());
  return buffer;
}

float embedding_scale(const Config& config, DType dtype) {
  auto scale = static_cast<float>(config.embedding_scale);
  if (!config.architecture->scales_embedding || dtype == DType::f32) return scale;
  uint16_t rounded;
  convert_from_f32(dtype, &rounded, &scale, 1);
  convert_to_f32(dtype, &scale, &rounded, 1);
  return scale;
}

// Sets what differential attention derives from the vectors lambda_q1 and so on.
void set_lambda(const std::shared_ptr<Backend>& backend, const Config& config, int64_t index, LayerWeights& layer) {
  if (!config.differential) return;
  const auto dot = [&](const Buffer& a, const Buffer& b) {
    std::vector<float> left(config.head_dim_qk), right(config.head_dim_qk);
    backend->download(left.data(), a.data(), a.bytes());
    backend->download(right.data(), b.data(), b.bytes());
    return std::inner_product(left.begin(), left.end(), right.begin(), 0.0);
  };
  const double initial = 0.8 - 0.6 * std::exp(-0.3 * static_cast<double>(index));
  layer.lambda = static_cast<float>(std::exp(dot(layer.lambda_q1, layer.lambda_k1)) -
                                    std::exp(dot(layer.lambda_q2, layer.lambda_k2)) + initial);
  const std::vector<float> weights(config.head_dim_vo, static_cast<float>(1 - initial));
  layer.difference_norm = {Buffer(backend, weights.size() * sizeof(float)), DType::f32};
  backend->upload(layer.difference_norm.data(), weights.data(), layer.difference_norm.bytes());
  backend->synchronize();
}

WeightBuffer upload_matrix(const std::shared_ptr<Backend>& backend, const std::vector<float>& values, DType dtype) {
  std::vector<uint8_t> converted(values.size() * dtype_size(dtype));
  convert_from_f32(dtype, converted.data(), values.data(), values.size());
  Buffer buffer(backend, converted.size());
  backend->upload(buffer.data(), converted.data(), converted.size());
  backend->synchronize();
  return {std::move(buffer), dtype};
}

// Row i has a 1 at the column that Latent::order has for it, less `first`, if there is one.
WeightBuffer placement(const std::shared_ptr<Backend>& backend, const Config& config, int64_t first, int64_t columns,
                       DType dtype) {
  const std::vector<int32_t>& order = config.latent.order;
  std::vector<float> values(order.size() * columns);
  for (size_t i = 0; i < order.size(); i++) {
    const int64_t column = order[i] - first;
    if (column >= 0 && column < columns) values[i * columns + column] = 1;
  }
  return upload_matrix(backend, values, dtype);
}

void set_placements(const std::shared_ptr<Backend>& backend, const Config& config, Weights& weights) {
  if (!config.is_latent()) return;
  weights.place_latent = placement(backend, config, 0, config.latent.rank, weights.dtype);
  weights.place_rotary = placement(backend, config, config.latent.rank, config.latent.rope, weights.dtype);
}

// Sets absorb and expand from kv_b, which is [num_q_heads, nope + v, rank], and frees it.
void split_latent(const std::shared_ptr<Backend>& backend, const Config& config, DType dtype, LayerWeights& layer) {
  if (!config.is_latent()) return;
  const Latent& latent = config.latent;
  const int64_t heads = config.num_q_heads, row = config.head_dim_k, size = latent.nope + latent.rope;
  std::vector<uint8_t> stored(layer.kv_b.bytes());
  backend->download(stored.data(), layer.kv_b.data(), stored.size());
  layer.kv_b = WeightBuffer();
  std::vector<float> kv_b(stored.size() / dtype_size(dtype));
  convert_to_f32(dtype, kv_b.data(), stored.data(), kv_b.size());
  std::vector<float> absorb(heads * row * size), expand(heads * latent.v * row);
  for (int64_t head = 0; head < heads; head++) {
    const float* up_k = kv_b.data() + head * (latent.nope + latent.v) * latent.rank;
    const float* up_v = up_k + latent.nope * latent.rank;
    for (int64_t d = 0; d < row; d++) {
      const int64_t from = latent.order[d];
      float* absorbed = absorb.data() + (head * row + d) * size;
      if (from >= latent.rank) {
        absorbed[latent.nope + from - latent.rank] = 1;
        continue;
      }
      for (int64_t i = 0; i < latent.nope; i++) absorbed[i] = up_k[i * latent.rank + from];
      for (int64_t i = 0; i < latent.v; i++) expand[(head * latent.v + i) * row + d] = up_v[i * latent.rank + from];
    }
  }
  layer.absorb = upload_matrix(backend, absorb, dtype);
  layer.expand = upload_matrix(backend, expand, dtype);
}

std::vector<RopeBuffers> upload_ropes(const std::shared_ptr<Backend>& backend, const std::vector<RopeTable>& tables) {
  std::vector<RopeBuffers> buffers;
  for (const RopeTable& table : tables)
    buffers.push_back({upload_doubles(backend, table.inv_freq), upload_doubles(backend, table.k_inv_freq)});
  return buffers;
}

}  // namespace

Weights load_weights(std::shared_ptr<Backend> backend, const Config& config, const Checkpoint& checkpoint,
                     const LoadOptions& options) {
  const std::vector<LayerSpec> specs = layer_specs(config);
  const auto tensor = [&](const std::string& name) -> const StoredTensor& { return *checkpoint.find(name); };

  uint64_t total_bytes =
      tensor(kEmbed).bytes + tensor(kNorm).bytes + (config.tie_word_embeddings ? 0 : tensor(kLmHead).bytes);
  for (int64_t layer = 0; layer < config.num_layers; layer++) {
    for (const LayerSpec& spec : specs)
      total_bytes += tensor(layer_name(layer, spec.suffix)).bytes / spec.tensor_rows() * spec.out_features;
  }

  Weights weights;
  weights.dtype = options.dtype ? *options.dtype : common_dtype(config, checkpoint);
  // Matrices whose integers and scales can stay as they are.
  const auto exact_format = [&](const StoredTensor& stored) {
    return stored.packed ? stored.packed->exact_format() : std::nullopt;
  };
  const auto is_exact = [&](int64_t layer, const LayerSpec& spec) {
    if (options.weight_format || !is_quantized(spec)) return false;
    const auto format = exact_format(tensor(layer_name(layer, spec.suffix)));
    const LayerSpec* other = gated_with(specs, spec);
    return format && (!other || exact_format(tensor(layer_name(layer, other->suffix))) == format);
  };
  bool has_exact_q = false;
  for (const LayerSpec& spec : specs) {
    for (int64_t layer = 0; spec.suffix == kQ && layer < config.num_layers; layer++)
      has_exact_q = has_exact_q || is_exact(layer, spec);
  }
  weights.folded = folding_saves_bytes(config) && !has_exact_q;
  weights.embedding_scale = embedding_scale(config, weights.dtype);

  const float norm_offset = config.architecture->norm_plus_one ? 1 : 0;
  const auto logit_scale = static_cast<float>(config.logit_scale);
  Loader loader(backend, options, total_bytes);
  weights.ropes = upload_ropes(backend, config.ropes);
  weights.long_ropes = upload_ropes(backend, config.long_ropes);
  set_placements(backend, config, weights);
  // In place of a matrix that was computed here.
  const auto quantized = [&](WeightBuffer matrix, int64_t in_features) {
    return options.weight_format ? loader.quantize(matrix, in_features, *options.weight_format) : std::move(matrix);
  };
  std::map<std::pair<DType, int64_t>, int64_t> exact_elements;  // by type and group size
  weights.embed = loader.load(tensor(kEmbed), weights.dtype);
  weights.layers.resize(config.num_layers);
  for (int64_t layer = 0; layer < config.num_layers; layer++) {
    LayerWeights& out = weights.layers[layer];
    for (const LayerSpec& spec : specs) {
      const bool folds = weights.folded && (spec.suffix == kQ || spec.suffix == kQGate || spec.suffix == kQUp);
      if (folds) continue;
      const StoredTensor& stored = tensor(layer_name(layer, spec.suffix));
      const Rows rows{spec.first_row, spec.out_features, spec.order && !spec.order->empty() ? spec.order : nullptr};
      if (spec.suffix == kKLift && config.key_lift.absorbed()) {
        out.*spec.buffer = loader.load_transposed(stored, weights.dtype);
      } else if (spec.kind == LayerSpec::norm) {
        out.*spec.buffer = loader.load_norm(stored, rows, norm_offset, 1);
      } else if (is_exact(layer, spec)) {
        out.*spec.buffer = loader.load_exact(stored, rows);
        exact_elements[{(out.*spec.buffer).dtype, (out.*spec.buffer).group_size}] +=
            spec.out_features * spec.in_features;
      } else if (is_quantized(spec) && options.weight_format) {
        out.*spec.buffer = loader.load_quantized(stored, rows, *options.weight_format);
      } else {
        out.*spec.buffer = loader.load_rows(stored, rows, spec.in_features ? weights.dtype : DType::f32);
      }
    }
    if (weights.folded) {
      FoldedQ folded = loader.fold(tensor(layer_name(layer, kQ)), tensor(layer_name(layer, kQGate)),
                                   tensor(layer_name(layer, kQUp)), weights.dtype);
      out.q_gate = quantized(std::move(folded.gate), config.hidden_size);
      out.q_up = quantized(std::move(folded.up), config.hidden_size);
    }
    for (const LayerSpec& spec : specs) {
      const StoredTensor& stored = tensor(layer_name(layer, spec.suffix));
      if (stored.packed) stored.packed->release();
    }
    set_lambda(backend, config, layer, out);
    split_latent(backend, config, weights.dtype, out);
  }
  weights.format = options.weight_format;
  if (!exact_elements.empty()) {
    const auto most = std::max_element(exact_elements.begin(), exact_elements.end(),
                                       [](const auto& a, const auto& b) { return a.second < b.second; });
    const auto [dtype, group_size] = most->first;
    weights.format = {dtype, group_size, false};
  }
  weights.norm = loader.load_norm(tensor(kNorm), {0, config.hidden_size}, norm_offset, logit_scale);
  const auto& format = options.weight_format;
  const bool quantizes_lm_head = format && format->lm_head;
  if (config.tie_word_embeddings) {
    if (quantizes_lm_head) weights.lm_head = loader.quantize(weights.embed, config.hidden_size, *format);
  } else {
    const StoredTensor& stored = tensor(kLmHead);
    weights.lm_head = quantizes_lm_head ? loader.load_quantized(stored, {0, config.vocab_size}, *format)
                                        : loader.load(stored, weights.dtype);
  }
  loader.finish();
  return weights;
}

Weights random_weights(std::shared_ptr<Backend> backend, const Config& config, DType dtype, const LoadOptions& options,
                       uint64_t seed) {
  Weights weights;
  weights.dtype = dtype;
  weights.format = options.weight_format;
  weights.folded = folding_saves_bytes(config);
  weights.embedding_scale = embedding_scale(config, weights.dtype);

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
    return in_features ? loader.draw(out_features, in_features, dtype, seed, stream++) : loader.fill(out_features, 1);
  };
  weights.ropes = upload_ropes(backend, config.ropes);
  weights.long_ropes = upload_ropes(backend, config.long_ropes);
  set_placements(backend, config, weights);
  weights.embed = draw(config.vocab_size, config.hidden_size);
  weights.norm = loader.fill(config.hidden_size, static_cast<float>(config.logit_scale));
  if (!config.tie_word_embeddings) weights.lm_head = draw(config.vocab_size, config.hidden_size);
  if (weights.format && weights.format->lm_head) {
    const WeightBuffer& matrix = config.tie_word_embeddings ? weights.embed : weights.lm_head;
    weights.lm_head = loader.quantize(matrix, config.hidden_size, *weights.format);
  }
  weights.layers.resize(config.num_layers);
  for (int64_t i = 0; i < config.num_layers; i++) {
    LayerWeights& layer = weights.layers[i];
    for (const LayerSpec& spec : specs) {
      layer.*spec.buffer = spec.kind == LayerSpec::bias ? loader.draw(1, spec.out_features, DType::f32, seed, stream++)
                                                        : draw(spec.out_features, spec.in_features);
      if (!is_quantized(spec) || !weights.format) continue;
      layer.*spec.buffer = loader.quantize(layer.*spec.buffer, spec.in_features, *weights.format);
    }
    set_lambda(backend, config, i, layer);
    split_latent(backend, config, dtype, layer);
  }
  loader.finish();
  return weights;
}

}  // namespace diffqkv
