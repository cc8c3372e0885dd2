// The products of attention for few query rows, as in decode, by AMX. Packing K and V would cost
// more than the products, so tiles are loaded straight from the cache. K and V are bf16 or widened
// to it, or V is i8.
//
//   S^T = K Q^T   16 keys by 32 dims are an A tile. Q^T is packed once for all blocks.
//   O += P V      16 keys by 32 dims of bf16 are a B tile, see decode_values;
//                 16 keys by 64 dims of i8 are a B tile, see decode_values_i8.
#pragma once

#include "backend/cpu/attention/gemm.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

constexpr int64_t kMaxDecodeRows = 16;  // columns of an AMX tile
constexpr int64_t kMaxDecodeDim = 256;  // of K and V heads; bounds the copy of a last partial group of keys
#if defined(__AVX512BF16__)

// q: [rows][head_dim_qk] of bf16 pairs. to: [head_dim_qk / 2][rows] pairs.
DIFFQKV_INLINE void pack_query_pairs(const uint32_t* q, int64_t ldq_pairs, int64_t rows, int64_t num_pairs,
                                     uint32_t* to) {
  for (int64_t s = 0; s < num_pairs; ++s) {
    for (int64_t i = 0; i < rows; ++i) to[s * rows + i] = q[i * ldq_pairs + s];
  }
}

// Scores: C tiles 0 and 1, 16 keys by `rows`; A tiles 4 and 5, 16 keys by 32 dims; B tile 6, 16
// pairs by `rows`.
// Values: A tile 2, `value_rows` by 16 keys; B tiles 4 and 5, 16 keys by 32 dims; C tiles 3 and 7,
// `value_rows` by 16.
// *tile_rows is the current configuration: -rows here, or the height that configure_tiles sets.
DIFFQKV_INLINE void configure_decode_tiles(int64_t rows, int64_t value_rows, int64_t* tile_rows) {
  if (*tile_rows == -rows) return;
  *tile_rows = -rows;
  TileConfig config;
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    const bool values = i == 2 || i == 3 || i == 7;
    const bool keys = i == 4 || i == 5;
    config.rows[i] = static_cast<uint8_t>(values ? value_rows : 16);
    config.bytes_per_row[i] = static_cast<uint16_t>(values || keys ? 64 : 4 * rows);
  }
  DIFFQKV_TILE_LOAD_CONFIG(config);
}

// Scores of `rows` rows over n keys: s[i * lds + j]. Writes whole groups of 16 keys.
DIFFQKV_INLINE void decode_scores(const HeadRows& k, int64_t n, int64_t head_dim_qk, const uint32_t* query_pairs,
                                  int64_t rows, float* s, int64_t lds, Prefetch& prefetch) {
  alignas(64) char tail[16 * 2 * kMaxDecodeDim];
  alignas(64) float scores[2][16 * kMaxDecodeRows];
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i index = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int>(rows)));
  const int64_t b_stride = 4 * rows;
  for (int64_t j = 0; j < n; j += 32) {
    const int num_groups = n - j > 16 ? 2 : 1;
    Rows group[2] = {k.from(j), {}};
    if (num_groups == 2) group[1] = k.from(j + 16);
    const int64_t in_last = n - j - 16 * (num_groups - 1);
    if (in_last < 16) {  // a tile reads 16 rows, which may be more than the tensor has
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

// The probabilities of one row over a group of 16 keys, as two rows of an A tile of pairs: (p, 0)
// and (0, p), rounded to bf16. Returns them rounded.
DIFFQKV_INLINE F32v store_pairs(uint32_t* to, F32v x) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x));
  const __m512i high = _mm512_slli_epi32(low, 16);
  _mm512_storeu_si512(to, low);
  _mm512_storeu_si512(to + 16, high);
  return (F32v)high;
}

