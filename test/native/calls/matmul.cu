// Calls of matmul, and what those of gated_mlp share with them.
#include "calls/plain.h"

namespace diffqkv::cuda {

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

std::string packing_text(const Packing& packing) {
  return packing.group_size == 0
             ? ""
             : std::string(", weights of ") + dtype_name(packing.dtype) + " by " + std::to_string(packing.group_size) +
                   ", scales of " + dtype_name(packing.scale_dtype);
}

void add_normed_x(Call& call, const void** x, InputNorm* norm, int64_t num_tokens, int64_t in_features) {
  std::vector<uint8_t> values = random_bytes(DType::f32, count_of({num_tokens, in_features}), 3, 1);
  float* const rows = reinterpret_cast<float*>(values.data());
  for (int64_t i = 0; i < num_tokens * in_features; ++i) rows[i] *= static_cast<float>(i / in_features + 1);
  *x = add_tensor(call, "x", DType::f32, values);
  const void* const weight = add_random(call, "norm", DType::f32, count_of({in_features}), 0.1f, 8);
  *norm = {static_cast<const float*>(weight), 1e-5f};
}

Call matmul_call(const MatmulCase& c) {
  const DType out_dtype = c.accumulate || c.f32_out ? DType::f32 : c.dtype;
  Call call;
  MatmulParams p;
  if (c.has_norm) {
    add_normed_x(call, &p.x, &p.norm, c.num_tokens, c.in_features);
  } else {
    p.x = add_random(call, "x", c.dtype, count_of({c.num_tokens, c.in_features}), 0.1f, 1);
  }
  const auto add = [&](const std::string& number, int64_t out_features, uint64_t seed) {
    const size_t count = count_of({c.num_tokens, out_features});
    const std::string out = "out" + number;
    MatmulOutput output;
    output.weight = add_weight(call, "weight" + number, c.dtype, c.packing, out_features, c.in_features, 0.1f, seed);
    output.out = add_output(call, out.c_str(), out_dtype, count, Comparison::values, out_features, c.dtype);
    if (c.accumulate) call.tensor(out).memory.upload(random_bytes(DType::f32, count, 0.1f, seed + 1));
    output.out_features = out_features;
    return output;
  };
  const MatmulOutput first = add("", c.out_features, 2);
  p.weight = first.weight;
  p.out = first.out;
  for (const int64_t size : c.others) {
    const int i = p.num_others++;
    p.others[i] = add(std::to_string(i + 2), size, static_cast<uint64_t>(10 * i + 12));
  }
  p.x_dtype = c.dtype;
  p.out_dtype = out_dtype;
  p.num_tokens = c.num_tokens;
  p.in_features = c.in_features;
  p.out_features = c.out_features;
  p.accumulate = c.accumulate;
  set_operator(call, matmul, p);
  return call;
}

namespace {

struct ProductParams {
  MatmulParams p;
  DType rounding;
};

__global__ void __launch_bounds__(kPlainThreads, 1) matmul_element(ProductParams product) {
  const MatmulParams& p = product.p;
  const int64_t i = output_index();
  if (i >= p.num_tokens * p.out_features) return;
  const int64_t t = i / p.out_features, row = i % p.out_features;
  const float before = p.accumulate ? ld_global(static_cast<const float*>(p.out) + i) : 0.0f;
  store_any(p.out, p.out_dtype, i,
            before + dot(p.x, p.x_dtype, p.weight, product.rounding, t * p.in_features, row, p.in_features));
}

struct PlainNormParams {
  const void* x;
  InputNorm norm;
  void* out;
  DType dtype;
  int64_t num_tokens, in_features;
};

__global__ void __launch_bounds__(kPlainThreads, 1) norm_row(PlainNormParams p) {
  const int64_t t = output_index();
  if (t >= p.num_tokens) return;
  const float* const row = static_cast<const float*>(p.x) + t * p.in_features;
  float sum = 0;
  for (int64_t i = 0; i < p.in_features; ++i) sum += ld_global(row + i) * ld_global(row + i);
  const float factor = 1.0f / sqrtf(sum / static_cast<float>(p.in_features) + p.norm.eps);
  for (int64_t i = 0; i < p.in_features; ++i)
    store_any(p.out, p.dtype, t * p.in_features + i, ld_global(row + i) * factor * ld_global(p.norm.weight + i));
}

}  // namespace

const void* run_norm(const void* x, const InputNorm& norm, DType x_dtype, int64_t num_tokens, int64_t in_features,
                     Context& context) {
  if (!norm.weight) return x;
  void* const rows = context.scratch(count_of({num_tokens, in_features}) * dtype_size(x_dtype));
  run_over(num_tokens, norm_row, PlainNormParams{x, norm, rows, x_dtype, num_tokens, in_features}, context);
  return rows;
}

void run_product(const MatmulParams& p, DType rounding, Context& context) {
  run_over(p.num_tokens * p.out_features, matmul_element, ProductParams{p, rounding}, context);
}

void reference(const MatmulParams& p, Context& context) {
  const void* const x = run_norm(p.x, p.norm, p.x_dtype, p.num_tokens, p.in_features, context);
  for (int i = 0; i < p.num_outputs(); ++i) {
    MatmulParams one = p.single(i);
    one.x = x;
    run_product(one, rounding_of(one.weight, p.x_dtype, p.num_tokens), context);
  }
}

namespace {

// From PTX: gemv_tensor<T, kGated, kHalves, kTilesN, kStaged>, gemv_plain<W, kGated, kTokens>, gemv_any<kGated>, gemv_packed<X, kType,
// kGated, Config> and gemm_kernel<T, kWeight, Config, kGated, kAligned>, each at sizes that leave parts of tiles over.
void add_ptx(CallList* calls) {
  const auto product = [&](const MatmulCase& c, const PlannedGpu& gpu, bool wide_x = false) {
    const std::string name = "product of " + text_of(c.dtype) + (wide_x ? " by f32, " : ", ") +
                             std::to_string(c.num_tokens) + " x " + std::to_string(c.in_features) + " x " +
                             std::to_string(c.out_features) + (c.accumulate ? ", accumulated" : "") +
                             (c.has_norm ? ", normalized" : "") + packing_text(c.packing) + ", " +
                             std::to_string(gpu.multiprocessors) + " multiprocessors";
    calls->add(
        name, [=] { return wide_x ? with_wide_x(matmul_call(c), matmul) : matmul_call(c); }, gpu);
  };
  for (const DType dtype : {kBf16, kF16}) {
    for (const bool accumulate : {false, true}) {
      product({dtype, 2, 264, 24, accumulate}, kLargeGpu);
      product({dtype, 8, 4104, 21, accumulate}, kLargeGpu);
      product({dtype, 5, 1032, 203, accumulate}, kSmallGpu);
      product({dtype, 3, 136, 150, accumulate}, kTinyGpu);
      product({dtype, 13, 264, 35, accumulate}, kTinyGpu);
      for (const int64_t out : {9, 150})
        product({.dtype = dtype,
                 .num_tokens = 3,
                 .in_features = 264,
                 .out_features = out,
                 .accumulate = accumulate,
                 .has_norm = true},
                kSmallGpu);
      // x does not fit in shared memory.
      product({dtype, 2, 20488, 35, accumulate}, kTinyGpu);
      product({dtype, 16, 2056, 35, accumulate}, kTinyGpu);
      product({dtype, 2, 60008, 9, accumulate}, kLargeGpu);
      product({dtype, 9, 20488, 9, accumulate}, kLargeGpu);
      product({dtype, 20, 387, 51, accumulate}, kTinyGpu);
      product({dtype, 70, 515, 130, accumulate}, kTinyGpu);
      product({dtype, 20, 328, 320, accumulate}, kSmallGpu);
      product({dtype, 12, 264, 136, accumulate}, kLargeGpu);
      product({dtype, 150, 264, 136, accumulate}, kTinyGpu);
    }
  }
  for (const DType dtype : kFloats) {
    for (const int64_t tokens : {1, 3, 11}) {
      product({dtype, tokens, 264, 41}, kSmallGpu, true);
      product({dtype, tokens, 2056, 9, true}, kLargeGpu, true);
      product({dtype, tokens, 131, 9, tokens == 3}, kSmallGpu, true);
    }
    for (const bool accumulate : {false, true}) product({dtype, 3, 131, 51, accumulate}, kLargeGpu);
    for (const DType packed : {kI8, kI4}) {
      const auto packed_product = [&](int64_t tokens, int64_t in, int64_t out, const Packing& packing,
                                      const PlannedGpu& gpu) {
        product({.dtype = dtype,
                 .num_tokens = tokens,
                 .in_features = in,
                 .out_features = out,
                 .accumulate = packing.group_size == 64,
                 .packing = packing},
                gpu);
      };
      for (const int64_t tokens : {3, 11}) {
        for (const DType scales : {kF16, kBf16}) packed_product(tokens, 584, 37, {packed, 64, scales}, kLargeGpu);
        packed_product(tokens, 331, 45, {packed, 32}, kTinyGpu);
      }
      if (dtype == kF32) continue;
      for (const int64_t out : {21, 300}) {
        product({.dtype = dtype,
                 .num_tokens = 2,
                 .in_features = 264,
                 .out_features = out,
                 .packing = {packed, 32},
                 .has_norm = true},
                kSmallGpu);
      }
      for (const int64_t tokens : {3, 11})
        packed_product(tokens, 20488, 20, {packed, 64}, kSmallGpu);  // x does not fit
      for (const int64_t tokens : {3, 11}) packed_product(tokens, 12296, 100, {packed, 64}, kSmallGpu);
      for (const DType scales : {kBf16, kF16}) {
        packed_product(20, 387, 51, {packed, 32, scales}, kTinyGpu);
        packed_product(20, 328, 320, {packed, 64, scales}, kSmallGpu);
        packed_product(20, 264, 136, {packed, 128, scales}, kLargeGpu);
        packed_product(150, 264, 136, {packed, 32, scales}, kTinyGpu);
      }
    }
  }
}

void add_sigma(CallList* calls) {
  for (const Sigma& model : kSigmas) {
    const auto add = [&](const std::string& name, const MatmulCase& c) {
      calls->add(model.name + name + ", " + tokens_text(c.num_tokens), matmul_call, c);
    };
    const int64_t hidden = model.hidden_size, out = kSigmaHeads.q * model.head_dim;
    for (const int64_t tokens : {1, 4, 8, 16, 512}) {
      add("K product", {kBf16, tokens, hidden, kSigmaHeads.k * model.head_dim});
      add("V product", {kBf16, tokens, hidden, kSigmaHeads.v * model.head_dim});
      add("O product", {kBf16, tokens, out, hidden, true});
      if (tokens <= 16) add("LM head", {kBf16, tokens, hidden, kSigmaVocabSize, false, true});
    }
    for (const DType packed : {kI8, kI4}) {
      for (const int64_t tokens : {1, 8, 16, 512}) {
        add("O product of " + text_of(packed), {.dtype = kBf16,
                                                .num_tokens = tokens,
                                                .in_features = out,
                                                .out_features = hidden,
                                                .accumulate = true,
                                                .packing = {packed, 32}});
      }
    }
  }
}

}  // namespace

OperatorCalls matmul_calls() {
  OperatorCalls calls;
  const auto seeded = [&](const std::string& name, const MatmulCase& c) { calls.seeded.add(name, matmul_call, c); };
  seeded("GEMV, f32", {kF32, 3, 264, 96, true});
  seeded("GEMV, rows not aligned", {kBf16, 2, 131, 50});
  seeded("GEMM, rows not aligned", {kBf16, 20, 131, 50});
  seeded("GEMM, large tiles", {kBf16, 260, 96, 1024});
  seeded("GEMV", {kBf16, 3, 264, 96, true});
  seeded("GEMV of normalized rows",
         {.dtype = kBf16, .num_tokens = 3, .in_features = 264, .out_features = 72, .has_norm = true});
  seeded(
      "GEMV of normalized rows, i8",
      {.dtype = kF16, .num_tokens = 2, .in_features = 264, .out_features = 72, .packing = {kI8, 32}, .has_norm = true});
  seeded("GEMV, several units of a block", {kBf16, 9, 264, 1300});
  seeded("GEMM", {kBf16, 70, 200, 136});
  seeded("GEMM, accumulated", {kF16, 17, 72, 72, true});
  seeded("GEMV, i4", {.dtype = kBf16,
                      .num_tokens = 11,
                      .in_features = 360,
                      .out_features = 50,
                      .accumulate = true,
                      .packing = {kI4, 32}});
  seeded("GEMV, i8, rows not aligned",
         {.dtype = kF32, .num_tokens = 3, .in_features = 331, .out_features = 21, .packing = {kI8, 64}});
  seeded("GEMM, i8", {.dtype = kF16, .num_tokens = 20, .in_features = 200, .out_features = 136, .packing = {kI8, 128}});
  seeded("GEMM, i4, large tiles",
         {.dtype = kBf16, .num_tokens = 150, .in_features = 200, .out_features = 1032, .packing = {kI4, 32}});
  for (const DType dtype : kFloats) {
    for (const int64_t tokens : {1, 5, 20}) {
      const std::string name = "three products, " + text_of(dtype) + ", " + tokens_text(tokens);
      calls.small.add(name, matmul_call,
                      {.dtype = dtype,
                       .num_tokens = tokens,
                       .in_features = 264,
                       .out_features = 21,
                       .accumulate = tokens == 5,
                       .others = {104, 40}});
      for (const DType packed : {kI8, kI4}) {
        calls.small.add(name + ", " + text_of(packed), matmul_call,
                        {.dtype = dtype,
                         .num_tokens = tokens,
                         .in_features = 416,
                         .out_features = 72,
                         .packing = {packed, 32},
                         .others = {9, 136}});
      }
    }
    for (const int64_t tokens : {1, 5, 20}) {
      const auto normed = [&](const std::string& name, const Packing& packing, int64_t in_features) {
        calls.small.add("product of normalized rows, " + name + ", " + tokens_text(tokens), matmul_call,
                        {.dtype = dtype,
                         .num_tokens = tokens,
                         .in_features = in_features,
                         .out_features = 72,
                         .f32_out = tokens == 5,
                         .packing = packing,
                         .others = {24, 9},
                         .has_norm = true});
      };
      const int64_t in_features = tokens == 5 ? 131 : 416;  // rows not aligned, or aligned
      normed(text_of(dtype), {}, in_features);
      for (const DType packed : {kI8, kI4})
        normed(text_of(dtype) + " by " + text_of(packed), {packed, 64}, in_features);
    }
    for (const int64_t tokens : {1, 8, 9, 16}) {
      calls.small.add("product, " + text_of(dtype) + ", " + tokens_text(tokens), matmul_call,
                      {dtype, tokens, 256, 104});
    }
    for (const DType packed : {kI8, kI4}) {
      for (const int64_t tokens : {1, 8, 16, 20}) {
        const int64_t group_size = tokens == 8 ? 64 : tokens == 16 ? 128 : 32;
        const DType scales = tokens == 8 || tokens == 20 ? kF16 : kBf16;
        calls.small.add("product, " + text_of(dtype) + " by " + text_of(packed) + ", " + tokens_text(tokens) +
                            ", scales " + text_of(scales),
                        matmul_call,
                        {.dtype = dtype,
                         .num_tokens = tokens,
                         .in_features = 416,
                         .out_features = 104,
                         .f32_out = tokens == 8,
                         .packing = {packed, group_size, scales}});
      }
    }
  }
  add_sigma(&calls.sigma);
  add_ptx(&calls.ptx);
  return calls;
}

}  // namespace diffqkv::cuda
