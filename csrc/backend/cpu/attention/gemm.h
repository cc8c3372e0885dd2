// The matrix products of attention, S = Q K^T and O += P V, and of linear layers of many tokens. All
// are C = A B or C += A B with C in f32, A row-major, and B packed in panels of 16 columns. Three
// implementations: f32 by FMA, bf16 by vdpbf16ps, bf16 by AMX tiles.
//
//   f32:          panel[k][16 columns]
//   bf16 (VNNI):  panel[k / 2][16 columns][2], k padded with zeros
//   K^T:          columns are keys, k is the dim
//   V:            columns are dims, k is the key
//
// In f32, V gets one more column, which is all ones. It sums the softmax's denominator by the
// operations that sum the numerator, so V = 1 gives exactly 1.
#pragma once

#include "backend/cpu/amx.h"
#include "backend/cpu/attention/kv_view.h"
#include "backend/cpu/kernels.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

constexpr int64_t kPanel = 16;  // columns
constexpr int64_t kPanelVectors = kPanel / kLanes;
constexpr int64_t kPairStep = 32;  // in bf16, k is padded to a multiple of this, the depth of an AMX tile

#if defined(__AVX512BF16__)
constexpr bool kHasBf16Gemm = true;
#else
constexpr bool kHasBf16Gemm = false;
#endif

// One panel of K^T in f32, of num_keys <= 16 keys; the other columns are zero. panel: [head_dim,
// padded to 16][16].
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

// V's panels in f32. `ones`: also write the last panel if it contains only the ones. The loop is by
// keys, because a head's row is contiguous and rows are far apart.
template <typename T>
DIFFQKV_INLINE void pack_v(const Rows& v, int64_t num_keys, int64_t head_dim, float* panels, int64_t stride_panel,
                           bool ones, Prefetch& prefetch) {
  const int64_t whole = head_dim / kPanel;
  const int64_t rest = head_dim % kPanel;  // the panel after the whole ones has the rest, then 1
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

// V's panels in bf16: [num_keys / 2, padded to 16][16 dims][2].
DIFFQKV_INLINE void pack_v_vnni(const Rows& v, int64_t num_keys, int64_t head_dim, float* panels, int64_t stride_panel,
                                Prefetch& prefetch) {
  const int64_t whole = head_dim / kPanel;
  const int64_t rest = head_dim % kPanel;
  const __mmask16 mask = static_cast<__mmask16>((1u << rest) - 1);
  const auto load16 = [](const char* from)
                          DIFFQKV_LAMBDA { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); };
  int64_t t = 0;
  for (; t < num_keys; t += 2) {
    const char* even = v.data + t * v.stride_bytes;
    const char* odd = t + 1 < num_keys ? even + v.stride_bytes : nullptr;
    prefetch.advance(2 * prefetch.per_value);
    float* to = panels + t / 2 * kPanel;
    for (int64_t i = 0; i < whole; ++i, to += stride_panel) {
      _mm512_storeu_si512(to, interleave(load16(even + 32 * i), odd ? load16(odd + 32 * i) : _mm256_setzero_si256()));
    }
    if (!rest) continue;
    _mm512_storeu_si512(to,
                        interleave(_mm256_maskz_loadu_epi16(mask, even + 32 * whole),
                                   odd ? _mm256_maskz_loadu_epi16(mask, odd + 32 * whole) : _mm256_setzero_si256()));
  }
  for (; t < round_up(num_keys, kPairStep); t += 2) {
    for (int64_t i = 0; i < ceil_div(head_dim, kPanel); ++i)
      _mm512_storeu_si512(panels + i * stride_panel + t / 2 * kPanel, _mm512_setzero_si512());
  }
}
#endif

struct Gemm {
  const void* a;   // [m][lda]: float, or bf16
  const float* b;  // panels, stride_panel floats apart
  float* c;        // [m][ldc]
  int64_t m, num_panels, k;
  int64_t lda, stride_panel, ldc;  // in elements
  bool accumulate;
};

// As many accumulators as leave registers for B and for the broadcast element of A.
constexpr int kMaxAccumulators = kVectorRegisters == 32 ? 24 : kLanes == 8 ? 12 : 8;