// O += P V for one V head and n keys in bf16. A B tile is 16 keys by 32 dims, whose pairs are
// neighboring dims of one key. So (p, 0) sums the even dims and (0, p) the odd ones.
// pairs: [16 keys][all rows][2][16], from the head's first row on. o: [row][2][ldo / 2], even dims,
// then odd dims.
DIFFQKV_INLINE void decode_values(const HeadRows& v, int64_t n, int64_t head_dim_vo, const uint32_t* pairs,
                                  int64_t stride_group, float* o, int64_t ldo, Prefetch& prefetch) {
  alignas(64) char tail[16 * 2 * kMaxDecodeDim];
  const int64_t c_stride = 2 * ldo;
  const int64_t groups = ceil_div(n, 16);
  const int64_t in_last = n - 16 * (groups - 1);
  Rows last = v.from(16 * (groups - 1));
  if (in_last < 16) {  // a tile reads 16 rows, which may be more than the tensor has
    __builtin_memset(tail, 0, static_cast<size_t>(16 * 2 * head_dim_vo));
    for (int64_t i = 0; i < in_last; ++i)
      __builtin_memcpy(tail + 2 * i * head_dim_vo, last.data + i * last.stride_bytes,
                       static_cast<size_t>(2 * head_dim_vo));
    last = {tail, 2 * head_dim_vo};
  }
  for (int64_t d = 0; d < head_dim_vo; d += 64) {
    const bool two = head_dim_vo - d > 32;
    float* c = o + d / 2;
    DIFFQKV_TILE_LOAD(3, c, c_stride);
    if (two) DIFFQKV_TILE_LOAD(7, c + 16, c_stride);
    for (int64_t g = 0; g < groups; ++g) {
      const Rows at = g == groups - 1 ? last : v.from(16 * g);
      prefetch.advance(prefetch.per_value_tile);
      DIFFQKV_TILE_LOAD(2, pairs + g * stride_group, 64);
      DIFFQKV_TILE_LOAD(4, at.data + 2 * d, at.stride_bytes);
      DIFFQKV_TILE_DOT(3, 2, 4);
      if (two) {
        DIFFQKV_TILE_LOAD(5, at.data + 2 * d + 64, at.stride_bytes);
        DIFFQKV_TILE_DOT(7, 2, 5);
      }
    }
    DIFFQKV_TILE_STORE(3, c, c_stride);
    if (two) DIFFQKV_TILE_STORE(7, c + 16, c_stride);
  }
}

// O += P V with V in i8. A B tile of an AMX int8 product has groups of four bytes, which are here
// four neighboring dims of one key. P times V's scales becomes fixed point of 16 bits, relative to
// the largest of its row and block. Its two bytes, each in all four places of a group, are 8 rows
// of an A tile, so that row f sums the dims d with d % 4 = f.
//
// Fixed point loses at most 2^-16 of the block's largest P times scale, times 127, for each key.
// That is much less than the half unit by which i8 rounded V in the row of that largest value. If
// the scales of a block differ by more than kMaxScaleRatio, a row with a small scale may matter
// beside a row of zeros with a large one, and the block is computed in bf16 or f32 instead.
constexpr float kFixedOne = 32512;  // the rounded high byte is 127
constexpr float kMaxScaleRatio = 64;

// Whether the nonzero scales of n keys are within kMaxScaleRatio of each other, head by head.
DIFFQKV_INLINE bool scales_in_range(const Cache& cache, int64_t batch, int64_t first_key, int64_t n, int64_t first_head,
                                    int64_t num_heads) {
  const int64_t part = cache.pages ? int64_t{1} << cache.page_shift : kBlock;
  for (int64_t h = 0; h < num_heads; h += kLanes) {
    const int64_t count = min_of(num_heads - h, kLanes);
    F32v most = {};
    F32v least = set1(kInfinity);
    for (int64_t begin = 0; begin < n; begin += part) {
      const bf16* from = cache.token_scales(batch, first_key + begin) + first_head + h;
      for (int64_t j = begin; j < min_of(begin + part, n); ++j, from += cache.num_heads) {
        const F32v scale = count == kLanes ? load(from) : load_n(from, count);
        const F32v size = (F32v)((I32v)scale & 0x7fffffff);
        most = size > most ? size : most;
        least = (size > 0.0f) & (size < least) ? size : least;
      }
    }
    if (_mm512_movepi32_mask((__m512i)(most > least * kMaxScaleRatio)) != 0) return false;
  }
  return true;
}

// Stores n numbers, padded with zeros to whole vectors, as multiples of the returned unit. `top`:
// their largest magnitude as bits, by lanes. If a number is not finite, the unit is NaN.
DIFFQKV_INLINE float store_fixed(const float* x, int64_t n, __m512i top, int32_t* to) {
  const float largest = bit_cast<float>(_mm512_reduce_max_epu32(top));
  const bool finite = largest < kInfinity;
  const bool zero = largest < 0x1p-110f;
  const F32v factor = set1(finite && !zero ? kFixedOne / largest : 0);
  for (int64_t j = 0; j < n; j += kLanes) {
    _mm512_storeu_si512(to + j, _mm512_cvtps_epi32((__m512)(load(x + j) * factor)));
  }
  if (!finite) return __builtin_nanf("");
  return zero ? 0 : largest / kFixedOne;
}

