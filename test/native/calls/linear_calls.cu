// Calls of the products, and of what works on one token at a time; and their tables.
#include <cmath>
#include <cstring>

#include "calls/call.h"
#include "random.h"

namespace diffqkv::cuda {

// Random weights of this standard deviation. Integers have one of 74 (i8) or 4.6 (i4).
WeightView add_weight(Call& call, const std::string& name, DType dtype, const Packing& packing, int64_t rows,
                      int64_t columns, float scale, uint64_t seed) {
  const size_t count = count_of({rows, columns});
  if (packing.group_size == 0) return {add_random(call, name.c_str(), dtype, count, scale, seed), dtype};
  const int64_t row_bytes = weight_row_bytes(packing.dtype, columns);
  const size_t bytes = count_of({rows, row_bytes});
  WeightView weight;
  if (columns % 32 == 0) {
    weight.data = add_memory(call, name.c_str(), packing.dtype, random_memory(DType::i8, bytes, 1, seed));
  } else {
    std::vector<uint8_t> codes = random_bytes(DType::i8, bytes, 1, seed);
    for (int64_t row = 0; row < rows; ++row) {
      uint8_t* const codes_of_row = codes.data() + row * row_bytes;
      for (int64_t column = columns; column < (columns + 31) / 32 * 32; ++column) {
        if (packing.dtype == DType::i8) {
          codes_of_row[column] = 0;
          continue;
        }
        const int64_t bit = column % 8 / 2 * 4 + column % 2 * 16;
        uint8_t& byte = codes_of_row[column / 8 * 4 + bit / 8];
        byte = static_cast<uint8_t>((byte & ~(15 << bit % 8)) | 8 << bit % 8);
      }
    }
    weight.data = add_tensor(call, name.c_str(), packing.dtype, codes);
  }
  weight.dtype = packing.dtype;
  weight.scale_dtype = packing.scale_dtype;
  weight.scales = add_random(call, (name + " scales").c_str(), packing.scale_dtype,
                             count_of({rows, weight_row_groups(columns, packing.group_size)}),
                             scale / (packing.dtype == DType::i8 ? 74.0f : 4.6f), seed + 100);
  weight.group_size = packing.group_size;
  return weight;
}

Call matmul_call(const MatmulCase& c) {
  const DType out_dtype = c.accumulate || c.f32_out ? DType::f32 : c.dtype;
  const size_t outputs = count_of({c.num_tokens, c.out_features});
  Call call;
  MatmulParams p;
  p.x = add_random(call, "x", c.dtype, count_of({c.num_tokens, c.in_features}), 0.1f, 1);
  p.weight = add_weight(call, "weight", c.dtype, c.packing, c.out_features, c.in_features, 0.1f, 2);
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

Call quantize_weight_call(const QuantizeWeightCase& c) {
  check::Random random(6);
  std::vector<float> values(count_of({c.num_rows, c.num_columns}));
  const auto row_of = [&](int64_t row) { return values.begin() + row * c.num_columns; };
  for (int64_t row = 0; row < c.num_rows; ++row) {
    const float size = row == 1 ? 0.0f : row == 2 ? 0x1p-110f : std::exp2(random.normal(3));
    for (int64_t i = 0; i < c.num_columns; ++i) row_of(row)[i] = random.normal(size);
  }
  row_of(3)[2] = NAN;
  row_of(4)[c.num_columns - 1] = -INFINITY;
  Call call;
  QuantizeWeightParams p;
  p.weight = add_tensor(call, "weight", c.weight, bytes_of_floats(c.weight, values));
  p.data = add_output(call, "data", DType::i8, count_of({c.num_rows, weight_row_bytes(c.out, c.num_columns)}),
                      Comparison::bits);
  p.scales = add_output(call, "scales", DType::bf16,
                        count_of({c.num_rows, weight_row_groups(c.num_columns, c.group_size)}), Comparison::bits);
  p.weight_dtype = c.weight;
  p.dtype = c.out;
  p.out_features = c.num_rows;
  p.in_features = c.num_columns;
  p.group_size = c.group_size;
  set_operator(call, quantize_weight, p);
  return call;
}

Call gated_mlp_call(const GatedMlpCase& c) {
  const size_t outputs = count_of({c.num_tokens, c.out_features});
  const DType out_dtype = c.accumulate ? DType::f32 : c.dtype;
  // silu works in its curved part, and its result and the output are of size 0.1.
  const float in_scale = 1 / std::sqrt(static_cast<float>(c.in_features));
  const float inner_scale = 1 / std::sqrt(static_cast<float>(c.inner_size));
  Call call;
  GatedMlpParams p;
  p.x = add_random(call, "x", c.dtype, count_of({c.num_tokens, c.in_features}), 0.1f, 1);
  const auto weight = [&](const char* name, int64_t rows, int64_t columns, float scale, uint64_t seed) {
    return add_weight(call, name, c.dtype, c.packing, rows, columns, scale, seed);
  };
  if (c.has_gate) p.gate = weight("gate", c.inner_size, c.in_features, 10 * in_scale, 2);
  p.up = weight("up", c.inner_size, c.in_features, c.has_gate ? in_scale : 10 * in_scale, 3);
  p.down = weight("down", c.out_features, c.inner_size, (c.has_gate ? 0.5f : 0.05f) * inner_scale, 4);
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

constexpr DType kF32 = DType::f32, kF16 = DType::f16, kBf16 = DType::bf16, kI8 = DType::i8, kI4 = DType::i4;

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
          product("GEMV, i4", {.dtype = kBf16,
                               .num_tokens = 11,
                               .in_features = 360,
                               .out_features = 50,
                               .accumulate = true,
                               .packing = {kI4, 32}}),
          product("GEMV, i8, rows not aligned",
                  {.dtype = kF32, .num_tokens = 3, .in_features = 331, .out_features = 21, .packing = {kI8, 64}}),
          product("GEMM, i8",
                  {.dtype = kF16, .num_tokens = 20, .in_features = 200, .out_features = 136, .packing = {kI8, 128}}),
          product("GEMM, i4, large tiles",
                  {.dtype = kBf16, .num_tokens = 150, .in_features = 200, .out_features = 1032, .packing = {kI4, 32}}),
          gated("i4, few tokens", {.dtype = kBf16,
                                   .num_tokens = 3,
                                   .in_features = 160,
                                   .inner_size = 72,
                                   .out_features = 40,
                                   .packing = {kI4, 32}}),
          gated("i8 and f16, many tokens", {.dtype = kF16,
                                            .num_tokens = 40,
                                            .in_features = 100,
                                            .inner_size = 72,
                                            .out_features = 40,
                                            .packing = {kI8, 32}}),
          {"weights to i4",
           [] {
             return quantize_weight_call({kF16, kI4, 64, 5, 200});
           }},
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
  for (const DType packed : {kI8, kI4}) {
    for (const DType x : {kF32, kF16, kBf16}) {
      const std::string types = std::string(dtype_name(x)) + " by " + dtype_name(packed) + ", ";
      for (const int64_t tokens : {1, 8, 16, 20}) {
        const int64_t group_size = tokens == 8 ? 64 : tokens == 16 ? 128 : 32;
        const DType scales = tokens == 8 || tokens == 20 ? kF16 : kBf16;
        const std::string name = types + std::to_string(tokens) + (tokens == 1 ? " token" : " tokens");
        calls.push_back(
            product("product, " + name + ", scales " + dtype_name(scales), {.dtype = x,
                                                                            .num_tokens = tokens,
                                                                            .in_features = 416,
                                                                            .out_features = 104,
                                                                            .f32_out = tokens == 8,
                                                                            .packing = {packed, group_size, scales}}));
        calls.push_back(gated(name, {.dtype = x,
                                     .num_tokens = tokens,
                                     .in_features = 100,
                                     .inner_size = 96,
                                     .out_features = 72,
                                     .accumulate = tokens == 16,
                                     .packing = {packed, group_size}}));
      }
      calls.push_back(gated(types + "relu2, no gate", {.dtype = x,
                                                       .num_tokens = 20,
                                                       .in_features = 128,
                                                       .inner_size = 96,
                                                       .out_features = 72,
                                                       .activation = Activation::relu2,
                                                       .has_gate = false,
                                                       .packing = {packed, 32}}));
      for (const int64_t group_size : {32, 64, 128}) {
        calls.push_back({std::string("weights to ") + dtype_name(packed) + ", " + dtype_name(x) + ", groups of " +
                             std::to_string(group_size),
                         [=] {
                           return quantize_weight_call({x, packed, group_size, 9, 300});
                         }});
      }
    }
  }
  calls.push_back({"softcap", [] { return softcap_call({1003, 30}); }});
  return calls;
}

}  // namespace diffqkv::cuda