// One block: kRows rows of A by kPanels panels. If kBf16, k counts pairs, and an element of A is a
// pair of bf16.
template <bool kBf16, int kRows, int kPanels>
DIFFQKV_INLINE void gemm_block(const uint32_t* a, int64_t lda, const float* b, int64_t stride_panel, float* c,
                               int64_t ldc, int64_t k, bool accumulate) {
  constexpr int kVectors = kPanels * static_cast<int>(kPanelVectors);
  F32v acc[kRows][kVectors];
#pragma GCC unroll 32
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < kVectors; ++j) acc[i][j] = accumulate ? load(c + i * ldc + j * kLanes) : F32v{};
  }
  for (int64_t s = 0; s < k; ++s) {
    F32v bv[kVectors];
#pragma GCC unroll 32
    for (int j = 0; j < kVectors; ++j) {
      bv[j] = load(b + j / kPanelVectors * stride_panel + s * kPanel + j % kPanelVectors * kLanes);
    }
#pragma GCC unroll 32
    for (int i = 0; i < kRows; ++i) {
      const uint32_t word = a[i * lda + s];
#pragma GCC unroll 32
      for (int j = 0; j < kVectors; ++j) {
#if defined(__AVX512BF16__)
        if constexpr (kBf16) {
          acc[i][j] = (F32v)_mm512_dpbf16_ps((__m512)acc[i][j], (__m512bh)_mm512_set1_epi32(static_cast<int>(word)),
                                             (__m512bh)bv[j]);
          continue;
        }
#endif
        acc[i][j] = fma(set1(bit_cast<float>(word)), bv[j], acc[i][j]);
      }
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < kVectors; ++j) store(c + i * ldc + j * kLanes, acc[i][j]);
  }
}

// All panels for kRows rows.
template <bool kBf16, int kRows>
__attribute__((noinline)) void gemm_rows(const Gemm& g, const uint32_t* a, int64_t lda, float* c, int64_t k) {
  constexpr int kFit = kMaxAccumulators / (kRows * static_cast<int>(kPanelVectors));
  constexpr int kPanels = kFit >= 5 ? 5 : kFit;  // 5: in f32, V of 64 dims and the ones
  int64_t p = 0;
  const auto block = [&]<int kCount>() DIFFQKV_LAMBDA {
    for (; p + kCount <= g.num_panels; p += kCount) {
      gemm_block<kBf16, kRows, kCount>(a, lda, g.b + p * g.stride_panel, g.stride_panel, c + p * kPanel, g.ldc, k,
                                       g.accumulate);
    }
  };
  block.template operator()<kPanels>();
  if constexpr (kPanels > 4) block.template operator()<4>();
  if constexpr (kPanels > 2) block.template operator()<2>();
  if constexpr (kPanels > 1) block.template operator()<1>();
}

// The most rows at a time: 8 with AVX-512, 6 with AVX2.
constexpr int kMaxGemmRows = kMaxAccumulators / kPanelVectors < 8 ? kMaxAccumulators / kPanelVectors : 8;

template <bool kBf16, int kRows = kMaxGemmRows>
DIFFQKV_INLINE void gemm_some_rows(const Gemm& g, int64_t rows, const uint32_t* a, int64_t lda, float* c, int64_t k) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return gemm_some_rows<kBf16, kRows - 1>(g, rows, a, lda, c, k);
  }
  gemm_rows<kBf16, kRows>(g, a, lda, c, k);
}

template <bool kBf16>
void gemm_vector(const Gemm& g) {
  const int64_t lda = kBf16 ? g.lda / 2 : g.lda;
  const int64_t k = kBf16 ? ceil_div(g.k, 2) : g.k;
  for (int64_t i = 0, rows = 0; i < g.m; i += rows) {
    // Few rows have few independent sums, so the numbers of rows are as equal as possible.
    rows = ceil_div(g.m - i, ceil_div(g.m - i, kMaxGemmRows));
    gemm_some_rows<kBf16>(g, rows, static_cast<const uint32_t*>(g.a) + i * lda, lda, g.c + i * g.ldc, k);
  }
}

#if defined(__AVX512BF16__)
// Tiles 0 to 3 are C (2 x 2 tiles of 16 x 16 f32), 4 and 5 are A (16 rows x 32), 6 and 7 are B (16
// pairs x 16 columns).

