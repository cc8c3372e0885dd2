// Scores of a block of keys that few query rows look at, as in decode, where packing K for a GEMM would cost more than the
// product: S^T = K Q^T by AMX, in which 16 keys by 32 dims of the cache are an A tile as they lie there, and Q^T is packed
// once for all blocks. bf16 only. (The same for V, by interleaving rows in registers, was slower than packing it: its
// loads and the reads ahead compete for the core's line buffers.)
#pragma once

#include "backend/cpu/attention_gemm.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

constexpr int64_t kFewScoreRows = 16;   // columns of an AMX tile
constexpr int64_t kFewScoreDims = 256;  // largest head_dim_qk, for the copy of a last partial group of keys
#if defined(__AVX512BF16__)

// q: `rows` rows of [head_dim_qk] bf16 pairs. to: [head_dim_qk / 2][rows] pairs.
DIFFQKV_INLINE void pack_query_pairs(const uint32_t* q, int64_t ldq_pairs, int64_t rows, int64_t num_pairs,
                                     uint32_t* to) {
  for (int64_t s = 0; s < num_pairs; ++s) {
    for (int64_t i = 0; i < rows; ++i) to[s * rows + i] = q[i * ldq_pairs + s];
  }
}

// C tiles 0 and 1: 16 keys by `rows`; A tiles 4 and 5: 16 keys by 32 dims; B tile 6: 16 pairs by `rows`. *tile_rows: see
// configure_tiles; here it is -rows.
DIFFQKV_INLINE void configure_score_tiles(int64_t rows, int64_t* tile_rows) {
  if (*tile_rows == -rows) return;
  *tile_rows = -rows;
  TileConfig config;
  config.palette = 1;
  for (int i = 0; i < 8; ++i)
    config.rows[i] = 16, config.bytes_per_row[i] = static_cast<uint16_t>(i == 4 || i == 5 ? 64 : 4 * rows);
  asm volatile("ldtilecfg %0" : : "m"(config));
}

// Scores of `rows` rows over n keys: s[i * lds + j]. Writes whole groups of 16 keys.
DIFFQKV_INLINE void few_scores(const Rows& k, int64_t n, int64_t head_dim_qk, const uint32_t* query_pairs, int64_t rows,
                               float* s, int64_t lds, int64_t* tile_rows, Prefetch& prefetch) {
  configure_score_tiles(rows, tile_rows);
  alignas(64) char tail[16 * 2 * kFewScoreDims];
  alignas(64) float scores[2][16 * kFewScoreRows];
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i index = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int>(rows)));
  const int64_t b_stride = 4 * rows;
  for (int64_t j = 0; j < n; j += 32) {
    Rows group[2] = {{k.data + j * k.stride_bytes, k.stride_bytes},
                     {k.data + (j + 16) * k.stride_bytes, k.stride_bytes}};
    const int num_groups = n - j > 16 ? 2 : 1;
    const int64_t in_last = n - j - 16 * (num_groups - 1);
    if (in_last < 16) {  // a tile reads 16 rows, and the tensor may end before
      __builtin_memset(tail, 0, static_cast<size_t>(16 * 2 * head_dim_qk));
      Rows& last = group[num_groups - 1];
      for (int64_t i = 0; i < in_last; ++i)
        __builtin_memcpy(tail + 2 * i * head_dim_qk, last.data + i * last.stride_bytes,
                         static_cast<size_t>(2 * head_dim_qk));
      last = {tail, 2 * head_dim_qk};
    }
    prefetch.advance(prefetch.per_panel * num_groups);
    DIFFQKV_TILE_ZERO(0);
    if (num_groups == 2) DIFFQKV_TILE_ZERO(1);
    for (int64_t d = 0; d < head_dim_qk; d += 32) {
      DIFFQKV_TILE_LOAD(6, query_pairs + d / 2 * rows, b_stride);
      DIFFQKV_TILE_LOAD(4, group[0].data + 2 * d, group[0].stride_bytes);
      DIFFQKV_TILE_DOT(0, 4, 6);
      if (num_groups == 2) {
        DIFFQKV_TILE_LOAD(5, group[1].data + 2 * d, group[1].stride_bytes);
        DIFFQKV_TILE_DOT(1, 5, 6);
      }
    }
    DIFFQKV_TILE_STORE(0, scores[0], b_stride);
    if (num_groups == 2) DIFFQKV_TILE_STORE(1, scores[1], b_stride);
    for (int g = 0; g < num_groups; ++g) {
      for (int64_t i = 0; i < rows; ++i) {
        _mm512_storeu_ps(s + i * lds + j + 16 * g, _mm512_i32gather_ps(index, scores[g] + i, 4));
      }
    }
  }
}

#endif

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
