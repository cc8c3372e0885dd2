// O += P V for few rows and V in i8, straight from the cache: 16 keys by 64 dims, as they lie there, are a B tile of an AMX
// int8 product, whose groups of four bytes are neighbouring dims of one key. P, with V's scales in it, becomes fixed point
// of 16 bits below the largest of its row and block; its two bytes, each in all four places of a group, are 8 rows of an A
// tile, so that row f sums the dims that leave f over 4.
//
// What fixed point rounds away is at most 2^-16 of the largest P scale of the block, times 127, for each key: well below the
// half a unit by which i8 has rounded V in the row that P is largest for. Where scales of a block are more than kAlikeScales
// apart, others may count beside a large one that has zeros, and the block goes another way.
#pragma once

#include "backend/cpu/attention_few_rows.h"
#include "backend/cpu/attention_softmax.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

#if defined(__AVX512BF16__)
#define DIFFQKV_TILE_DOT_BYTES(c, a, b) asm volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c : :)

constexpr float kFixedOne = 32512;  // its high byte, rounded, is 127
constexpr float kAlikeScales = 64;

// Whether the scales of n keys that are not 0 lie within kAlikeScales of each other, head by head.
DIFFQKV_INLINE bool scales_alike(const Cache& cache, int64_t batch, int64_t first_key, int64_t n, int64_t first_head,
                                 int64_t num_heads) {
  const int64_t part = cache.pages ? int64_t{1} << cache.page_shift : kBlock;
  for (int64_t h = 0; h < num_heads; h += kLanes) {
    const int64_t count = min_of(num_heads - h, kLanes);
    F32v most = {}, least = set1(kInfinity);
    for (int64_t begin = 0; begin < n; begin += part) {
      const bf16* from = cache.token_scales(batch, first_key + begin) + first_head + h;
      for (int64_t j = begin; j < min_of(begin + part, n); ++j, from += cache.num_heads) {
        const F32v scale = count == kLanes ? load(from) : load_n(from, count);
        const F32v size = (F32v)((I32v)scale & 0x7fffffff);
        most = size > most ? size : most;
        least = (size > 0.0f) & (size < least) ? size : least;
      }
    }
    if (_mm512_movepi32_mask((__m512i)(most > least * kAlikeScales)) != 0) return false;
  }
  return true;
}

// n numbers, padded with zeros to whole vectors, as multiples of the returned unit. `top`: their largest magnitude, bits by
// lanes. Where one is not finite the unit is NaN.
DIFFQKV_INLINE float store_fixed(const float* x, int64_t n, __m512i top, int32_t* to) {
  const float largest = bit_cast<float>(_mm512_reduce_max_epu32(top));
  const bool finite = largest < kInfinity, zero = largest < 0x1p-110f;
  const F32v factor = set1(finite && !zero ? kFixedOne / largest : 0);
  for (int64_t j = 0; j < n; j += kLanes) {
    _mm512_storeu_si512(to + j, _mm512_cvtps_epi32((__m512)(load(x + j) * factor)));
  }
  return !finite ? __builtin_nanf("") : zero ? 0 : largest / kFixedOne;
}

// A row's 16 numbers as 8 rows of an A tile: the high byte in place 0 to 3 of each group, then the low one.
DIFFQKV_INLINE void spread_bytes(const int32_t* x, char* to) {
  const __m512i value = _mm512_loadu_si512(x), byte = _mm512_set1_epi32(0xff);
  const __m512i high =
      _mm512_srai_epi32(_mm512_add_epi32(value, _mm512_set1_epi32(128)), 8);  // the low byte has a sign too
  for (const __m512i part : {_mm512_and_si512(high, byte), _mm512_and_si512(value, byte)}) {
    _mm512_store_si512(to, part);
    _mm512_store_si512(to + 64, _mm512_slli_epi32(part, 8));
    _mm512_store_si512(to + 128, _mm512_slli_epi32(part, 16));
    _mm512_store_si512(to + 192, _mm512_slli_epi32(part, 24));
    to += 256;
  }
}

// o[f * head_dim_vo / 4 + c] += unit * sums of dim 4 c + f, for 16 c. sums: [high, low][4][16].
DIFFQKV_INLINE void add_byte_sums(const int32_t* sums, float unit, int64_t head_dim_vo, float* o) {
  for (int64_t f = 0; f < 4; ++f, o += head_dim_vo / 4) {
    const __m512i high = _mm512_load_si512(sums + 16 * f), low = _mm512_load_si512(sums + 64 + 16 * f);
    const F32v sum = (F32v)_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low));
    store(o, fma(sum, set1(unit), load(o)));
  }
}

// One V head and n keys. fixed: [row][kBlock], units: [row], both from the head's first row on; o: [row][4][head_dim_vo / 4],
// its dims by what they leave over 4.
DIFFQKV_INLINE void few_byte_values(const HeadRows& v, int64_t n, int64_t head_dim_vo, const int32_t* fixed,
                                    const float* units, int64_t num_rows, float* o, int64_t ldo, Prefetch& prefetch) {
  alignas(64) char tail[16 * kFewDims], spread[kBlock / 16 * 1024];
  alignas(64) int32_t sums[2][256];
  const int64_t groups = ceil_div(n, 16), in_last = n - 16 * (groups - 1);
  Rows last = v.from(16 * (groups - 1));
  if (in_last < 16) {  // a tile reads 16 rows, and the tensor may end before
    __builtin_memset(tail, 0, static_cast<size_t>(16 * head_dim_vo));
    for (int64_t i = 0; i < in_last; ++i)
      __builtin_memcpy(tail + i * head_dim_vo, last.data + i * last.stride_bytes, static_cast<size_t>(head_dim_vo));
    last = {tail, head_dim_vo};
  }
  for (int64_t row = 0; row < num_rows;
       row += 2) {  // 16 rows of A; with one row left over, the other 8 are not looked at
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
