// 8-bit elements as tensor cores take them: as pairs of bf16 or f16, in which each of them is exact.
#pragma once

#include "conversions.h"

namespace diffqkv::cuda {

// Of four words of four elements each: the elements 0 and 2 of each as a word `even` of two T, and 1 and 3 as `odd`.
struct WidenedBytes {
  uint32_t even[4], odd[4];
};

template <typename T>
__device__ __forceinline__ WidenedBytes widen_i8(const uint32_t (&words)[4]) {
  WidenedBytes r;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (__is_same(T, bf16)) {  // 128 and the low seven bits, less 128, or 256 where it is negative
      const auto widen = [](uint32_t w) {
        return fma_rn_x2<T>((w & 0x007f007fu) | 0x43004300u, 0x3f803f80u, (w & 0x00800080u) | 0xc300c300u);
      };
      r.even[i] = widen(words[i]), r.odd[i] = widen(words[i] >> 8);
    } else {  // 1024 + 128 + the element, less 1152
      const uint32_t word = words[i] ^ 0x80808080u;
      const auto widen = [](uint32_t w) {
        return fma_rn_x2<T>((w & 0x00ff00ffu) | 0x64006400u, 0x3c003c00u, 0xe480e480u);
      };
      r.even[i] = widen(word), r.odd[i] = widen(word >> 8);
    }
  }
  return r;
}

// The bits moved to where T has them, times the power of two by which the biases differ. NaN, which is rare, apart.
template <typename T>
__device__ __forceinline__ WidenedBytes widen_f8e4m3(const uint32_t (&words)[4]) {
  constexpr bool kBf16 = __is_same(T, bf16);
  constexpr uint32_t kPower = kBf16 ? 0x7b807b80u : 0x5c005c00u, kMagnitude = kBf16 ? 0x07f007f0u : 0x3f803f80u;
  constexpr int kShift = kBf16 ? 4 : 1;
  WidenedBytes r;
  uint32_t found = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t even = words[i] << (8 - kShift) & kMagnitude, odd = words[i] >> kShift & kMagnitude;
    r.even[i] = fma_rn_x2<T>(even | (words[i] << 8 & 0x80008000u), kPower, 0u);
    r.odd[i] = fma_rn_x2<T>(odd | (words[i] & 0x80008000u), kPower, 0u);
    found |= (words[i] & 0x7f7f7f7fu) + 0x01010101u;
  }
  if ((found & 0x80808080u) != 0) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t carried = (words[i] & 0x7f7f7f7fu) + 0x01010101u;
      r.even[i] |= (carried >> 7 & 0x00010001u) * 0xffffu, r.odd[i] |= (carried >> 15 & 0x00010001u) * 0xffffu;
    }
  }
  return r;
}

}  // namespace diffqkv::cuda
