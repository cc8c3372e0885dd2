// Conversions between f32 and bf16, f16, f8e4m3 and i8. They round to nearest even.
#pragma once

#include <device/numbers.h>

#include "types.h"

namespace diffqkv::cuda {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
__device__ __forceinline__ float to_float(i8 x) { return static_cast<float>(x.value); }
// As the bits of an f32 a magnitude is off by the difference of the biases alone, denormals included. No infinity.
__device__ __forceinline__ float to_float(f8e4m3 x) {
  const uint32_t magnitude = x.bits & 0x7fu, sign = (x.bits & 0x80u) << 24;
  if (magnitude == 0x7fu) return bit_cast<float>(sign | 0x7fc00000u);
  return bit_cast<float>(sign | bit_cast<uint32_t>(bit_cast<float>(magnitude << 20) * 0x1p120f));
}

// NaN where |x| is above 464, which lies halfway between the largest value, 448, and what would be the next.
__device__ __forceinline__ f8e4m3 to_f8e4m3(float x) {
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
__device__ __forceinline__ i8 to_i8(float x) { return {static_cast<int8_t>(bit_cast<uint32_t>(x + 12582912.0f))}; }

template <typename T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (__is_same(T, float)) {
    return x;
  } else if constexpr (__is_same(T, f8e4m3)) {
    return to_f8e4m3(x);
  } else if constexpr (__is_same(T, i8)) {
    return to_i8(x);
  } else {
    return T{static_cast<uint16_t>(cvt_rn_x2<T>(x, 0.0f))};
  }
}

// The low and the high value of a word.
template <typename T>
__device__ __forceinline__ float unpack_low(uint32_t word) {
  return to_float(T{static_cast<uint16_t>(word)});
}
template <typename T>
__device__ __forceinline__ float unpack_high(uint32_t word) {
  if constexpr (__is_same(T, bf16)) {
    return bit_cast<float>(word & 0xffff0000u);
  } else {
    return to_float(T{static_cast<uint16_t>(word >> 16)});
  }
}

}  // namespace diffqkv::cuda
