// The vector pieces of the softmax: 2^x, the largest score of a row, and a row of P.
#pragma once

#include "backend/cpu/attention_problem.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

// 2^x; 0 below 2^-126, NaN stays NaN. x = n + f, |f| <= 1/2, 2^f by a polynomial of degree 5 (relative error 8e-8).
DIFFQKV_INLINE F32v exp2_fast(F32v x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer that stands in the low bits
  const F32v shifted = x + kRound;
  const F32v n = shifted - kRound;
  const F32v f = x - n;
  F32v poly = set1(1.32670e-3f);
  poly = fma(poly, f, set1(9.67546e-3f));
  poly = fma(poly, f, set1(5.550743e-2f));
  poly = fma(poly, f, set1(2.4022122e-1f));
  poly = fma(poly, f, set1(6.9314695e-1f));
  poly = fma(poly, f, set1(1.0f));
#if defined(__AVX512F__)
  return (F32v)_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ), (__m512)poly,
                                      (__m512)n);
#else
  const F32v scaled = (F32v)((U32v)poly + ((U32v)shifted << 23));
  return x >= -126.0f ? scaled : x < -126.0f ? F32v{} : x;
#endif
}

DIFFQKV_INLINE float max_lane(F32v v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float best = v[0];
  for (int i = 1; i < kLanes; ++i) best = v[i] > best ? v[i] : best;
  return best;
#endif
}

DIFFQKV_INLINE I32v lane_numbers() {
  I32v lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}

// The largest of count > 0 scores, NaN passed over. The row has room up to kBlock.
DIFFQKV_INLINE float max_score(const float* s, int64_t count) {
  F32v best = set1(-kInfinity);
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) best = max(load(s + j), best);
  if (j < count) best = max(lane_numbers() < static_cast<int32_t>(count - j) ? load(s + j) : best, best);
  return max_lane(best);
}

template <typename T>
DIFFQKV_INLINE void store_probabilities(T* p, F32v x) {
#if defined(__AVX512BF16__)
  if constexpr (sizeof(T) == 2) {
    const __m256bh rounded = _mm512_cvtneps_pbh((__m512)x);
    __builtin_memcpy(p, &rounded, sizeof(rounded));
    return;
  }
#endif
  store(p, x);
}

// p = exp2(s * scale - base) for count keys, times their factors where there are any; then 0 up to `end`. Returns the sum
// before factors and rounding, by lanes.
template <typename T>
DIFFQKV_INLINE F32v probabilities(const float* s, int64_t count, int64_t end, float scale, float base,
                                  const float* factors, T* p) {
  const F32v scales = set1(scale), bases = set1(-base);
  F32v total = {};
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    const F32v x = exp2_fast(fma(load(s + j), scales, bases));
    store_probabilities(p + j, factors ? x * load(factors + j) : x);
    total += x;
  }
  if (j < count) {
    const I32v seen = lane_numbers() < static_cast<int32_t>(count - j);
    const F32v x = seen ? exp2_fast(fma(load(s + j), scales, bases)) : F32v{};
    store_probabilities(p + j, factors ? (seen ? x * load(factors + j) : F32v{}) : x);
    total += x;
    j += kLanes;
  }
  for (; j < end; j += kLanes) store_probabilities(p + j, F32v{});
  return total;
}

DIFFQKV_INLINE void scale_row(float* o, int64_t count, float factor) {
  for (int64_t j = 0; j < count; j += kLanes) store(o + j, load(o + j) * factor);
}

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