// Stores a row's 16 numbers as 8 rows of an A tile: the high byte in places 0 to 3 of each group,
// then the low byte.
DIFFQKV_INLINE void spread_bytes(const int32_t* x, char* to) {
  const __m512i value = _mm512_loadu_si512(x);
  const __m512i byte = _mm512_set1_epi32(0xff);
  const __m512i high =
      _mm512_srai_epi32(_mm512_add_epi32(value, _mm512_set1_epi32(128)), 8);  // the low byte is signed too
  for (const __m512i part : {_mm512_and_si512(high, byte), _mm512_and_si512(value, byte)}) {
    _mm512_store_si512(to, part);
    _mm512_store_si512(to + 64, _mm512_slli_epi32(part, 8));
    _mm512_store_si512(to + 128, _mm512_slli_epi32(part, 16));
    _mm512_store_si512(to + 192, _mm512_slli_epi32(part, 24));
    to += 256;
  }
}

// o[f * head_dim_vo / 4 + c] += unit * the sum of dim 4 c + f, for 16 c. sums: [high, low][4][16].
DIFFQKV_INLINE void add_byte_sums(const int32_t* sums, float unit, int64_t head_dim_vo, float* o) {
  for (int64_t f = 0; f < 4; ++f, o += head_dim_vo / 4) {
    const __m512i high = _mm512_load_si512(sums + 16 * f);
    const __m512i low = _mm512_load_si512(sums + 64 + 16 * f);
    const F32v sum = (F32v)_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low));
    store(o, fma(sum, set1(unit), load(o)));
  }
}

// O += P V for one V head and n keys in i8. fixed: [row][kBlock], units: [row], both from the
// head's first row on. o: [row][4][head_dim_vo / 4], the dims by d % 4.
DIFFQKV_INLINE void decode_values_i8(const HeadRows& v, int64_t n, int64_t head_dim_vo, const int32_t* fixed,
                                     const float* units, int64_t num_rows, float* o, int64_t ldo, Prefetch& prefetch) {
  alignas(64) char tail[16 * kMaxDecodeDim];
  alignas(64) char spread[kBlock / 16 * 1024];
  alignas(64) int32_t sums[2][256];
  const int64_t groups = ceil_div(n, 16);
  const int64_t in_last = n - 16 * (groups - 1);
  Rows last = v.from(16 * (groups - 1));
  // A tile reads 16 rows, which may be more than the tensor has. Rows beyond the last one are
  // multiplied by the integer 0, so what they have does not matter.
  if (in_last < 16) {
    for (int64_t i = 0; i < in_last; ++i)
      __builtin_memcpy(tail + i * head_dim_vo, last.data + i * last.stride_bytes, static_cast<size_t>(head_dim_vo));
    last = {tail, head_dim_vo};
  }
  // Two rows make the 16 rows of an A tile. If one row remains, the other 8 rows of the tile are
  // ignored.
  for (int64_t row = 0; row < num_rows; row += 2) {
    const int64_t rows = min_of(num_rows - row, 2);
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t i = 0; i < rows; ++i) spread_bytes(fixed + (row + i) * kBlock + 16 * g, spread + 1024 * g + 512 * i);
    }
    for (int64_t d = 0; d < head_dim_vo; d += 128) {
      const bool two = head_dim_vo - d > 64;
      DIFFQKV_TILE_ZERO(3);
      if (two) DIFFQKV_TILE_ZERO(7);
      for (int64_t g = 0; g < groups; ++g) {
        const Rows at = g == groups - 1 ? last : v.from(16 * g);
        if (row == 0) prefetch.advance(prefetch.per_value_tile * (two ? 2 : 1));
        DIFFQKV_TILE_LOAD(2, spread + 1024 * g, 64);
        DIFFQKV_TILE_LOAD(4, at.data + d, at.stride_bytes);
        DIFFQKV_TILE_DOT_BYTES(3, 2, 4);
        if (two) {
          DIFFQKV_TILE_LOAD(5, at.data + d + 64, at.stride_bytes);
          DIFFQKV_TILE_DOT_BYTES(7, 2, 5);
        }
      }
      DIFFQKV_TILE_STORE(3, sums[0], 64);
      if (two) DIFFQKV_TILE_STORE(7, sums[1], 64);
      for (int64_t i = 0; i < rows; ++i) {
        float* to = o + (row + i) * ldo + d / 4;
        add_byte_sums(sums[0] + 128 * i, units[row + i], head_dim_vo, to);
        if (two) add_byte_sums(sums[1] + 128 * i, units[row + i], head_dim_vo, to + 16);
      }
    }
  }
}
#endif

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
