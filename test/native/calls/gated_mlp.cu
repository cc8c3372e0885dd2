// Calls of gated_mlp.
#include "calls/plain.h"

namespace diffqkv::cuda {

Call gated_mlp_call(const GatedMlpCase& c) {
  const size_t outputs = count_of({c.num_tokens, c.out_features});
  const DType out_dtype = c.accumulate ? DType::f32 : c.dtype;
  // silu works in its curved part, and its result and the output are of size 0.1.
  const float in_scale = 1 / std::sqrt(static_cast<float>(c.in_features));
  const float inner_scale = 1 / std::sqrt(static_cast<float>(c.inner_size));
  Call call;
  GatedMlpParams p;
  if (c.has_norm) {
    add_normed_x(call, &p.x, &p.norm, c.num_tokens, c.in_features);
  } else {
    p.x = add_random(call, "x", c.dtype, count_of({c.num_tokens, c.in_features}), 0.1f, 1);
  }
  const auto weight = [&](const char* name, int64_t rows, int64_t columns, float scale, uint64_t seed) {
    return add_weight(call, name, c.dtype, c.packing, rows, columns, scale, seed);
  };
  if (c.has_gate) p.gate = weight("gate", c.inner_size, c.in_features, 10 * in_scale, 2);
  p.up = weight("up", c.inner_size, c.in_features, c.has_gate ? in_scale : 10 * in_scale, 3);
  p.down = weight("down", c.out_features, c.inner_size, (c.has_gate ? 0.5f : 0.05f) * inner_scale, 4);
  p.out = add_output(call, "out", out_dtype, outputs, Comparison::values, c.out_features, c.dtype);
  if (c.accumulate) call.tensor("out").memory.upload(random_bytes(DType::f32, outputs, 0.1f, 5));
  for (const int64_t size : c.others) {
    const uint64_t i = static_cast<uint64_t>(p.num_others++);
    const std::string number = std::to_string(i + 2), out = "out" + number;
    MatmulOutput& other = p.others[i];
    other.weight = weight(("weight" + number).c_str(), size, c.in_features, in_scale, 10 * i + 12);
    other.out =
        add_output(call, out.c_str(), out_dtype, count_of({c.num_tokens, size}), Comparison::values, size, c.dtype);
    other.out_features = size;
  }
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

namespace {

struct GatedParams {
  GatedMlpParams p;
  float* h;  // [num_tokens, inner_size]
  DType rounding;
};

__global__ void __launch_bounds__(kPlainThreads, 1) gated_element(GatedParams g) {
  const GatedMlpParams& p = g.p;
  const int64_t i = output_index();
  if (i >= p.num_tokens * p.inner_size) return;
  const int64_t x_first = i / p.inner_size * p.in_features, row = i % p.inner_size;
  const float gate = p.gate.data ? dot(p.x, p.x_dtype, p.gate, g.rounding, x_first, row, p.in_features) : 0.0f;
  const float up = dot(p.x, p.x_dtype, p.up, g.rounding, x_first, row, p.in_features);
  st_global(g.h + i, p.gate.data ? plain_activation(p.activation, gate) * up : plain_activation(p.activation, up));
}

}  // namespace

void reference(const GatedMlpParams& mlp, Context& context) {
  GatedMlpParams p = mlp;
  p.x = run_norm(p.x, p.norm, p.x_dtype, p.num_tokens, p.in_features, context);
  for (int i = 0; i < p.num_others; ++i) {
    MatmulParams other;
    other.x = p.x;
    other.weight = p.others[i].weight;
    other.out = p.others[i].out;
    other.x_dtype = p.x_dtype;
    other.out_dtype = p.out_dtype;
    other.num_tokens = p.num_tokens;
    other.in_features = p.in_features;
    other.out_features = p.others[i].out_features;
    run_product(other, rounding_of(other.weight, p.x_dtype, p.num_tokens), context);
  }
  const int64_t count = p.num_tokens * p.inner_size;
  const GatedParams g = {p, static_cast<float*>(context.scratch(static_cast<size_t>(count) * sizeof(float))),
                         rounding_of(p.up, p.x_dtype, p.num_tokens)};
  run_over(count, gated_element, g, context);
  MatmulParams down;
  down.x = g.h;
  down.weight = p.down;
  down.out = p.out;
  down.out_dtype = p.out_dtype;
  down.num_tokens = p.num_tokens;
  down.in_features = p.inner_size;
  down.out_features = p.out_features;
  down.accumulate = p.accumulate;
  run_product(down, rounding_of(p.down, p.x_dtype, p.num_tokens), context);
}

namespace {

// From PTX: see matmul.cu.
void add_ptx(CallList* calls) {
  const auto gated = [&](const GatedMlpCase& c, const PlannedGpu& gpu, bool wide_x = false) {
    const std::string name =
        "augmented Q of " + text_of(c.dtype) + (wide_x ? " by f32, " : ", ") + std::to_string(c.num_tokens) + " x " +
        std::to_string(c.in_features) + " x " + std::to_string(c.inner_size) + " x " + std::to_string(c.out_features) +
        (c.accumulate ? ", accumulated" : "") + (c.has_gate ? "" : ", no gate") + packing_text(c.packing) +
        ", activation " + std::to_string(static_cast<int>(c.activation)) + ", " + std::to_string(gpu.multiprocessors) +
        " multiprocessors";
    calls->add(
        name, [=] { return wide_x ? with_wide_x(gated_mlp_call(c), gated_mlp) : gated_mlp_call(c); }, gpu);
  };
  for (const DType dtype : {kBf16, kF16}) {
    for (const bool accumulate : {false, true}) gated({dtype, 12, 264, 72, 136, accumulate}, kLargeGpu);
    for (const auto& [name, activation] : kOtherActivations) {
      gated({dtype, 3, 264, 40, 24, false, activation}, kSmallGpu);
      gated({dtype, 3, 131, 11, 7, false, activation}, kSmallGpu);
      gated({dtype, 12, 264, 40, 24, false, activation}, kSmallGpu);
      gated({dtype, 12, 264, 40, 24, false, activation, false}, kSmallGpu);
    }
    gated({dtype, 3, 264, 40, 24, true, Activation::silu, false}, kSmallGpu);
    gated({dtype, 6, 1032, 83, 40}, kSmallGpu);
    gated({dtype, 2, 20488, 20, 16}, kTinyGpu);  // x does not fit in shared memory
    gated({dtype, 12, 2056, 20, 16}, kTinyGpu);
    gated({dtype, 70, 387, 35, 40}, kTinyGpu);
    gated({dtype, 20, 264, 136, 72}, kSmallGpu);
    gated({dtype, 11, 264, 1100, 24}, kTinyGpu);
    gated({dtype, 150, 264, 136, 136}, kTinyGpu);
  }
  for (const DType dtype : kFloats) {
    for (const int64_t tokens : {1, 3, 11}) {
      gated({dtype, tokens, 1032, 49, 40}, kSmallGpu, true);
      for (const auto& [name, activation] : kOtherActivations)
        gated({dtype, tokens, 264, 9, 8, false, activation}, kSmallGpu, true);
      gated({dtype, tokens, 131, 11, 7}, kSmallGpu, true);
    }
    gated({dtype, 3, 67, 34, 40}, kSmallGpu);
    for (const DType packed : {kI8, kI4}) {
      const auto packed_gated = [&](int64_t tokens, int64_t in, int64_t inner, int64_t out, DType scales,
                                    const PlannedGpu& gpu) {
        gated({.dtype = dtype,
               .num_tokens = tokens,
               .in_features = in,
               .inner_size = inner,
               .out_features = out,
               .packing = {packed, 32, scales}},
              gpu);
      };
      for (const int64_t tokens : {3, 11}) packed_gated(tokens, 200, 41, 24, kBf16, kSmallGpu);
      for (const int64_t tokens : {3, 11}) packed_gated(tokens, 12296, 20, 9, kBf16, kSmallGpu);  // x does not fit
      if (dtype == kF32) continue;
      for (const DType scales : {kBf16, kF16}) {
        packed_gated(20, 387, 35, 40, scales, kTinyGpu);
        packed_gated(20, 264, 136, 72, scales, kSmallGpu);
        packed_gated(20, 264, 72, 136, scales, kLargeGpu);
        packed_gated(150, 264, 136, 136, scales, kTinyGpu);
      }
    }
  }
}

void add_small(CallList* calls) {
  const auto add = [&](const std::string& name, const GatedMlpCase& c) {
    calls->add("augmented Q, " + name, gated_mlp_call, c);
  };
  for (const DType dtype : kFloats) {
    const std::string type = text_of(dtype);
    for (const int64_t tokens : {1, 8, 9, 16}) add(type + ", " + tokens_text(tokens), {dtype, tokens, 128, 96, 72});
    add(type + ", accumulated", {dtype, 5, 128, 96, 72, true});
    for (const int64_t tokens : {3, 20}) {
      for (const auto& [name, activation] : kOtherActivations)
        add(type + ", " + name + ", " + tokens_text(tokens), {dtype, tokens, 128, 384, 72, false, activation});
      add(type + ", no gate, " + tokens_text(tokens), {dtype, tokens, 128, 384, 72, true, Activation::relu2, false});
    }
    for (const int64_t tokens : {1, 5, 12, 20}) {
      for (const Packing& packing : {Packing{}, Packing{kI8, 32}, Packing{kI4, 64}}) {
        add(type + packing_text(packing) + ", with two products, " + tokens_text(tokens),
            {.dtype = dtype,
             .num_tokens = tokens,
             .in_features = tokens == 5 || tokens == 12 ? 131 : 264,  // rows not aligned, or aligned
             .inner_size = 104,
             .out_features = 72,
             .accumulate = tokens == 12,
             .activation = tokens == 20 ? Activation::gelu : Activation::silu,
             .packing = packing,
             .others = {24, tokens == 12 ? 9 : 40},
             .has_norm = tokens != 12});
      }
    }
    for (const DType packed : {kI8, kI4}) {
      const std::string types = type + " by " + text_of(packed) + ", ";
      for (const int64_t tokens : {1, 8, 16, 20}) {
        add(types + tokens_text(tokens), {.dtype = dtype,
                                          .num_tokens = tokens,
                                          .in_features = 100,
                                          .inner_size = 96,
                                          .out_features = 72,
                                          .accumulate = tokens == 16,
                                          .packing = {packed, tokens == 8    ? 64
                                                              : tokens == 16 ? 128
                                                                             : 32}});
      }
      add(types + "relu2, no gate", {.dtype = dtype,
                                     .num_tokens = 20,
                                     .in_features = 128,
                                     .inner_size = 96,
                                     .out_features = 72,
                                     .activation = Activation::relu2,
                                     .has_gate = false,
                                     .packing = {packed, 32}});
    }
  }
}

void add_sigma(CallList* calls) {
  for (const Sigma& model : kSigmas) {
    const auto add = [&](const std::string& name, const GatedMlpCase& c) {
      calls->add(model.name + name + ", " + tokens_text(c.num_tokens), gated_mlp_call, c);
    };
    const int64_t hidden = model.hidden_size, inner = model.intermediate_size;
    for (const int64_t tokens : {1, 4, 8, 16, 512}) {
      add("augmented Q", {kBf16, tokens, hidden, model.aug_q_size, kSigmaHeads.q * model.head_dim});
      add("FFN", {kBf16, tokens, hidden, inner, hidden, true});
    }
    for (const DType packed : {kI8, kI4}) {
      for (const int64_t tokens : {1, 8, 16, 512}) {
        add("FFN of " + text_of(packed), {.dtype = kBf16,
                                          .num_tokens = tokens,
                                          .in_features = hidden,
                                          .inner_size = inner,
                                          .out_features = hidden,
                                          .accumulate = true,
                                          .packing = {packed, 32}});
      }
    }
    for (const int64_t tokens : kSigmaTokens) add("FFN in f16", {kF16, tokens, hidden, inner, hidden});
    for (const int64_t tokens : {1, 16}) add("FFN in f32", {kF32, tokens, hidden, inner, hidden});
  }
}

}  // namespace

OperatorCalls gated_mlp_calls() {
  OperatorCalls calls;
  const auto seeded = [&](const std::string& name, const GatedMlpCase& c) {
    calls.seeded.add("augmented Q, " + name, gated_mlp_call, c);
  };
  seeded("i4, few tokens", {.dtype = kBf16,
                            .num_tokens = 3,
                            .in_features = 160,
                            .inner_size = 72,
                            .out_features = 40,
                            .packing = {kI4, 32}});
  seeded("i8 and f16, many tokens", {.dtype = kF16,
                                     .num_tokens = 40,
                                     .in_features = 100,
                                     .inner_size = 72,
                                     .out_features = 40,
                                     .packing = {kI8, 32}});
  seeded("f16", {kF16, 20, 128, 96, 64});
  seeded("few tokens", {kBf16, 2, 128, 96, 64});
  seeded("several units of a block", {kBf16, 10, 264, 300, 64});
  seeded("many tokens", {kBf16, 40, 128, 96, 64});
  seeded("f32, few tokens", {kF32, 3, 64, 48, 32});
  add_small(&calls.small);
  add_sigma(&calls.sigma);
  add_ptx(&calls.ptx);
  return calls;
}

}  // namespace diffqkv::cuda
