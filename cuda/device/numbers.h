// bf16 and f16 as storage, f32 as what is computed in; conversions round to nearest even. And the few functions of f32
// whose hardware form is an approximation.
#pragma once

#include "device/base.h"

#if !defined(DIFFQKV_EMULATION)
#include <cuda_fp16.h>
#else
#include <cmath>
#include <cstring>
#endif

namespace diffqkv::DIFFQKV_DEVICE_NS {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <typename To, typename From>
DIFFQKV_HOST_DEVICE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

DIFFQKV_DEVICE float to_float(float x) { return x; }
DIFFQKV_DEVICE float to_float(bf16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

#if !defined(DIFFQKV_EMULATION)

DIFFQKV_DEVICE float to_float(f16 x) { return __half2float(__ushort_as_half(x.bits)); }

// Two values in a word, `low` in its low half.
template <typename T>
DIFFQKV_DEVICE uint32_t pack2(float low, float high) {
  uint32_t word;
  if constexpr (sizeof(T) == 2 && __is_same(T, bf16)) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    static_assert(__is_same(T, f16));
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
}

DIFFQKV_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// e^x to two units in the last place, everywhere; exp2_fast(x * log2(e)) is not, far from 0.
DIFFQKV_DEVICE float exponential(float x) { return expf(x); }
DIFFQKV_DEVICE float fused_multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DIFFQKV_DEVICE float reciprocal(float x) { return __frcp_rn(x); }
DIFFQKV_DEVICE float reciprocal_sqrt(float x) { return __frsqrt_rn(x); }

#else

uint16_t round_to_bf16(float x);  // NaN stays NaN
uint16_t round_to_f16(float x);
float widen_f16(uint16_t bits);

DIFFQKV_DEVICE float to_float(f16 x) { return widen_f16(x.bits); }

template <typename T>
DIFFQKV_DEVICE uint32_t pack2(float low, float high) {
  if constexpr (__is_same(T, bf16)) {
    return round_to_bf16(low) | static_cast<uint32_t>(round_to_bf16(high)) << 16;
  } else {
    static_assert(__is_same(T, f16));
    return round_to_f16(low) | static_cast<uint32_t>(round_to_f16(high)) << 16;
  }
}

DIFFQKV_DEVICE float exp2_fast(float x) { return x < -126.0f ? 0.0f : std::exp2(x); }
DIFFQKV_DEVICE float exponential(float x) { return std::exp(x); }
DIFFQKV_DEVICE float fused_multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
DIFFQKV_DEVICE float reciprocal(float x) { return 1.0f / x; }
DIFFQKV_DEVICE float reciprocal_sqrt(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }

#endif

template <typename T>
DIFFQKV_DEVICE T from_float(float x) {
  if constexpr (__is_same(T, float)) {
    return x;
  } else {
    return T{static_cast<uint16_t>(pack2<T>(x, 0.0f))};
  }
}

// The low and the high value of a word.
template <typename T>
DIFFQKV_DEVICE float unpack_low(uint32_t word) {
  return to_float(T{static_cast<uint16_t>(word)});
}
template <typename T>
DIFFQKV_DEVICE float unpack_high(uint32_t word) {
  if constexpr (__is_same(T, bf16)) {
    return bit_cast<float>(word & 0xffff0000u);
  } else {
    return to_float(T{static_cast<uint16_t>(word >> 16)});
  }
}

DIFFQKV_HOST_DEVICE float infinity() { return bit_cast<float>(0x7f800000u); }

}  // namespace diffqkv::DIFFQKV_DEVICE_NS
