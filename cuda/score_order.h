// Scores of attention as selective V compares and weighs them.
#pragma once

#include "conversions.h"

namespace diffqkv::cuda {
namespace {

// The larger; NaN, once in, stays.
__device__ __forceinline__ float larger(float top, float x) { return x > top || x != x ? x : top; }

// 2^((score - top) scale). What is above 0 in the reference, in float64, is above 0 here.
__device__ __forceinline__ float weight_of(float score, float top, float scale_log2) {
  const float x = (score - top) * scale_log2;
  const float weight = ex2_approx(x);
  return weight == 0.0f && x > -1075.0f ? bit_cast<float>(1u) : weight;
}

// NaN counts as the largest; -0 and 0 are equal. 0 is below every score.
__device__ __forceinline__ uint32_t order_score(float score) {
  if (score != score) return 0xffffffffu;
  const uint32_t bits = bit_cast<uint32_t>(score + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float ordered_score(uint32_t ordered) {
  return bit_cast<float>(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
}

__device__ __forceinline__ uint32_t count_bits(uint32_t x) {
  x -= x >> 1 & 0x55555555u;
  x = (x & 0x33333333u) + (x >> 2 & 0x33333333u);
  return ((x + (x >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24;
}

}  // namespace
}  // namespace diffqkv::cuda
