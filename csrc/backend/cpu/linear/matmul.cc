// out (+)= x weight^T: few tokens by gemv, more by oneDNN, or by matmul_blocked if oneDNN is not
// built in.
//
// With VNNI and without AMX, quantized weights are multiplied by gemv for any number of tokens.
//
// oneDNN multiplies f32 by f32, and bf16 by bf16 if the CPU has instructions for it. Every other
// pair of types is converted to f32, which is exact, in panels of bounded size. If x is bf16,
// panels of a quantized weight are rounded to bf16.
#include <algorithm>

#include "backend/cpu/arena.h"
#include "backend/cpu/linear/linear.h"
#include "backend/error.h"

#if defined(DIFFQKV_HAVE_ONEDNN)
#include "backend/cpu/linear/onednn.h"
#endif

namespace diffqkv::cpu {

#if defined(DIFFQKV_HAVE_ONEDNN)

struct LinearLayers::OneDnn {
  OneDnnProducts products;
};

std::string linear_layer_library() {
  const dnnl_version_t* version = dnnl_version();
  return "oneDNN " + std::to_string(version->major) + "." + std::to_string(version->minor) + "." +
         std::to_string(version->patch);
}

LinearLayers::LinearLayers(const Kernels& kernels, Arena& arena)
    : kernels_(kernels), arena_(arena), onednn_(std::make_unique<OneDnn>()) {}

bool LinearLayers::multiplies_bf16() const { return onednn_->products.multiplies_bf16(2); }

namespace {

constexpr int64_t kScratchBytes = int64_t{16} << 20;  // limit for each of x, weight and out in f32

// The number of rows of `row_size` floats in a scratch buffer, at least 64.
int64_t rows_in_scratch(int64_t row_size) { return std::max<int64_t>(64, kScratchBytes / (row_size * 4) / 64 * 64); }

// Rows [row, row + num_rows) of a weight as `dtype`, f32 or bf16, in `panel`.
void fill_panel(const Kernels& kernels, const WeightView& weight, int64_t in, int64_t row, int64_t num_rows,
                DType dtype, void* panel) {
  const WeightView rows = weight_rows(weight, in, row);
  if (dtype_is_packed(weight.dtype)) return kernels.dequantize_rows(dtype, panel, rows, in, num_rows);
  kernels.convert(dtype, panel, weight.dtype, rows.data, num_rows * in);
}

const void* offset(const void* data, DType dtype, int64_t count) {
  return static_cast<const char*>(data) + count * static_cast<int64_t>(dtype_size(dtype));
}
void* offset(void* data, DType dtype, int64_t count) {
  return static_cast<char*>(data) + count * static_cast<int64_t>(dtype_size(dtype));
}

void matmul_onednn(const MatmulParams& p, const Kernels& kernels, Arena& arena, OneDnnProducts& products) {
  const int64_t in = p.in_features;
  const bool bf16 = p.x_dtype == DType::bf16 && (p.weight.dtype == DType::bf16 || dtype_is_packed(p.weight.dtype)) &&
                    products.multiplies_bf16(in);
  const DType dtype = bf16 ? DType::bf16 : DType::f32;
  const bool widen_x = p.x_dtype != dtype;
  const bool widen_weight = p.weight.dtype != dtype;
  const bool round_out = p.out_dtype != DType::f32 && !(bf16 && p.out_dtype == DType::bf16);

  int64_t panel_rows = p.out_features;
  int64_t block_tokens = p.num_tokens;
  if (widen_weight) panel_rows = std::min(panel_rows, rows_in_scratch(in));
  if (widen_x) block_tokens = std::min(block_tokens, rows_in_scratch(in));
  if (round_out) block_tokens = std::min(block_tokens, rows_in_scratch(panel_rows));

  for (int64_t token = 0; token < p.num_tokens; token += block_tokens) {
    const int64_t num_tokens = std::min(block_tokens, p.num_tokens - token);
    const void* x = offset(p.x, p.x_dtype, token * in);
    if (widen_x) {
      void* x_f32 = arena.get(kSlotX, block_tokens * in * sizeof(float));
      kernels.convert(DType::f32, x_f32, p.x_dtype, x, num_tokens * in);
      x = x_f32;
    }
    for (int64_t row = 0; row < p.out_features; row += panel_rows) {
      const int64_t num_rows = std::min(panel_rows, p.out_features - row);
      const void* weight = weight_rows(p.weight, in, row).data;
      if (widen_weight) {
        void* panel = arena.get(kSlotWeight, panel_rows * in * dtype_size(dtype));
        fill_panel(kernels, p.weight, in, row, num_rows, dtype, panel);
        weight = panel;
      }
      if (!round_out) {
        products.run({.x = x,
                      .weight = weight,
                      .out = offset(p.out, p.out_dtype, token * p.out_features + row),
                      .dtype = dtype,
                      .out_dtype = p.out_dtype,
                      .num_tokens = num_tokens,
                      .in_features = in,
                      .out_features = num_rows,
                      .stride_out = p.out_features,
                      .epilogue = p.accumulate ? Epilogue::add : Epilogue::none},
                     arena);
        continue;
      }
      float* out_f32 = static_cast<float*>(arena.get(kSlotOut, block_tokens * panel_rows * sizeof(float)));
      products.run({.x = x,
                    .weight = weight,
                    .out = out_f32,
                    .dtype = dtype,
                    .out_dtype = DType::f32,
                    .num_tokens = num_tokens,
                    .in_features = in,
                    .out_features = num_rows,
                    .stride_out = num_rows},
                   arena);
      if (num_rows == p.out_features) {
        kernels.convert(p.out_dtype, offset(p.out, p.out_dtype, token * p.out_features), DType::f32, out_f32,
                        num_tokens * num_rows);
        continue;
      }
      for (int64_t t = 0; t < num_tokens; ++t) {
        kernels.convert(p.out_dtype, offset(p.out, p.out_dtype, (token + t) * p.out_features + row), DType::f32,
                        out_f32 + t * num_rows, num_rows);
      }
    }
  }
}

}  // namespace

bool LinearLayers::gated_product_bf16(const GatedMlpParams& p, const void* x, int64_t num_tokens, void* inner) {
  const int64_t in = p.in_features;
  if (!onednn_->products.multiplies_bf16(in)) return false;
  const bool is_packed = dtype_is_packed(p.up.dtype);
  const bool fuses = p.activation == Activation::silu;
  // Whole weights, or panels of quantized ones.
  const int64_t panel_rows = is_packed ? std::min(p.inner_size, rows_in_scratch(in)) : p.inner_size;
  float* gate = static_cast<float*>(arena_.get(kSlotGate, num_tokens * panel_rows * sizeof(float)));
  void* panel = is_packed ? arena_.get(kSlotWeight, panel_rows * in * dtype_size(DType::bf16)) : nullptr;
  for (int64_t row = 0; row < p.inner_size; row += panel_rows) {
    const int64_t num_rows = std::min(panel_rows, p.inner_size - row);
    const auto weight_of = [&](const WeightView& weight) {
      if (!is_packed) return weight.data;
      fill_panel(kernels_, weight, in, row, num_rows, DType::bf16, panel);
      return static_cast<const void*>(panel);
    };
    Product product = {.x = x,
                       .weight = weight_of(p.gate.data ? p.gate : p.up),
                       .out = gate,
                       .dtype = DType::bf16,
                       .out_dtype = DType::f32,
                       .num_tokens = num_tokens,
                       .in_features = in,
                       .out_features = num_rows,
                       .stride_out = num_rows,
                       .epilogue = fuses ? Epilogue::silu : Epilogue::none};
    onednn_->products.run(product, arena_);
    const int64_t count = num_tokens * num_rows;
    if (!fuses) {
      kernels_.gated_activation({.up = gate, .out = gate, .count = count, .activation = p.activation}, arena_);
    }
    void* to = offset(inner, DType::bf16, row);
    if (p.gate.data) {
      product.weight = weight_of(p.up);
      product.out = to;
      product.out_dtype = DType::bf16;
      product.stride_out = p.inner_size;
      product.epilogue = Epilogue::multiply;
      product.factor = gate;
      onednn_->products.run(product, arena_);
    } else if (num_rows == p.inner_size) {
      kernels_.convert(DType::bf16, to, DType::f32, gate, count);
    } else {
      for (int64_t t = 0; t < num_tokens; ++t) {
        kernels_.convert(DType::bf16, offset(to, DType::bf16, t * p.inner_size), DType::f32, gate + t * num_rows,
                         num_rows);
      }
    }
  }
  return true;
}

#else

struct LinearLayers::OneDnn {};

std::string linear_layer_library() { return "plain blocked loop"; }

LinearLayers::LinearLayers(const Kernels& kernels, Arena& arena) : kernels_(kernels), arena_(arena) {}

bool LinearLayers::multiplies_bf16() const { return std::string(kernels_.name) == "avx512_bf16"; }

bool LinearLayers::gated_product_bf16(const GatedMlpParams&, const void*, int64_t, void*) { return false; }

#endif

LinearLayers::~LinearLayers() = default;

int64_t LinearLayers::max_gemv_tokens(DType weight_dtype, DType x_dtype) const {
  if (!dtype_is_packed(weight_dtype)) {
    return weight_dtype == DType::f16 ? 32 : 16;  // f16: oneDNN multiplies panels that are converted to f32
  }
  // With VNNI, integers are multiplied faster than bf16 and f32, except by AMX, or if x is f32 and has
  // two integers for each element. Else it takes some tokens until panels are worth unpacking.
#if defined(DIFFQKV_HAVE_ONEDNN)
  const bool is_fastest = std::string(kernels_.name) == "avx512_bf16" && !use_amx();
#else
  const bool is_fastest = true;
#endif
  return is_fastest && x_dtype != DType::f32 ? INT64_MAX : 32;
}

void LinearLayers::matmul(const MatmulParams& p) {
  require_compute_type("matmul: x", p.x_dtype);
  require_weight_type("matmul: weight", p.weight.dtype);
  require_compute_type("matmul: out", p.out_dtype);
  if (p.accumulate) require_accumulator_type("matmul: out", p.out_dtype);
  if (p.num_tokens <= 0 || p.out_features <= 0) return;
  if (p.num_tokens <= max_gemv_tokens(p.weight.dtype, p.x_dtype) || p.in_features == 0) return kernels_.gemv(p, arena_);
#if defined(DIFFQKV_HAVE_ONEDNN)
  matmul_onednn(p, kernels_, arena_, onednn_->products);
#else
  kernels_.matmul_blocked(p, arena_);
#endif
}

}  // namespace diffqkv::cpu
