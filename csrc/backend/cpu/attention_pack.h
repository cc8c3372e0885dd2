// Packs one block of keys for the micro-kernels of attention_gemm.h: S = Q K^T and O += P V both become
// C = A B, where B stands in panels of 16 columns.
//
//   f32:   panel[k][16 columns]             bf16 (VNNI): panel[k / 2][16 columns][2], k padded with zeros
//   K^T:   columns are keys, k is the dim   V:   columns are dims, k is the key
//
// V gets one more column, all ones: it makes the softmax's denominator by the very operations that make the numerator,
// so that V = 1 gives exactly 1, and the rounding of P to bf16 is in both.
#pragma once

#include "backend/cpu/simd.h"

#define DIFFQKV_LAMBDA __attribute__((always_inline))

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

constexpr int64_t kPanel = 16;  // columns
constexpr int64_t kPanelVectors = kPanel / kLanes;
constexpr int64_t kPairStep = 32;  // bf16: k is padded to a multiple of this, one AMX tile

#if defined(__AVX512BF16__)
constexpr bool kHasBf16Gemm = true;
#else
constexpr bool kHasBf16Gemm = false;
#endif

DIFFQKV_INLINE int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }
DIFFQKV_INLINE int64_t ceil_div(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

// Rows of one head in a tensor or page [token][head][dim], from some token on.
struct Rows {
  const char* data;
  int64_t stride_bytes;  // from token to token
};

// Brings the next block of K and V into the L2, whatever order its heads are read in, a few lines at every piece of work on
// this block: memory has to be busy all the time, and a burst would fill the core's line buffers and stop it. A range is
// read as four streams side by side, one alone leaves memory a fifth slower: the L2's own read-ahead keeps within a page.
struct Prefetch {
  static constexpr int64_t kStreams = 4, kStepUnits = 256;
  struct Range {
    const char* data = nullptr;
    int64_t steps = 0;  // of one line from each stream
  };
  Range range, then;           // K's, then V's; taken from here
  const char* at = nullptr;    // of the first stream
  int64_t left = 0, owed = 0;  // steps of the range; units
  // Units to advance by for: 16 keys' scores for a K head; a row's softmax; a V head's product; packing one V row; 16 keys
  // by 64 dims of a V head that is not packed.
  int64_t per_panel = 0, per_row = 0, per_head = 0, per_value = 0, per_value_tile = 0;

  DIFFQKV_INLINE void start(Range r) { range = r, at = r.data, left = r.steps; }

  DIFFQKV_INLINE void advance(int64_t units) {
    owed += units;
    int64_t steps = owed / kStepUnits;
    owed %= kStepUnits;
    while (steps > 0) {
      if (left == 0) {
        if (then.steps == 0) return;
        start(then);
        then.steps = 0;
      }
      const int64_t count = steps < left ? steps : left, stride = range.steps * 64;
      steps -= count, left -= count;
      for (const char* end = at + count * 64; at < end; at += 64) {
        __builtin_prefetch(at, 0, 2);
        __builtin_prefetch(at + stride, 0, 2);
        __builtin_prefetch(at + 2 * stride, 0, 2);
        __builtin_prefetch(at + 3 * stride, 0, 2);
      }
    }
  }
};

// out[d * 16 + i] = row i's word d, for kLanes rows of kLanes 32-bit words.
DIFFQKV_INLINE void transpose_words(const char* rows, int64_t stride_bytes, float* out) {
#if defined(__AVX512F__)
  for (int c = 0; c < 4; ++c) {  // 128-bit lane l of z[j] is words 4c to 4c + 3 of row 4l + j: then 4x4 inside of lanes
    __m512i z[4];
    for (int j = 0; j < 4; ++j) {
      const auto part = [&](int l) DIFFQKV_LAMBDA {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + (4 * l + j) * stride_bytes) + c);
      };
      z[j] = _mm512_castsi128_si512(part(0));
      z[j] = _mm512_inserti32x4(z[j], part(1), 1);
      z[j] = _mm512_inserti32x4(z[j], part(2), 2);
      z[j] = _mm512_inserti32x4(z[j], part(3), 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(z[0], z[1]), b = _mm512_unpackhi_epi32(z[0], z[1]);
    const __m512i e = _mm512_unpacklo_epi32(z[2], z[3]), f = _mm512_unpackhi_epi32(z[2], z[3]);
    float* to = out + 4 * c * kPanel;
    _mm512_storeu_si512(to, _mm512_unpacklo_epi64(a, e));
    _mm512_storeu_si512(to + kPanel, _mm512_unpackhi_epi64(a, e));
    _mm512_storeu_si512(to + 2 * kPanel, _mm512_unpacklo_epi64(b, f));
    _mm512_storeu_si512(to + 3 * kPanel, _mm512_unpackhi_epi64(b, f));
  }
#elif defined(__AVX2__)
  for (int c = 0; c < 2; ++c) {
    __m256 z[4];
    for (int j = 0; j < 4; ++j) {
      const auto part = [&](int l) DIFFQKV_LAMBDA {
        return _mm_loadu_ps(reinterpret_cast<const float*>(rows + (4 * l + j) * stride_bytes) + 4 * c);
      };
      z[j] = _mm256_insertf128_ps(_mm256_castps128_ps256(part(0)), part(1), 1);
    }
    const __m256d a = (__m256d)_mm256_unpacklo_ps(z[0], z[1]), b = (__m256d)_mm256_unpackhi_ps(z[0], z[1]);
    const __m256d e = (__m256d)_mm256_unpacklo_ps(z[2], z[3]), f = (__m256d)_mm256_unpackhi_ps(z[2], z[3]);
    float* to = out + 4 * c * kPanel;
    _mm256_storeu_ps(to, (__m256)_mm256_unpacklo_pd(a, e));
    _mm256_storeu_ps(to + kPanel, (__m256)_mm256_unpackhi_pd(a, e));
    _mm256_storeu_ps(to + 2 * kPanel, (__m256)_mm256_unpacklo_pd(b, f));
    _mm256_storeu_ps(to + 3 * kPanel, (__m256)_mm256_unpackhi_pd(b, f));
  }
#else
  F32v z[4];
  for (int j = 0; j < 4; ++j) z[j] = load(reinterpret_cast<const float*>(rows + j * stride_bytes));
  const F32v a = __builtin_shuffle(z[0], z[1], I32v{0, 4, 1, 5}), b = __builtin_shuffle(z[0], z[1], I32v{2, 6, 3, 7});
  const F32v e = __builtin_shuffle(z[2], z[3], I32v{0, 4, 1, 5}), f = __builtin_shuffle(z[2], z[3], I32v{2, 6, 3, 7});
  store(out, __builtin_shuffle(a, e, I32v{0, 1, 4, 5}));
  store(out + kPanel, __builtin_shuffle(a, e, I32v{2, 3, 6, 7}));
  store(out + 2 * kPanel, __builtin_shuffle(b, f, I32v{0, 1, 4, 5}));
  store(out + 3 * kPanel, __builtin_shuffle(b, f, I32v{2, 3, 6, 7}));
#endif
}

// One panel of K^T in f32: num_keys <= 16 keys, the others zero. panel: [head_dim, padded to 16][16].
template <typename T>
DIFFQKV_INLINE void pack_k_panel(const Rows& k, int64_t num_keys, int64_t head_dim, float* panel) {
  alignas(64) float part[kLanes * kLanes];
  for (int64_t first = 0; first < kPanel; first += kLanes) {
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      const int64_t num_dims = min_of(head_dim - d, kLanes);
      const char* row = k.data + first * k.stride_bytes + d * static_cast<int64_t>(sizeof(T));
      if (sizeof(T) == 4 && num_dims == kLanes && first + kLanes <= num_keys) {
        transpose_words(row, k.stride_bytes, panel + d * kPanel + first);
        continue;
      }
      for (int64_t i = 0; i < kLanes; ++i, row += k.stride_bytes) {
        const T* from = reinterpret_cast<const T*>(row);
        store(part + i * kLanes, first + i >= num_keys ? F32v{}
                                 : num_dims == kLanes  ? load(from)
                                                       : load_n(from, num_dims));
      }
      transpose_words(reinterpret_cast<const char*>(part), kLanes * 4, panel + d * kPanel + first);
    }
  }
}

