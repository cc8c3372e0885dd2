// One work item: attention of a tile's rows over one split of the keys, by the pieces of attention_tile.h.
#pragma once

#include "backend/cpu/attention_few_bytes.h"
#include "backend/cpu/attention_tile.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

#if defined(__AVX512BF16__)
// A row of O by few_values: even dims, the divisor, odd dims; by few_byte_values: dims by what they leave over 4, the divisor.
DIFFQKV_INLINE int64_t divisor_column(const Problem& p) { return p.byte_values ? p.head_dim_vo : p.head_dim_vo / 2; }

// Puts it into the order of o.
DIFFQKV_INLINE void reorder_row(const Problem& p, float* o) {
  alignas(64) float parts[2 * kFewDims];
  __builtin_memcpy(parts, o, static_cast<size_t>(p.ldo * 4));
  const int64_t count = p.byte_values ? 4 : 2, stride = p.byte_values ? p.head_dim_vo / 4 : p.ldo / 2;
  for (int64_t d = 0; d < p.head_dim_vo; ++d) o[d] = parts[d % count * stride + d / count];
  o[p.head_dim_vo] = parts[divisor_column(p)];
}

// P of one row and block, times V's scales: as pairs of bf16 for few_values, or as fixed point for few_byte_values. s: the
// scores, overwritten. Adds to d and to the divisor.
DIFFQKV_INLINE void few_probabilities(const Problem& p, Tile& t, int64_t row, float* s, int64_t count, int64_t all) {
  float* o = t.o + row * p.ldo;
  const float base = count > 0 ? update_max(p, s, count, &t.m[row], &t.d[row], o, p.ldo) : 0;
  const float* factors = value_scales(p, t, row);
  uint32_t* pairs = reinterpret_cast<uint32_t*>(t.p) + row * 32;
  F32v total = {}, rounded = {};
  __m512i top = _mm512_setzero_si512();
  for (int64_t j = 0; j < all; j += kLanes) {
    F32v x = {};
    if (j < count) {
      const I32v seen = lane_numbers() < static_cast<int32_t>(min_of(count - j, kLanes));
      x = exp2_fast(fma(load(s + j), set1(p.scale_log2), set1(-base)));
      x = seen ? x : F32v{};
      total += x;
      if (factors) x = seen ? x * load(factors + j) : x;
    }
    if (p.byte_values) {
      store(s + j, x);
      top = _mm512_max_epu32(top, _mm512_and_si512((__m512i)x, _mm512_set1_epi32(0x7fffffff)));
    } else {
      rounded += store_pairs(pairs + j / 16 * t.num_rows * 32, x);
    }
  }
  if (p.byte_values) t.units[row] = store_fixed(s, all, top, reinterpret_cast<int32_t*>(t.p) + row * kBlock);
  if (p.sum_d) t.d[row] += sum(total);
  o[divisor_column(p)] += sum(factors ? total : rounded);
}

// attend for few rows, where K and V are taken straight from the cache. Returns whether O is right: not where it is not finite,
// as such a V spoils its neighbours here, nor where fixed point would lose something.
bool attend_few(const Problem& p, Tile& t, int64_t begin, int64_t end, bool prefetch) {
  const int64_t v_rows = p.q_heads_per_v_head * t.num_queries;
  for (int64_t key = begin; key < end; key += p.block) {
    const int64_t n = min_of(end - key, p.block);
    Prefetch next;
    if (prefetch) next = prefetch_after(p, t, key, end, true);
    load_value_scales(p, t, key, n);
    if (p.byte_values &&
        !scales_alike(p.v, t.batch, key, n, t.first_head / p.q_heads_per_v_head, t.num_heads / p.q_heads_per_v_head))
      return false;
    score_block(p, t, key, n, next, [&](int64_t row, float* s, int64_t count, int64_t all) DIFFQKV_LAMBDA {
      few_probabilities(p, t, row, s, count, all);
    });
    const KeyBlock keys(p.v, t.batch, key, n);
    for (int64_t row = 0; row < t.num_rows; row += v_rows) {
      HeadRows rows = keys.head(t.first_head / p.q_heads_per_v_head + row / v_rows);
      float* o = t.o + row * p.ldo;
      if (p.byte_values) {
        few_byte_values(rows, n, p.head_dim_vo, reinterpret_cast<const int32_t*>(t.p) + row * kBlock, t.units + row,
                        v_rows, o, p.ldo, next);
        continue;
      }
      if (p.lift_v) rows = lifted(p.v.dtype, rows, n, p.head_dim_vo, &t.lifted);
      few_values(rows, n, p.head_dim_vo, reinterpret_cast<const uint32_t*>(t.p) + row * 32, t.num_rows * 32, o, p.ldo,
                 next);
    }
  }
  F32v finite = {};
  for (int64_t row = 0; row < t.num_rows; ++row) {
    float* o = t.o + row * p.ldo;
    reorder_row(p, o);
    for (int64_t j = 0; j < p.head_dim_vo; j += kLanes) finite += load(o + j) * 0;
  }
  return sum(finite) == 0;
}
#endif

DIFFQKV_INLINE void clear_rows(const Problem& p, Tile& t) {
  __builtin_memset(t.o, 0, static_cast<size_t>(t.num_rows * p.ldo * 4));
  for (int64_t i = 0; i < t.num_rows; ++i) t.m[i] = -kInfinity, t.d[i] = 0;
}

// Attention of the tile's rows over keys [begin, end): fills t.o and t.m.
void attend(const Problem& p, Tile& t, int64_t begin, int64_t end, bool prefetch) {
  load_queries(p, t);
  clear_rows(p, t);
#if defined(__AVX512BF16__)
  if (uses_few_rows(p, t)) {
    if (attend_few(p, t, begin, end, prefetch)) return;
    clear_rows(p, t);
  }
#endif
  for (int64_t key = begin; key < end; key += p.block) {
    const int64_t n = min_of(end - key, p.block);
    Prefetch next;
    if (prefetch) next = prefetch_after(p, t, key, end, true);
    load_value_scales(p, t, key, n);
    score_block(p, t, key, n, next, [&](int64_t row, const float* s, int64_t count, int64_t all) DIFFQKV_LAMBDA {
      const float base = count > 0 ? update_max(p, s, count, &t.m[row], &t.d[row], t.o + row * p.ldo, p.ldo) : 0;
      const int64_t padded = round_up(all, kPairStep);
      const float* factors = value_scales(p, t, row);
#if defined(__AVX512BF16__)
      if (p.bf16_values) {
        const F32v total =
            probabilities(s, count, padded, p.scale_log2, base, factors, reinterpret_cast<bf16*>(t.p) + row * kBlock);
        if (p.sum_d) t.d[row] += sum(total);
        return;
      }
#endif
      const F32v total =
          probabilities(s, count, padded, p.scale_log2, base, factors, reinterpret_cast<float*>(t.p) + row * kBlock);
      if (p.sum_d) t.d[row] += sum(total);
    });
    value_block(p, t, key, n, next);
  }
  for (int64_t row = 0; p.v.scaled && row < t.num_rows; ++row) t.o[row * p.ldo + p.head_dim_vo] = t.d[row];
}

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
