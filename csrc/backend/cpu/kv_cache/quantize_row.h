// Quantizes one row of one head to i8 or f8e4m3 with its scale (see QuantizeParams), for quantize
// and kv_append.
#pragma once

#include "backend/cpu/simd.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

DIFFQKV_INLINE F32v magnitude(F32v x) { return (F32v)((U32v)x & 0x7fffffffu); }

template <typename T>
constexpr float kLargest = 0;
template <>
constexpr float kLargest<int8_t> = 127;
template <>
constexpr float kLargest<f8e4m3> = 448;

template <typename Out, typename X>
DIFFQKV_INLINE void quantize_row(const X* x, Out* out, bf16* scale, int64_t head_dim) {
  U32v top = {};  // of the bits, which sort as the magnitudes do, NaN last
  int64_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) {
    const U32v bits = (U32v)magnitude(load(x + d));
    top = bits > top ? bits : top;
  }
  if (d < head_dim) {
    const U32v bits = (U32v)magnitude(load_n(x + d, head_dim - d));
    top = bits > top ? bits : top;
  }
  uint32_t largest = 0;
  for (int i = 0; i < kLanes; ++i) largest = top[i] > largest ? top[i] : largest;

  if (largest >= 0x7f800000u || largest < 0x0d800000u) {  // not finite, or below 2^-100
    scale->bits = largest >= 0x7f800000u ? 0x7fc0 : 0;
    __builtin_memset(out, 0, static_cast<size_t>(head_dim));
    return;
  }
  // Rounds up to bf16. f32 never rounds a quotient above a bf16 value down to that value, so the
  // result is the same as from an exact quotient.
  const uint32_t up = bit_cast<uint32_t>(bit_cast<float>(largest) / kLargest<Out>) + 0xffffu;
  scale->bits = static_cast<uint16_t>(up >> 16);
  const F32v divisor = set1(bit_cast<float>(up & 0xffff0000u));
  for (d = 0; d + kLanes <= head_dim; d += kLanes) store(out + d, load(x + d) / divisor);
  if (d < head_dim) store_n(out + d, load_n(x + d, head_dim - d) / divisor, head_dim - d);
}

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
