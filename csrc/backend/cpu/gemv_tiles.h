// The dot products of gemv and gated_gemv by AMX, bf16 x bf16: a tile of weights as it lies in memory (rows far apart,
// by 32 features) times a tile of x (16 pairs of features by up to 16 tokens). Whatever the number of tokens, a tile of
// weights costs far less than reading it from memory does.
//
// A sum goes through the features in tdpbf16ps's own order, 32 by 32, the same for any number of tokens and of rows.
#pragma once

#include "backend/cpu/amx.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

#if defined(__AVX512BF16__)
constexpr int kTileTokens = 16;
constexpr int kTileFeatures = 32;
constexpr int kTileRows = 8;  // streams through memory; 16 of them, as 4, reach a few per cent less of the bandwidth

// Tiles with fewer than 2 columns load slowly: a lone token stands beside a copy of itself.
constexpr int64_t tile_columns(int64_t num_x) { return num_x < 2 ? 2 : num_x; }

// Of x in pairs: whole cache lines, for n is a multiple of kTileFeatures.
constexpr int64_t pairs_bytes(int64_t num_x, int64_t n) { return tile_columns(num_x) * n * 2; }

// pairs[p * tile_columns(num_x) + t] = features 2p and 2p + 1 of token t, for num_pairs pairs, a multiple of 16, and up
// to kTileTokens tokens.
inline void pack_pairs(const bf16* x, int64_t num_x, int64_t num_pairs, uint32_t* pairs) {
  if (num_x == 1) {
    for (int64_t p = 0; p < num_pairs; ++p) pairs[2 * p] = pairs[2 * p + 1] = load_raw<uint32_t>(x + 2 * p);
    return;
  }
  const __mmask16 columns = static_cast<__mmask16>((1u << num_x) - 1);
  for (int64_t p = 0; p < num_pairs; p += 4) {  // 128-bit lane l of z[j] is of token 4l + j: then 4x4 inside of lanes
    __m512i z[4];
    for (int j = 0; j < 4; ++j) {
      __m128i part[4];
      for (int l = 0; l < 4; ++l) {
        const int64_t token = min_of(4 * l + j, num_x - 1);
        part[l] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 2 * (token * num_pairs + p)));
      }
      z[j] = _mm512_inserti32x4(_mm512_castsi128_si512(part[0]), part[1], 1);
      z[j] = _mm512_inserti32x4(_mm512_inserti32x4(z[j], part[2], 2), part[3], 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(z[0], z[1]), b = _mm512_unpackhi_epi32(z[0], z[1]);
    const __m512i c = _mm512_unpacklo_epi32(z[2], z[3]), d = _mm512_unpackhi_epi32(z[2], z[3]);
    uint32_t* to = pairs + p * num_x;
    _mm512_mask_storeu_epi32(to, columns, _mm512_unpacklo_epi64(a, c));
    _mm512_mask_storeu_epi32(to + num_x, columns, _mm512_unpackhi_epi64(a, c));
    _mm512_mask_storeu_epi32(to + 2 * num_x, columns, _mm512_unpacklo_epi64(b, d));
    _mm512_mask_storeu_epi32(to + 3 * num_x, columns, _mm512_unpackhi_epi64(b, d));
  }
}

DIFFQKV_INLINE void configure_tiles(int64_t num_rows, int64_t columns) {
  TileConfig config;
  config.palette = 1;
  const int64_t rows[3] = {num_rows, num_rows, 16}, bytes[3] = {4 * columns, 64, 4 * columns};  // sums, weights, x
  for (int i = 0; i < 3; ++i) {
    config.rows[i] = static_cast<uint8_t>(rows[i]);
    config.bytes_per_row[i] = static_cast<uint16_t>(bytes[i]);
  }
  asm volatile("ldtilecfg %0" : : "m"(config));
}

// sums[r][i] = row r . x i, for as many rows, stride_bytes apart, as tiles are configured to.
DIFFQKV_INLINE void dot_tiles(const char* rows, int64_t stride_bytes, const uint32_t* pairs, int64_t columns, int64_t n,
                              float (&sums)[kTileRows][kTileTokens]) {
  constexpr int64_t kAheadBytes = 512;
  constexpr int kToL2 = 2;  // not to the L1 cache, where the streams share sets
  DIFFQKV_TILE_ZERO(0);
  for (int64_t i = 0; i < n; i += kTileFeatures) {
    const char* from = rows + 2 * i;
    DIFFQKV_TILE_LOAD(2, pairs + i / 2 * columns, 4 * columns);
    DIFFQKV_TILE_LOAD(1, from, stride_bytes);
    for (int r = 0; r < kTileRows; ++r) __builtin_prefetch(from + r * stride_bytes + kAheadBytes, 0, kToL2);
    DIFFQKV_TILE_DOT(0, 1, 2);
  }
  DIFFQKV_TILE_STORE(0, sums, 4 * kTileTokens);
}
#endif

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
