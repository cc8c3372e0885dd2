// bf16, f16, f8e4m3 and i8 as storage, f32 as what is computed in; conversions round to nearest even. And the few functions
// of f32 whose hardware form is an approximation.
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
struct f8e4m3 {
  uint8_t bits;
};
struct i8 {
  int8_t value;
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
DIFFQKV_DEVICE float to_float(i8 x) { return static_cast<float>(x.value); }
// As the bits of an f32 a magnitude is off by the difference of the biases alone, denormals included. No infinity.
DIFFQKV_DEVICE float to_float(f8e4m3 x) {
  const uint32_t magnitude = x.bits & 0x7fu, sign = (x.bits & 0x80u) << 24;
  if (magnitude == 0x7fu) return bit_cast<float>(sign | 0x7fc00000u);
  return bit_cast<float>(sign | bit_cast<uint32_t>(bit_cast<float>(magnitude << 20) * 0x1p120f));
}

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

// a * b + c of both halves of words, where the result is exact in T.
template <typename T>
DIFFQKV_DEVICE uint32_t fused_multiply_add2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t word;
  if constexpr (__is_same(T, bf16)) {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(word) : "r"(a), "r"(b), "r"(c));
  } else {
    static_assert(__is_same(T, f16));
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(word) : "r"(a), "r"(b), "r"(c));
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

template <typename T>
DIFFQKV_DEVICE uint32_t fused_multiply_add2(uint32_t a, uint32_t b, uint32_t c) {
  const auto half = [&](int shift) {
    const auto value = [&](uint32_t word) { return to_float(T{static_cast<uint16_t>(word >> shift)}); };
    return std::fma(value(a), value(b), value(c));
  };
  return pack2<T>(half(0), half(16));
}

DIFFQKV_DEVICE float exp2_fast(float x) { return x < -126.0f ? 0.0f : std::exp2(x); }
DIFFQKV_DEVICE float exponential(float x) { return std::exp(x); }
DIFFQKV_DEVICE float fused_multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
DIFFQKV_DEVICE float reciprocal(float x) { return 1.0f / x; }
DIFFQKV_DEVICE float reciprocal_sqrt(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }

#endif

// NaN where |x| is above 464, which lies halfway between the largest value, 448, and what would be the next.
DIFFQKV_DEVICE f8e4m3 to_f8e4m3(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x), sign = bits >> 24 & 0x80u, size = bits & 0x7fffffffu;
  uint32_t magnitude = 0x7fu;
  if (size < 0x3c800000u) {  // below 2^-6, a multiple of 2^-9, which is also the unit of floats at 2^14
    magnitude = bit_cast<uint32_t>(bit_cast<float>(size) + 0x1p14f) - 0x46800000u;
  } else if (size <= 0x43e80000u) {
    magnitude = (size - (120u << 23) + 0x7ffffu + (size >> 20 & 1u)) >> 20;
  }
  return {static_cast<uint8_t>(sign | magnitude)};
}
// |x| is at most 127. At 1.5 * 2^23 the unit of floats is 1.
DIFFQKV_DEVICE i8 to_i8(float x) { return {static_cast<int8_t>(bit_cast<uint32_t>(x + 12582912.0f))}; }

template <typename T>
DIFFQKV_DEVICE T from_float(float x) {
  if constexpr (__is_same(T, float)) {
    return x;
  } else if constexpr (__is_same(T, f8e4m3)) {
    return to_f8e4m3(x);
  } else if constexpr (__is_same(T, i8)) {
    return to_i8(x);
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
