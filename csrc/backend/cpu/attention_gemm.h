// The micro-kernels of attention: C (f32) = A B or C += A B, A row-major, B in the panels of attention_pack.h.
// Three bodies: f32 (FMA), bf16 by vdpbf16ps, bf16 by AMX tiles.
#pragma once

#include "backend/cpu/amx.h"
#include "backend/cpu/attention_pack.h"
#include "backend/cpu/kernels.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

struct Gemm {
  const void* a;   // [m][lda]: float, or bf16
  const float* b;  // panels, stride_panel floats apart
  float* c;        // [m][ldc]
  int64_t m, num_panels, k;
  int64_t lda, stride_panel, ldc;  // in elements
  bool accumulate;
};

// Accumulators of a block: as many as leave registers for B and the broadcast element of A.
constexpr int kMaxAccumulators = kVectorRegisters == 32 ? 24 : kLanes == 8 ? 12 : 8;

// One block: `rows` rows of A by `panels` panels. kBf16: k counts pairs, and an element of A is a pair of bf16.
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
  constexpr int kPanels = kFit >= 5 ? 5 : kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;  // 5: V of 64 dims and the ones
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

template <bool kBf16>
void gemm_vector(const Gemm& g) {
  constexpr int kRows =
      kMaxAccumulators / static_cast<int>(kPanelVectors) >= 6 ? 6 : kMaxAccumulators / static_cast<int>(kPanelVectors);
  const int64_t lda = kBf16 ? g.lda / 2 : g.lda, k = kBf16 ? ceil_div(g.k, 2) : g.k;
  for (int64_t i = 0; i < g.m;) {
    const uint32_t* a = static_cast<const uint32_t*>(g.a) + i * lda;
    float* c = g.c + i * g.ldc;
    const int64_t rows = min_of(g.m - i, kRows);
    switch (rows) {
      case 1: gemm_rows<kBf16, 1>(g, a, lda, c, k); break;
      case 2: gemm_rows<kBf16, 2>(g, a, lda, c, k); break;
      case 3:
        if constexpr (kRows >= 3) gemm_rows<kBf16, 3>(g, a, lda, c, k);
        break;
      case 4:
        if constexpr (kRows >= 4) gemm_rows<kBf16, 4>(g, a, lda, c, k);
        break;
      case 5:
        if constexpr (kRows >= 5) gemm_rows<kBf16, 5>(g, a, lda, c, k);
        break;
      case 6:
        if constexpr (kRows >= 6) gemm_rows<kBf16, 6>(g, a, lda, c, k);
        break;
    }
    i += rows;
  }
}

#if defined(__AVX512BF16__)
// Tiles 0 to 3 are C (2 x 2 of 16 x 16 f32), 4 and 5 A (16 rows x 32), 6 and 7 B (16 pairs x 16 columns).

// kTwoRows, kTwoPanels: whether the block is 32 rows high, two panels wide.
template <bool kTwoRows, bool kTwoPanels>
DIFFQKV_INLINE void amx_block(const Gemm& g, const char* a, const float* b, float* c) {
  const int64_t a_stride = 2 * g.lda, c_stride = 4 * g.ldc;
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

// Makes A and C tiles `rows` high, unless they are. *tile_rows is their height now; changing it costs some 50 ns.
DIFFQKV_INLINE void configure_tiles(int64_t rows, int64_t* tile_rows) {
  if (*tile_rows == rows) return;
  *tile_rows = rows;
  TileConfig config;
  config.palette = 1;
  for (int i = 0; i < 8; ++i) config.rows[i] = static_cast<uint8_t>(i < 6 ? rows : 16), config.bytes_per_row[i] = 64;
  asm volatile("ldtilecfg %0" : : "m"(config));
}

// Rows first to last - 1: a multiple of 16 or, by tiles configured to that height, fewer than 16. g.k is a multiple of 32.
void gemm_amx_rows(const Gemm& g, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; i += 32) {
    const bool two_rows = last - i >= 32;
    const char* a = static_cast<const char*>(g.a) + 2 * i * g.lda;
    for (int64_t p = 0; p < g.num_panels; p += 2) {
      const bool two_panels = g.num_panels - p >= 2;
      const float* b = g.b + p * g.stride_panel;
      float* c = g.c + i * g.ldc + p * kPanel;
      if (two_rows) {
        two_panels ? amx_block<true, true>(g, a, b, c) : amx_block<true, false>(g, a, b, c);
      } else {
        two_panels ? amx_block<false, true>(g, a, b, c) : amx_block<false, false>(g, a, b, c);
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

// C (+)= A B. AMX where tile_rows is given: this thread's, in an AmxScope, 0 at first.
void gemm_f32(const Gemm& g) { gemm_vector<false>(g); }

void gemm_bf16([[maybe_unused]] const Gemm& g, [[maybe_unused]] int64_t* tile_rows) {
#if defined(__AVX512BF16__)
  tile_rows ? gemm_amx(g, tile_rows) : gemm_vector<true>(g);
#endif
}

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
