// out (+)= x weight^T: few tokens by gemv, more by gemm. With AMX, oneDNN multiplies many tokens in
// bf16, if it is built in.
//
// For oneDNN, quantized weights are rounded to bf16 in panels of bounded size.
#include <algorithm>

#include "backend/cpu/arena.h"
#include "backend/cpu/linear/linear.h"
#include "backend/error.h"

#if defined(DIFFQKV_HAVE_ONEDNN)
#include "backend/cpu/linear/onednn.h"
#endif

namespace diffqkv::cpu {
namespace {

constexpr const char* kBuiltIn = "built in";

}  // namespace

#if defined(DIFFQKV_HAVE_ONEDNN)

struct LinearLayers::OneDnn {
  OneDnnProducts products;
};

std::string linear_layer_library() {
  if (!use_amx()) return kBuiltIn;
  const dnnl_version_t* version = dnnl_version();
  return "oneDNN " + std::to_string(version->major) + "." + std::to_string(version->minor) + "." +
         std::to_string(version->patch);
}

LinearLayers::LinearLayers(const Kernels& kernels, Arena& arena)
    : kernels_(kernels), arena_(arena), onednn_(use_amx() ? std::make_unique<OneDnn>() : nullptr) {}

bool LinearLayers::uses_onednn(DType weight_dtype, DType x_dtype, int64_t in_features) const {
  return onednn_ && x_dtype == DType::bf16 && multiplies_bf16(weight_dtype, false) &&
         onednn_->products.multiplies_bf16(in_features);
}

namespace {

constexpr int64_t kScratchBytes = int64_t{8} << 20;  // limit for a panel of a quantized weight in bf16

// The number of rows of `row_size` elements in a panel, at least 64.
int64_t rows_in_scratch(int64_t row_size) { return std::max<int64_t>(64, kScratchBytes / (row_size * 2) / 64 * 64); }

// Rows [row, row + num_rows) of a quantized weight in bf16.
void fill_panel(const Kernels& kernels, const WeightView& weight, int64_t in, int64_t row, int64_t num_rows,
                void* panel) {
  kernels.dequantize_rows(panel, weight_rows(weight, in, row), in, num_rows);
}

void* offset(void* data, DType dtype, int64_t count) {
  return static_cast<char*>(data) + count * static_cast<int64_t>(dtype_size(dtype));
}

// x is bf16, the weight bf16 or quantized, out f32 or bf16.
void matmul_onednn(const MatmulParams& p, const Kernels& kernels, Arena& arena, OneDnnProducts& products) {
  const int64_t in = p.in_features;
  const bool is_packed = dtype_is_packed(p.weight.dtype);
  // The whole weight, or panels of a quantized one.
  const int64_t panel_rows = is_packed ? std::min(p.out_features, rows_in_scratch(in)) : p.out_features;
  for (int64_t row = 0; row < p.out_features; row += panel_rows) {
    const int64_t num_rows = std::min(panel_rows, p.out_features - row);
    const void* weight = p.weight.data;
    if (is_packed) {
      void* panel = arena.get(kSlotWeight, panel_rows * in * dtype_size(DType::bf16));
      fill_panel(kernels, p.weight, in, row, num_rows, panel);
      weight = panel;
    }
    products.run({.x = p.x,
                  .weight = weight,
                  .out = offset(p.out, p.out_dtype, row),
                  .out_dtype = p.out_dtype,
                  .num_tokens = p.num_tokens,
                  .in_features = in,
                  .out_features = num_rows,
                  .stride_out = p.out_features,
                  .epilogue = p.accumulate ? Epilogue::add : Epilogue::none},
                 arena);
  }
}

}  // namespace

void LinearLayers::gated_product_onednn(const GatedMlpParams& p, const void* x, int64_t num_tokens, void* inner) {
  const int64_t in = p.in_features;
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
      fill_panel(kernels_, weight, in, row, num_rows, panel);
      return static_cast<const void*>(panel);
    };
    Product product = {.x = x,
                       .weight = weight_of(p.gate.data ? p.gate : p.up),
                       .out = gate,
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
}

#else

struct LinearLayers::OneDnn {};

std::string linear_layer_library() { return kBuiltIn; }

LinearLayers::LinearLayers(const Kernels& kernels, Arena& arena) : kernels_(kernels), arena_(arena) {}

bool LinearLayers::uses_onednn(DType, DType, int64_t) const { return false; }

void LinearLayers::gated_product_onednn(const GatedMlpParams&, const void*, int64_t, void*) {}

#endif

LinearLayers::~LinearLayers() = default;

bool LinearLayers::multiplies_bf16(DType weight_dtype, bool by_gemv) const {
  if (dtype_is_packed(weight_dtype)) return by_gemv || kernels_.multiplies_bf16;
  return weight_dtype == DType::bf16 && kernels_.multiplies_bf16;
}

int64_t LinearLayers::max_gemv_tokens(DType weight_dtype) const {
  return dtype_is_packed(weight_dtype) ? 32 : 16;  // it takes some tokens until panels are worth unpacking
}

const void* LinearLayers::normalized(const void* x, const InputNorm& norm, DType dtype, int64_t num_tokens,
                                     int64_t in_features) {
  if (!norm.weight) return x;
  RmsNormParams p;
  p.x = x;
  p.weight = norm.weight;
  p.out = arena_.get(kSlotNormed, num_tokens * in_features * dtype_size(dtype));
  p.out_dtype = dtype;
  p.num_tokens = num_tokens;
  p.hidden_size = in_features;
  p.eps = norm.eps;
  kernels_.rms_norm(p, arena_);
  return p.out;
}

void LinearLayers::matmul(const MatmulParams& p) {
  require_compute_type("matmul: x", p.x_dtype);
  require_weight_type("matmul: weight", p.weight.dtype);
  require_compute_type("matmul: out", p.out_dtype);
  if (p.accumulate) require_accumulator_type("matmul: out", p.out_dtype);
  if (p.num_tokens <= 0 || p.out_features <= 0) return;
  if (p.norm.weight) {
    MatmulParams product = p;
    product.x = normalized(p.x, p.norm, p.x_dtype, p.num_tokens, p.in_features);
    product.norm = {};
    return matmul(product);
  }
  if (p.num_tokens <= max_gemv_tokens(p.weight.dtype) || p.in_features == 0) return kernels_.gemv(p, arena_);
  if (p.num_others > 0) {
    for (int i = 0; i < p.num_outputs(); ++i) matmul(p.single(i));
    return;
  }
#if defined(DIFFQKV_HAVE_ONEDNN)
  if (p.out_dtype != DType::f16 && uses_onednn(p.weight.dtype, p.x_dtype, p.in_features)) {
    return matmul_onednn(p, kernels_, arena_, onednn_->products);
  }
#endif
  kernels_.gemm(p, arena_);
}

}  // namespace diffqkv::cpu
