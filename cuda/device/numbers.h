// Instructions on numbers: conversions of f16, pairs of 16-bit values, and the approximation of 2^x.
#pragma once

#include <cuda_fp16.h>

#include "types.h"

namespace diffqkv::cuda {

__device__ __forceinline__ float to_float(f16 x) { return __half2float(__ushort_as_half(x.bits)); }

// Two values in a word, `low` in its low half.
template <typename T>
__device__ __forceinline__ uint32_t cvt_rn_x2(float low, float high) {
  uint32_t word;
  if constexpr (sizeof(T) == 2 && __is_same(T, bf16)) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    static_assert(__is_same(T, f16));
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
}

// a * b + c of both halves of words, where the result is exact in T.
template <typename T>
__device__ __forceinline__ uint32_t fma_rn_x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t word;
  if constexpr (__is_same(T, bf16)) {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(word) : "r"(a), "r"(b), "r"(c));
  } else {
    static_assert(__is_same(T, f16));
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(word) : "r"(a), "r"(b), "r"(c));
  }
  return word;
}

// (a & b) | c in one instruction. The compiler makes two of the C++ expression if b and c are
// constants.
__device__ __forceinline__ uint32_t lop3_and_or(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}

__device__ __forceinline__ float ex2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x within 1 ulp, for x that is not subnormal. __frcp_rn needs more registers and a call.
__device__ __forceinline__ float rcp_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace diffqkv::cuda
