// What the linear layers share: one description of a product, the ways to form it, and what ends
// them.
#pragma once

#include "element_types.h"

namespace diffqkv::cuda {

// out = x weight^T, out += x weight^T, or, if `up` is given, out = activation(x weight^T) * (x up^T). Sums are f32.
struct LinearParams {
  const void* x = nullptr;           // [num_tokens, in_features]
  WeightView weight;                 // [out_features, in_features]
  WeightView up;                     // the same, of the same type and group size, or without data
  void* out = nullptr;               // [num_tokens, out_features]
  const float* row_scale = nullptr;  // [num_tokens], or null: each row of out is multiplied by it. gemm alone takes it.
  DType x_dtype = DType::f32, out_dtype = DType::f32;
  int64_t num_tokens = 0, in_features = 0, out_features = 0;
  int64_t x_stride = 0;                      // of a copy of x (below): elements from row to row
  void* x_scratch = nullptr;                 // x_scratch_bytes
  bool accumulate = false;                   // out is f32 then, and there is no `up`
  Activation activation = Activation::silu;  // gemm has only silu
};

// With quantized weights rows of x must begin at multiples of 16 bytes. If they do not, `linear`
// copies them, padded with zeros to a multiple of 8 elements, to x_scratch.
size_t x_scratch_bytes(const LinearParams& p);

// Up to so many tokens share one reading of the weights.
constexpr int kGemvTokens = 8, kPackedGemvTokens = 16;
inline int gemv_tokens(DType weight) { return dtype_is_packed(weight) ? kPackedGemvTokens : kGemvTokens; }

// Any float types and sizes; weights are read once for every kGemvTokens tokens.
void gemv(const LinearParams& p, Context& context);
// Weights of i8 or i4, any sizes and types of x and out; weights are read once for every
// kPackedGemvTokens tokens.
void gemv_packed(const LinearParams& p, Context& context);
// By tensor cores: x of a 16-bit type, the weight of that type, i8 or i4, out of x's type or f32.
inline bool gemm_takes(DType x, DType weight, DType out) {
  return x != DType::f32 && (weight == x || dtype_is_packed(weight)) && (out == x || out == DType::f32);
}
void gemm(const LinearParams& p, Context& context);
// Whether gemm suits, and not gemv or gemv_packed.
inline bool suits_gemm(const LinearParams& p) {
  return p.num_tokens > gemv_tokens(p.weight.dtype) && gemm_takes(p.x_dtype, p.weight.dtype, p.out_dtype);
}
// The one that suits. Nothing is launched where there is nothing to write.
void linear(const LinearParams& p, Context& context);

// gated_activation from f32 to bf16. The tensors are aligned to 16 bytes.
void gated_activation_to_bf16(const GatedActivationParams& p, Context& context);

// Throws unless x and out are f32, f16 or bf16, the weight one of these or i8 or i4, and
// `accumulate` goes with an f32 output.
void check_linear_types(const char* name, DType x, DType weight, DType out, bool accumulate);

// Whether rows of `row_size` elements that begin at p all begin at a multiple of 16 bytes.
inline bool rows_aligned(const void* p, int64_t row_size, DType dtype) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && row_size * static_cast<int64_t>(dtype_size(dtype)) % 16 == 0;
}

// out[index] = value, or += value, where out is f32.
__device__ __forceinline__ void put(void* out, DType dtype, int64_t index, float value, bool accumulate) {
  store_any(out, dtype, index, accumulate ? ld_global(static_cast<const float*>(out) + index) + value : value);
}

}  // namespace diffqkv::cuda