// V's panels in f32 (`ones`: the last one too, where it is nothing but the ones), key after key, for a row of one head is contiguous and the rows are far apart.
template <typename T>
DIFFQKV_INLINE void pack_v(const Rows& v, int64_t num_keys, int64_t head_dim, float* panels, int64_t stride_panel,
                           bool ones, Prefetch& prefetch) {
  const int64_t whole = head_dim / kPanel,
                rest = head_dim % kPanel;  // the panel after the whole ones holds the rest, then 1
  alignas(64) float last[kPanel] = {};
  last[rest] = 1;
  for (int64_t t = 0; t < num_keys; ++t) {
    const T* row = reinterpret_cast<const T*>(v.data + t * v.stride_bytes);
    prefetch.advance(prefetch.per_value);
    float* to = panels + t * kPanel;
    for (int64_t i = 0; i < whole; ++i, to += stride_panel) {
      for (int64_t j = 0; j < kPanel; j += kLanes) store(to + j, load(row + i * kPanel + j));
    }
    for (int64_t j = 0; j < kPanel && (ones || rest); j += kLanes) {
      const F32v x = rest > j ? load_n(row + whole * kPanel + j, min_of(rest - j, kLanes)) : F32v{};
      store(to + j, x + load(last + j));
    }
  }
}

