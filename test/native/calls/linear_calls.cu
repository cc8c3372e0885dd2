// Calls of the products, and of what works on one token at a time; and their tables.
#include <cmath>
#include <cstring>

#include "calls/call.h"

namespace diffqkv::cuda {

Call matmul_call(const MatmulCase& c) {
  const DType out_dtype = c.accumulate || c.f32_out ? DType::f32 : c.dtype;
  const size_t outputs = count_of({c.num_tokens, c.out_features});
  Call call;
  MatmulParams p;
  p.x = add_random(call, "x", c.dtype, count_of({c.num_tokens, c.in_features}), 0.1f, 1);
  p.weight = {add_random(call, "weight", c.dtype, count_of({c.out_features, c.in_features}), 0.1f, 2), c.dtype};
  p.out = add_output(call, "out", out_dtype, outputs, Comparison::values, c.out_features, c.dtype);
  if (c.accumulate) call.tensor("out").memory.upload(random_bytes(DType::f32, outputs, 0.1f, 3));
  p.x_dtype = c.dtype;
  p.out_dtype = out_dtype;
  p.num_tokens = c.num_tokens;
  p.in_features = c.in_features;
  p.out_features = c.out_features;
  p.accumulate = c.accumulate;
  set_operator(call, matmul, p);
  return call;
}

Call gated_mlp_call(const GatedMlpCase& c) {
  const size_t inner = count_of({c.inner_size, c.in_features});
  const size_t outputs = count_of({c.num_tokens, c.out_features});
  const DType out_dtype = c.accumulate ? DType::f32 : c.dtype;
  // silu works in its curved part, and its result and the output are of size 0.1.
  const float in_scale = 1 / std::sqrt(static_cast<float>(c.in_features));
  const float inner_scale = 1 / std::sqrt(static_cast<float>(c.inner_size));
  Call call;
  GatedMlpParams p;
  p.x = add_random(call, "x", c.dtype, count_of({c.num_tokens, c.in_features}), 0.1f, 1);
  if (c.has_gate) p.gate = {add_random(call, "gate", c.dtype, inner, 10 * in_scale, 2), c.dtype};
  p.up = {add_random(call, "up", c.dtype, inner, c.has_gate ? in_scale : 10 * in_scale, 3), c.dtype};
  p.down = {add_random(call, "down", c.dtype, count_of({c.out_features, c.inner_size}),
                       (c.has_gate ? 0.5f : 0.05f) * inner_scale, 4),
            c.dtype};
  p.out = add_output(call, "out", out_dtype, outputs, Comparison::values, c.out_features, c.dtype);
  if (c.accumulate) call.tensor("out").memory.upload(random_bytes(DType::f32, outputs, 0.1f, 5));
  p.x_dtype = c.dtype;
  p.out_dtype = out_dtype;
  p.num_tokens = c.num_tokens;
  p.in_features = c.in_features;
  p.inner_size = c.inner_size;
  p.out_features = c.out_features;
  p.accumulate = c.accumulate;
  p.activation = c.activation;
  set_operator(call, gated_mlp, p);
  return call;
}

Call rms_norm_call(const RmsNormCase& c) {
  const size_t count = count_of({c.num_tokens, c.hidden_size});
  Call call;
  RmsNormParams p;
  p.x = add_random(call, "x", c.x, count, 0.1f, 1);
  if (c.has_residual) {
    p.residual = add_output(call, "residual", c.residual, count, Comparison::bits);
    call.tensor("residual").memory.upload(random_bytes(c.residual, count, 0.1f, 2));
  }
  p.weight = add_random(call, "weight", c.weight, count_of({c.hidden_size}), 0.1f, 3);
  p.out = add_output(call, "out", c.out, count, Comparison::values, c.hidden_size,
                     coarsest({c.x, c.has_residual ? c.residual : DType::f32, c.weight, c.out}));
  if (c.accumulate) call.tensor("out").memory.upload(random_bytes(c.out, count, 1, 4));
  p.x_dtype = c.x;
  p.residual_dtype = c.residual;
  p.weight_dtype = c.weight;
  p.out_dtype = c.out;
  p.num_tokens = c.num_tokens;
  p.hidden_size = c.hidden_size;
  p.eps = 1e-5f;
  p.accumulate = c.accumulate;
  set_operator(call, rms_norm, p);
  return call;
}

Call embed_call(const EmbedCase& c) {
  std::vector<int32_t> tokens(static_cast<size_t>(c.num_tokens));
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<int32_t>((c.vocab_size - 1 + 17 * static_cast<int64_t>(i)) % c.vocab_size);
  Call call;
  EmbedParams p;
  p.table = add_random(call, "table", c.table, count_of({c.vocab_size, c.hidden_size}), 0.1f, 1);
  p.tokens = add_integers(call, "tokens", tokens);
  p.out = add_output(call, "out", c.out, count_of({c.num_tokens, c.hidden_size}), Comparison::bits);
  p.scale = c.scale;
  p.table_dtype = c.table;
  p.out_dtype = c.out;
  p.num_tokens = c.num_tokens;
  p.vocab_size = c.vocab_size;
  p.hidden_size = c.hidden_size;
  set_operator(call, embed, p);
  return call;
}

const double* add_frequencies(Call& call, int64_t head_dim) {
  std::vector<double> frequencies(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i)
    frequencies[i] = std::pow(50000.0, -2 * static_cast<double>(i) / static_cast<double>(head_dim));
  frequencies.back() = 0;  // a pair that is not rotated
  std::vector<uint8_t> bytes(frequencies.size() * sizeof(double));
  std::memcpy(bytes.data(), frequencies.data(), bytes.size());
  return reinterpret_cast<const double*>(add_tensor(call, "inv_freq", DType::i32, bytes));
}

Call rope_call(const RopeCase& c) {
  const size_t count = count_of({c.num_tokens, c.num_heads, c.head_dim});
  std::vector<int32_t> positions(static_cast<size_t>(c.num_tokens));
  for (size_t i = 0; i < positions.size(); ++i) positions[i] = i == 0 ? 0 : i == 1 ? 131071 : static_cast<int32_t>(i);
  Call call;
  RopeParams p;
  p.out = add_output(call, "out", c.dtype, count, Comparison::values, c.head_dim, c.dtype);
  if (c.in_place) call.tensor("out").memory.upload(random_bytes(c.dtype, count, 0.1f, 1));
  p.x = c.in_place ? p.out : add_random(call, "x", c.dtype, count, 0.1f, 1);
  p.positions = add_integers(call, "positions", positions);
  p.inv_freq = add_frequencies(call, c.head_dim);
  p.dtype = c.dtype;
  p.num_tokens = c.num_tokens;
  p.num_heads = c.num_heads;
  p.head_dim = c.head_dim;
  p.scale = 1.25f;
  set_operator(call, rope, p);
  return call;
}

Call gated_activation_call(const GatedActivationCase& c) {
  Call call;
  GatedActivationParams p;
  if (c.has_gate) p.gate = add_random(call, "gate", c.dtype, count_of({c.count}), 3, 1);
  p.up = add_random(call, "up", c.dtype, count_of({c.count}), c.has_gate ? 0.1f : 3, 2);
  p.out = add_output(call, "out", c.dtype, count_of({c.count}), Comparison::values, c.count, c.dtype);
  p.dtype = c.dtype;
  p.count = c.count;
  p.activation = c.activation;
  set_operator(call, gated_activation, p);
  return call;
}

Call add_bias_call(const AddBiasCase& c) {
  const size_t count = count_of({c.num_tokens, c.num_features});
  Call call;
  AddBiasParams p;
  p.x = add_random(call, "x", c.dtype, count, 1, 1);
  p.bias = reinterpret_cast<const float*>(add_random(call, "bias", DType::f32, count_of({c.num_features}), 1, 2));
  p.out = add_output(call, "out", c.dtype, count, Comparison::values, c.num_features, c.dtype);
  p.dtype = c.dtype;
  p.num_tokens = c.num_tokens;
  p.num_features = c.num_features;
  set_operator(call, add_bias, p);
  return call;
}

Call softcap_call(const SoftcapCase& c) {
  Call call;
  SoftcapParams p;
  p.x = reinterpret_cast<const float*>(add_random(call, "x", DType::f32, count_of({c.count}), 30, 1));
  p.out = reinterpret_cast<float*>(
      add_output(call, "out", DType::f32, count_of({c.count}), Comparison::values, c.count, DType::f32));
  p.count = c.count;
  p.cap = c.cap;
  set_operator(call, softcap, p);
  return call;
}

// ---- Tables.

namespace {

constexpr DType kF32 = DType::f32, kF16 = DType::f16, kBf16 = DType::bf16;

NamedCall product(const std::string& name, const MatmulCase& c) {
  return {name, [c] { return matmul_call(c); }};
}
NamedCall gated(const std::string& name, const GatedMlpCase& c) {
  return {"augmented Q, " + name, [c] { return gated_mlp_call(c); }};
}
NamedCall norm(const std::string& name, const RmsNormCase& c) {
  return {"RMSNorm" + name, [c] { return rms_norm_call(c); }};
}

}  // namespace

std::vector<NamedCall> seeded_linear_calls() {
  return {product("GEMV, f32", {kF32, 3, 264, 96, true}),
          product("GEMV, rows not aligned", {kBf16, 2, 131, 50}),
          product("GEMM, rows not aligned", {kBf16, 20, 131, 50}),
          product("GEMM, large tiles", {kBf16, 260, 96, 1024}),
          product("GEMV", {kBf16, 3, 264, 96, true}),
          product("GEMM", {kBf16, 70, 200, 136}),
          product("GEMM, accumulated", {kF16, 17, 72, 72, true}),
          gated("f16", {kF16, 20, 128, 96, 64}),
          gated("few tokens", {kBf16, 2, 128, 96, 64}),
          gated("many tokens", {kBf16, 40, 128, 96, 64}),
          gated("f32, few tokens", {kF32, 3, 64, 48, 32}),
          norm("", {kF32, kF32, kF32, kBf16, 3, 600}),
          norm(", rows not aligned", {kF32, kF32, kF32, kBf16, 2, 601})};
}

std::vector<NamedCall> more_linear_calls() {
  std::vector<NamedCall> calls;
  for (const DType dtype : {kF32, kF16, kBf16}) {
    const std::string type = dtype_name(dtype);
    for (const int64_t tokens : {1, 8, 9, 16}) {
      const std::string name = ", " + type + ", " + std::to_string(tokens) + (tokens == 1 ? " token" : " tokens");
      calls.push_back(product("product" + name, {dtype, tokens, 256, 104}));
      calls.push_back(gated(type + ", " + std::to_string(tokens) + (tokens == 1 ? " token" : " tokens"),
                            {dtype, tokens, 128, 96, 72}));
    }
    calls.push_back(gated(type + ", accumulated", {dtype, 5, 128, 96, 72, true}));
    for (const NamedActivation& other : kOtherActivations) {
      const std::string name = other.name;
      const Activation activation = other.activation;
      for (const int64_t tokens : {3, 20}) {
        calls.push_back(gated(type + ", " + name + ", " + std::to_string(tokens) + " tokens",
                              {dtype, tokens, 128, 384, 72, false, activation}));
      }
      calls.push_back({std::string("gated_activation, ") + type + ", " + name, [=] {
                         return gated_activation_call({dtype, 1003, activation});
                       }});
    }
    for (const int64_t tokens : {3, 20}) {
      calls.push_back(gated(type + ", no gate, " + std::to_string(tokens) + " tokens",
                            {dtype, tokens, 128, 384, 72, true, Activation::relu2, false}));
    }
    calls.push_back({"gated_activation, " + type + ", no gate", [=] {
                       return gated_activation_call({dtype, 1003, Activation::gelu, false});
                     }});
    calls.push_back(norm(", " + type + ", no residual", {dtype, dtype, dtype, dtype, 3, 2056, false}));
    calls.push_back(norm(", " + type, {dtype, dtype, dtype, dtype, 2, 4104}));
    for (const DType out : {kF32, kF16, kBf16}) {
      calls.push_back({"embed, " + type + " to " + dtype_name(out), [=] { return embed_call({dtype, out, 5, 264}); }});
    }
    calls.push_back(norm(", " + type + ", accumulated", {dtype, dtype, dtype, kF32, 3, 2056, false, true}));
    calls.push_back({"embed, " + type + ", scaled", [=] { return embed_call({dtype, kBf16, 5, 264, 50, 12.5f}); }});
    calls.push_back({"embed, " + type + ", rows not aligned", [=] { return embed_call({dtype, dtype, 3, 33}); }});
    calls.push_back({"rope, " + type, [=] { return rope_call({dtype, 5, 4, 64}); }});
    calls.push_back({"rope, " + type + ", in place, heads of 10", [=] { return rope_call({dtype, 3, 6, 10, true}); }});
    calls.push_back({"add_bias, " + type, [=] { return add_bias_call({dtype, 5, 1028}); }});
    calls.push_back({"add_bias, " + type + ", rows not aligned", [=] { return add_bias_call({dtype, 3, 601}); }});
    calls.push_back({"gated_activation, " + type, [=] { return gated_activation_call({dtype, 1003}); }});
  }
  calls.push_back({"softcap", [] { return softcap_call({1003, 30}); }});
  return calls;
}

}  // namespace diffqkv::cuda
