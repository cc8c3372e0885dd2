// cuda/device/numbers.h as C++.
#pragma once

#include <cmath>

#include "types.h"

namespace diffqkv::emulated {

uint16_t round_to_bf16(float x);  // NaN stays NaN
uint16_t round_to_f16(float x);
float widen_f16(uint16_t bits);

inline float to_float(f16 x) { return widen_f16(x.bits); }

template <typename T>
inline uint32_t cvt_rn_x2(float low, float high) {
  if constexpr (__is_same(T, bf16)) {
    return round_to_bf16(low) | static_cast<uint32_t>(round_to_bf16(high)) << 16;
  } else {
    static_assert(__is_same(T, f16));
    return round_to_f16(low) | static_cast<uint32_t>(round_to_f16(high)) << 16;
  }
}

template <typename T>
inline uint32_t fma_rn_x2(uint32_t a, uint32_t b, uint32_t c) {
  const auto half = [&](int shift) {
    const auto value = [&](uint32_t word) { return to_float(T{static_cast<uint16_t>(word >> shift)}); };
    return std::fma(value(a), value(b), value(c));
  };
  return cvt_rn_x2<T>(half(0), half(16));
}

inline uint32_t lop3_and_or(uint32_t a, uint32_t b, uint32_t c) { return (a & b) | c; }

inline float ex2_approx(float x) { return x < -126.0f ? 0.0f : std::exp2(x); }
inline float rcp_approx(float x) { return 1.0f / x; }

}  // namespace diffqkv::emulated