// kTwoRows: the block has 32 rows, else 16. kTwoPanels: it is two panels wide.
template <bool kTwoRows, bool kTwoPanels>
DIFFQKV_INLINE void amx_block(const Gemm& g, const char* a, const float* b, float* c) {
  const int64_t a_stride = 2 * g.lda;
  const int64_t c_stride = 4 * g.ldc;
  const char* a1 = a + 16 * a_stride;
  const float* b1 = b + g.stride_panel;
  float* c1 = c + 16 * g.ldc;
  if (g.accumulate) {
    DIFFQKV_TILE_LOAD(0, c, c_stride);
    if constexpr (kTwoPanels) DIFFQKV_TILE_LOAD(1, c + kPanel, c_stride);
    if constexpr (kTwoRows) DIFFQKV_TILE_LOAD(2, c1, c_stride);
    if constexpr (kTwoRows && kTwoPanels) DIFFQKV_TILE_LOAD(3, c1 + kPanel, c_stride);
  } else {
    DIFFQKV_TILE_ZERO(0);
    if constexpr (kTwoPanels) DIFFQKV_TILE_ZERO(1);
    if constexpr (kTwoRows) DIFFQKV_TILE_ZERO(2);
    if constexpr (kTwoRows && kTwoPanels) DIFFQKV_TILE_ZERO(3);
  }
  for (int64_t s = 0; s < g.k; s += kPairStep) {
    DIFFQKV_TILE_LOAD(4, a + 2 * s, a_stride);
    DIFFQKV_TILE_LOAD(6, b + s / 2 * kPanel, 64);
    DIFFQKV_TILE_DOT(0, 4, 6);
    if constexpr (kTwoPanels) {
      DIFFQKV_TILE_LOAD(7, b1 + s / 2 * kPanel, 64);
      DIFFQKV_TILE_DOT(1, 4, 7);
    }
    if constexpr (kTwoRows) {
      DIFFQKV_TILE_LOAD(5, a1 + 2 * s, a_stride);
      DIFFQKV_TILE_DOT(2, 5, 6);
      if constexpr (kTwoPanels) DIFFQKV_TILE_DOT(3, 5, 7);
    }
  }
  DIFFQKV_TILE_STORE(0, c, c_stride);
  if constexpr (kTwoPanels) DIFFQKV_TILE_STORE(1, c + kPanel, c_stride);
  if constexpr (kTwoRows) DIFFQKV_TILE_STORE(2, c1, c_stride);
  if constexpr (kTwoRows && kTwoPanels) DIFFQKV_TILE_STORE(3, c1 + kPanel, c_stride);
}

// Sets the height of the A and C tiles. *tile_rows is the current height. A change costs about 50
// ns.
DIFFQKV_INLINE void configure_tiles(int64_t rows, int64_t* tile_rows) {
  if (*tile_rows == rows) return;
  *tile_rows = rows;
  TileConfig config;
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.rows[i] = static_cast<uint8_t>(i < 6 ? rows : 16);
    config.bytes_per_row[i] = 64;
  }
  DIFFQKV_TILE_LOAD_CONFIG(config);
}

// Rows [first, last). Their number is a multiple of 16, or it is less than 16 and the tiles have
// that height. g.k is a multiple of 32.
void gemm_amx_rows(const Gemm& g, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; i += 32) {
    const bool two_rows = last - i >= 32;
    const char* a = static_cast<const char*>(g.a) + 2 * i * g.lda;
    for (int64_t p = 0; p < g.num_panels; p += 2) {
      const bool two_panels = g.num_panels - p >= 2;
      const float* b = g.b + p * g.stride_panel;
      float* c = g.c + i * g.ldc + p * kPanel;
      if (two_rows && two_panels) {
        amx_block<true, true>(g, a, b, c);
      } else if (two_rows) {
        amx_block<true, false>(g, a, b, c);
      } else if (two_panels) {
        amx_block<false, true>(g, a, b, c);
      } else {
        amx_block<false, false>(g, a, b, c);
      }
    }
  }
}

void gemm_amx(const Gemm& g, int64_t* tile_rows) {
  const int64_t whole = g.m / 16 * 16;
  if (whole > 0) {
    configure_tiles(16, tile_rows);
    gemm_amx_rows(g, 0, whole);
  }
  if (whole < g.m) {
    configure_tiles(g.m - whole, tile_rows);
    gemm_amx_rows(g, whole, g.m);
  }
}
#endif

// C (+)= A B. tile_rows, if given, selects AMX. It belongs to this thread, which has an AmxScope,
// and is 0 at first.
void gemm_f32(const Gemm& g) { gemm_vector<false>(g); }

void gemm_bf16([[maybe_unused]] const Gemm& g, [[maybe_unused]] int64_t* tile_rows) {
#if defined(__AVX512BF16__)
  if (tile_rows) {
    gemm_amx(g, tile_rows);
  } else {
    gemm_vector<true>(g);
  }
#endif
}

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
