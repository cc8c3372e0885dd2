// Elements of i8 and i4 weights (WeightView in csrc/backend/ops.h) as tensor cores take them:
// integers as pairs of bf16 or f16, in which each of them is exact. A few integer instructions put
// the integer's bits into the mantissa of a power of two, and one fma takes that power back.
#pragma once

#include "backend/dtype.h"
#include "conversions.h"

namespace diffqkv::cuda {

// A scale of 16 bits, of type bf16 or f16.
__device__ __forceinline__ float scale_of(uint16_t bits, bool is_f16) {
  return is_f16 ? to_float(f16{bits}) : to_float(bf16{bits});
}

// The eight elements of a row that follow each other, as four pairs of neighbors.
struct ElementPairs {
  uint32_t pairs[4];
};

// The bytes of eight elements.
template <DType kType>
struct PackedWords;
template <>
struct PackedWords<DType::i4> {
  uint32_t w;
};
template <>
struct alignas(8) PackedWords<DType::i8> {
  uint32_t w[2];
};

template <typename T>
__device__ __forceinline__ ElementPairs unpack(PackedWords<DType::i4> words) {
  ElementPairs r;
  if constexpr (__is_same(T, bf16)) {
    // 128 + 8 + the integer, less 136. The mantissa has room for one integer at its low end.
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      r.pairs[k] = fma_rn_x2<T>(lop3_and_or(words.w >> 4 * k, 0x000f000fu, 0x43004300u), 0x3f803f80u, 0xc308c308u);
    }
  } else {
    // The lower 4 bits: 1024 + 8 + the integer, less 1032. The next 4: 1024 + 16 (8 + the integer),
    // divided by 16, less 72.
#pragma unroll
    for (int k = 0; k < 4; k += 2) {
      const uint32_t word = words.w >> 4 * k;
      r.pairs[k] = fma_rn_x2<T>(lop3_and_or(word, 0x000f000fu, 0x64006400u), 0x3c003c00u, 0xe408e408u);
      r.pairs[k + 1] = fma_rn_x2<T>(lop3_and_or(word, 0x00f000f0u, 0x64006400u), 0x2c002c00u, 0xd480d480u);
    }
  }
  return r;
}

template <typename T>
__device__ __forceinline__ ElementPairs unpack(PackedWords<DType::i8> words) {
  ElementPairs r;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const uint32_t selector = k % 2 == 0 ? 0x4140u : 0x4342u;  // two neighbors, each below a byte of the other word
    if constexpr (__is_same(T, bf16)) {
      // 128 and the low seven bits, less 128, or 256 if the integer is negative.
      const uint32_t pair = __byte_perm(words.w[k / 2], 0u, selector);
      r.pairs[k] = fma_rn_x2<T>(lop3_and_or(pair, 0x007f007fu, 0x43004300u), 0x3f803f80u,
                                lop3_and_or(pair, 0x00800080u, 0xc300c300u));
    } else {
      // 1024 + 128 + the integer, less 1152.
      const uint32_t pair = __byte_perm(words.w[k / 2] ^ 0x80808080u, 0x64646464u, selector);
      r.pairs[k] = fma_rn_x2<T>(pair, 0x3c003c00u, 0xe480e480u);
    }
  }
  return r;
}

}  // namespace diffqkv::cuda
