// The inner loop of gemv and gated_gemv: the dot products of several weight rows
// with num_x vectors x, vectorized along the features, accumulated in float32 registers.
#pragma once

#include "backend/cpu/simd.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

// How far a weight row's prefetch is ahead of the loads. The hardware prefetcher stops at each 4
// KiB page and reached only 86 % of the read bandwidth of two cores; with this, 95 to 99 %.
constexpr int64_t kPrefetchBytes = 2048;

#if defined(__AVX512BF16__)
constexpr bool kHasDotBf16 = true;
// acc += the products of 32 pairs of bf16, with neighboring pairs added in each lane.
DIFFQKV_INLINE F32v dot_bf16(F32v acc, __m512i a, __m512i b) {
  return (F32v)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
}
DIFFQKV_INLINE __m512i load_bf16_pairs(const bf16* p, int64_t n) {
  return n >= 32 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16((1u << n) - 1, p);
}
#else
constexpr bool kHasDotBf16 = false;
#endif

// The memory that is prefetched for each row: from byte `first` on, `step` bytes for each cache
// line read.
struct Ahead {
  int64_t first = kPrefetchBytes;
  int64_t step = 64;
};

// sums[r][i] = row r . x i, of n features. X is float, or bf16 if both are bf16 and the CPU
// multiplies bf16. The order of each sum does not depend on kRows and kXs. kPrefetch assumes that
// the data wanted next follows each row in memory.
template <int kRows, int kXs, bool kPrefetch, typename W, typename X>
DIFFQKV_INLINE void dot_rows(const W* const (&rows)[kRows], const X* x, int64_t stride_x, int64_t n,
                             float (&sums)[kRows][kXs], Ahead ahead = {}) {
  F32v acc[kRows][kXs] = {};
  constexpr int64_t kStep = 64 / sizeof(W);  // a cache line of a row
  int64_t i = 0;
  const auto prefetch = [&](int r) DIFFQKV_LAMBDA {
    if (kPrefetch) __builtin_prefetch(reinterpret_cast<const char*>(rows[r]) + ahead.first);
  };
#if defined(__AVX512BF16__)
  if constexpr (sizeof(X) == 2) {
    for (; i < n; i += kStep, ahead.first += ahead.step) {
      const int64_t remaining = n - i;
      __m512i xs[kXs];
      for (int j = 0; j < kXs; ++j) xs[j] = load_bf16_pairs(x + j * stride_x + i, remaining);
      for (int r = 0; r < kRows; ++r) {
        prefetch(r);
        const __m512i w = load_bf16_pairs(rows[r] + i, remaining);
        for (int j = 0; j < kXs; ++j) acc[r][j] = dot_bf16(acc[r][j], w, xs[j]);
      }
    }
  } else
#endif
  {
    for (; i + kStep <= n; i += kStep, ahead.first += ahead.step) {
      for (int r = 0; r < kRows; ++r) prefetch(r);
      for (int64_t k = i; k < i + kStep; k += kLanes) {
        F32v xs[kXs];
        for (int j = 0; j < kXs; ++j) xs[j] = load(x + j * stride_x + k);
        for (int r = 0; r < kRows; ++r) {
          const F32v w = load(rows[r] + k);
          for (int j = 0; j < kXs; ++j) acc[r][j] = fma(w, xs[j], acc[r][j]);
        }
      }
    }
    for (; i < n; i += kLanes) {
      const int64_t remaining = min_of(n - i, kLanes);
      for (int r = 0; r < kRows; ++r) {
        const F32v w = load_n(rows[r] + i, remaining);
        for (int j = 0; j < kXs; ++j) acc[r][j] = fma(w, load_n(x + j * stride_x + i, remaining), acc[r][j]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < kXs; ++j) sums[r][j] = sum(acc[r][j]);
  }
}

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
