// What the linear layers share: one description of a product, the two ways to form it, and what ends both.
#pragma once

#include "element_types.h"

namespace diffqkv::cuda {

// out = x weight^T, out += x weight^T, or, if `up` is given, out = activation(x weight^T) * (x up^T). Sums are f32.
struct LinearParams {
  const void* x = nullptr;           // [num_tokens, in_features]
  const void* weight = nullptr;      // [out_features, in_features]
  const void* up = nullptr;          // [out_features, in_features], or null
  void* out = nullptr;               // [num_tokens, out_features]
  const float* row_scale = nullptr;  // [num_tokens], or null: each row of out is multiplied by it. gemm alone takes it.
  DType x_dtype = DType::f32, weight_dtype = DType::f32, out_dtype = DType::f32;
  int64_t num_tokens = 0, in_features = 0, out_features = 0;
  bool accumulate = false;                   // out is f32 then, and there is no `up`
  Activation activation = Activation::silu;  // gemm has only silu
};

// Up to so many tokens share one reading of the weights.
constexpr int kGemvTokens = 8;

// Any types and sizes; weights are read once for every kGemvTokens tokens.
void gemv(const LinearParams& p, Context& context);
// By tensor cores: x and weight of one 16-bit type, out of that type or f32.
inline bool gemm_takes(DType x, DType weight, DType out) {
  return x == weight && weight != DType::f32 && (out == weight || out == DType::f32);
}
void gemm(const LinearParams& p, Context& context);
// Which of the two suits.
inline bool suits_gemm(const LinearParams& p) {
  return p.num_tokens > kGemvTokens && gemm_takes(p.x_dtype, p.weight_dtype, p.out_dtype);
}
// The one that suits. Nothing is launched where there is nothing to write.
void linear(const LinearParams& p, Context& context);

// gated_activation from f32 to bf16. The tensors are aligned to 16 bytes.
void gated_activation_to_bf16(const GatedActivationParams& p, Context& context);

// Throws unless all are f32, f16 or bf16, and `accumulate` goes with an f32 output.
void check_linear_types(const char* name, DType x, DType weight, DType out, bool accumulate);

// Throws ERR_UNSUPPORTED_MODEL if weights of this type are quantized.
void check_not_packed(DType dtype);

// Whether rows of `row_size` elements that begin at p all begin at a multiple of 16 bytes.
inline bool rows_aligned(const void* p, int64_t row_size, DType dtype) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && row_size * static_cast<int64_t>(dtype_size(dtype)) % 16 == 0;
}

// out[index] = value, or += value, where out is f32.
__device__ __forceinline__ void put(void* out, DType dtype, int64_t index, float value, bool accumulate) {
  store_any(out, dtype, index, accumulate ? ld_global(static_cast<const float*>(out) + index) + value : value);
}

}  // namespace diffqkv::cuda