#if defined(__AVX512BF16__)
// One panel of K^T in bf16: [head_dim / 2, padded to 16][16 keys][2].
DIFFQKV_INLINE void pack_k_panel_vnni(const Rows& k, int64_t num_keys, int64_t head_dim, float* panel) {
  alignas(64) char part[16 * 64];
  for (int64_t d = 0; d < head_dim; d += kPairStep) {
    const int64_t num_dims = min_of(head_dim - d, kPairStep);
    const char* row = k.data + 2 * d;
    if (num_dims == kPairStep && num_keys == kPanel) {
      transpose_words(row, k.stride_bytes, panel + d / 2 * kPanel);
      continue;
    }
    const __mmask32 mask = static_cast<__mmask32>((uint64_t{1} << num_dims) - 1);
    for (int64_t i = 0; i < kPanel; ++i, row += k.stride_bytes) {
      _mm512_store_si512(part + 64 * i, i < num_keys ? _mm512_maskz_loadu_epi16(mask, row) : _mm512_setzero_si512());
    }
    transpose_words(part, 64, panel + d / 2 * kPanel);
  }
}

DIFFQKV_INLINE __m512i interleave(__m256i even, __m256i odd) {
  alignas(64) uint16_t order[32];
  for (int i = 0; i < 32; ++i) order[i] = static_cast<uint16_t>((i & 1) * 16 + i / 2);
  return _mm512_permutexvar_epi16(_mm512_load_si512(order), _mm512_inserti64x4(_mm512_castsi256_si512(even), odd, 1));
}

// The same in bf16: [num_keys / 2, padded to 16][16 dims][2].
DIFFQKV_INLINE void pack_v_vnni(const Rows& v, int64_t num_keys, int64_t head_dim, float* panels, int64_t stride_panel,
                                bool ones, Prefetch& prefetch) {
  const int64_t whole = head_dim / kPanel, rest = head_dim % kPanel;
  const __mmask16 mask = static_cast<__mmask16>((1u << rest) - 1);
  const __m256i one = _mm256_maskz_set1_epi16(static_cast<__mmask16>(1u << rest), 0x3f80);
  const auto store_pair = [&](float* to, __m256i even, __m256i odd)
                              DIFFQKV_LAMBDA { _mm512_storeu_si512(to, interleave(even, odd)); };
  const auto load16 = [](const char* from)
                          DIFFQKV_LAMBDA { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); };
  int64_t t = 0;
  for (; t < num_keys; t += 2) {
    const char* even = v.data + t * v.stride_bytes;
    const char* odd = even + v.stride_bytes;
    prefetch.advance(2 * prefetch.per_value);
    float* to = panels + t / 2 * kPanel;
    if (t + 1 < num_keys) {
      for (int64_t i = 0; i < whole; ++i, to += stride_panel)
        store_pair(to, load16(even + 32 * i), load16(odd + 32 * i));
      if (!ones && !rest) continue;
      store_pair(to, _mm256_or_si256(one, _mm256_maskz_loadu_epi16(mask, even + 32 * whole)),
                 _mm256_or_si256(one, _mm256_maskz_loadu_epi16(mask, odd + 32 * whole)));
    } else {
      for (int64_t i = 0; i < whole; ++i, to += stride_panel)
        store_pair(to, load16(even + 32 * i), _mm256_setzero_si256());
      store_pair(to, _mm256_or_si256(one, _mm256_maskz_loadu_epi16(mask, even + 32 * whole)), _mm256_setzero_si256());
    }
  }
  for (; t < round_up(num_keys, kPairStep); t += 2) {
    for (int64_t i = 0; i <= whole; ++i)
      _mm512_storeu_si512(panels + i * stride_panel + t / 2 * kPanel, _mm512_setzero_si512());
  }
}
#endif

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
