// O += P V in decode by vector instructions, with V straight from the cache. Few rows share a V head,
// so packing V would cost more than the products.
//
// A tile of one query sees all keys of its blocks, so an infinity or NaN in V is in its result.
#pragma once

#include "backend/cpu/attention/gemm.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

constexpr int64_t kMaxVectorRows = 4;  // rows that share a V head; each has accumulators of its own

// The inputs for one V head, and O.
struct HeadValues {
  HeadRows v;
  int64_t n;      // keys
  const char* p;  // [rows][kBlock], f32 or bf16
  float* o;       // [rows][ldo]
  int64_t ldo;
  int64_t divisor_column;
};

// Calls row(data, j) for the keys j = 0, kStep, 2 * kStep ... with the row of key j at `data`.
template <int64_t kStep, typename OnRow>
DIFFQKV_INLINE void for_rows(const HeadRows& v, int64_t n, const OnRow& on_row) {
  for (int64_t first = 0; first < n; first += v.part_keys()) {
    const char* data = v.from(first).data;
    const int64_t end = min_of(n, first + v.part_keys());
    for (int64_t j = first; j < end; j += kStep, data += kStep * v.stride_bytes) on_row(data, j);
  }
}

// kVectors vectors of O from dim d on, and the divisor in the order of the same sum.
template <typename T, int kRows, int kVectors>
DIFFQKV_INLINE void add_values(const HeadValues& h, int64_t d, Prefetch& prefetch) {
  const float* p = reinterpret_cast<const float*>(h.p);
  F32v acc[kRows][kVectors];
  float divisor[kRows];
#pragma GCC unroll 32
  for (int i = 0; i < kRows; ++i) {
    divisor[i] = h.o[i * h.ldo + h.divisor_column];
#pragma GCC unroll 32
    for (int k = 0; k < kVectors; ++k) acc[i][k] = load(h.o + i * h.ldo + d + k * kLanes);
  }
  const int64_t units = d == 0 ? prefetch.per_value : 0;
  for_rows<1>(h.v, h.n, [&](const char* data, int64_t j) DIFFQKV_LAMBDA {
    prefetch.advance(units);
    F32v x[kVectors];
#pragma GCC unroll 32
    for (int k = 0; k < kVectors; ++k) x[k] = load(reinterpret_cast<const T*>(data) + d + k * kLanes);
#pragma GCC unroll 32
    for (int i = 0; i < kRows; ++i) {
      const float weight = p[i * kBlock + j];
      divisor[i] += weight;
#pragma GCC unroll 32
      for (int k = 0; k < kVectors; ++k) acc[i][k] = fma(set1(weight), x[k], acc[i][k]);
    }
  });
#pragma GCC unroll 32
  for (int i = 0; i < kRows; ++i) {
    if (d == 0) h.o[i * h.ldo + h.divisor_column] = divisor[i];
#pragma GCC unroll 32
    for (int k = 0; k < kVectors; ++k) store(h.o + i * h.ldo + d + k * kLanes, acc[i][k]);
  }
}

template <typename T, int kRows>
__attribute__((noinline)) void add_values_of_rows(const HeadValues& h, int64_t head_dim_vo, Prefetch& prefetch) {
  constexpr int kVectors = kVectorRegisters == 32 || kRows <= 2 ? 4 : 2;
  int64_t d = 0;
  for (; d + kVectors * kLanes <= head_dim_vo; d += kVectors * kLanes) add_values<T, kRows, kVectors>(h, d, prefetch);
  for (; d < head_dim_vo; d += kLanes) add_values<T, kRows, 1>(h, d, prefetch);
}

#if defined(__AVX512BF16__)
// kGroups groups of 32 dims of O from dim d on, in bf16. Pairs of keys are interleaved in lanes of
// 128 bits, so dims come out of order, see restore_dims.
template <int kRows, int kGroups>
DIFFQKV_INLINE void add_value_pairs(const HeadValues& h, int64_t d, Prefetch& prefetch) {
  const uint32_t* p = reinterpret_cast<const uint32_t*>(h.p);  // pairs of bf16
  __m512 acc[kRows][2 * kGroups];
#pragma GCC unroll 32
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 32
    for (int k = 0; k < 2 * kGroups; ++k) acc[i][k] = _mm512_loadu_ps(h.o + i * h.ldo + d + 16 * k);
  }
  const int64_t units = d == 0 ? prefetch.per_value : 0;
  for_rows<2>(h.v, h.n, [&](const char* data, int64_t j) DIFFQKV_LAMBDA {
    prefetch.advance(units);
    const char* even = data + 2 * d;
    const char* odd = even + h.v.stride_bytes;
    __m512i pairs[2 * kGroups];
#pragma GCC unroll 32
    for (int g = 0; g < kGroups; ++g) {
      const __m512i a = _mm512_loadu_si512(even + 64 * g);
      const __m512i b = j + 1 < h.n ? _mm512_loadu_si512(odd + 64 * g) : _mm512_setzero_si512();
      pairs[2 * g] = _mm512_unpacklo_epi16(a, b);
      pairs[2 * g + 1] = _mm512_unpackhi_epi16(a, b);
    }
    prefetch.advance(units);
#pragma GCC unroll 32
    for (int i = 0; i < kRows; ++i) {
      const __m512bh weights = (__m512bh)_mm512_set1_epi32(static_cast<int>(p[(i * kBlock + j) / 2]));
#pragma GCC unroll 32
      for (int k = 0; k < 2 * kGroups; ++k) {
        acc[i][k] = _mm512_dpbf16_ps(acc[i][k], (__m512bh)pairs[k], weights);
      }
    }
  });
#pragma GCC unroll 32
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 32
    for (int k = 0; k < 2 * kGroups; ++k) _mm512_storeu_ps(h.o + i * h.ldo + d + 16 * k, acc[i][k]);
  }
}

template <int kRows>
__attribute__((noinline)) void add_value_pairs_of_rows(const HeadValues& h, int64_t head_dim_vo, Prefetch& prefetch) {
  int64_t d = 0;
  for (; d + 64 <= head_dim_vo; d += 64) add_value_pairs<kRows, 2>(h, d, prefetch);
  if (d < head_dim_vo) add_value_pairs<kRows, 1>(h, d, prefetch);
}

// Brings a row of O into the order of dims: of each 32, the first 16 have the lower halves of every
// 8, the others the upper halves.
DIFFQKV_INLINE void restore_dims(float* o, int64_t head_dim_vo) {
  for (int64_t d = 0; d < head_dim_vo; d += 32) {
    alignas(64) float parts[32];
    __builtin_memcpy(parts, o + d, sizeof(parts));
    for (int64_t i = 0; i < 32; ++i) o[d + i] = parts[i % 8 / 4 * 16 + i / 8 * 4 + i % 4];
  }
}
#endif

// Calls f with the number of rows, at most kMaxVectorRows, as a constant.
template <typename F>
DIFFQKV_INLINE void visit_rows(int64_t rows, const F& f) {
  switch (rows) {
    case 1: f.template operator()<1>(); break;
    case 2: f.template operator()<2>(); break;
    case 3: f.template operator()<3>(); break;
    default: f.template operator()<4>(); break;
  }
}

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
