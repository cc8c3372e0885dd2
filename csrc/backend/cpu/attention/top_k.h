// Selective V: the exact top k scores of each query head, in one pass over the keys.
//
// A candidate is a key and its score, stored as an unsigned integer that sorts as the scores do. A
// row's buffer receives every score above the threshold, in the order of keys. When the next block
// might overflow the buffer, only the k best stay. The k-th score is found bit by bit, by counting:
// no branch depends on the data, and no order of keys is slow. It becomes the threshold. The buffer
// has room for 2k or more, so each such step is paid for by k insertions, and the total is linear
// in the number of keys.
//
// Of equal scores, the earlier key is earlier in the buffer and stays.
#pragma once

#include "backend/cpu/attention/schedule.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

struct Candidates {
  uint32_t* scores;
  uint32_t* keys;
};

// NaN counts as the largest score, so that it reaches the output. -0 and 0 are equal.
DIFFQKV_INLINE U32v order_scores(F32v scores) {
  const U32v bits = (U32v)(scores + 0.0f);
  const U32v ordered = bits ^ ((U32v)((I32v)bits >> 31) | 0x80000000u);
  return scores == scores ? ordered : ~U32v{};
}

DIFFQKV_INLINE float ordered_score(uint32_t ordered) {
  return bit_cast<float>(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);  // 0xffffffff becomes a NaN
}

DIFFQKV_INLINE int64_t count_at_least(const uint32_t* scores, int64_t count, uint32_t bound) {
  U32v total = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) total -= (U32v)(load_raw<U32v>(scores + i) >= bound);
  int64_t sum = 0;
  for (int j = 0; j < kLanes; ++j) sum += total[j];
  for (; i < count; ++i) sum += scores[i] >= bound;
  return sum;
}

// Appends the lanes of both vectors that `lanes` selects to the candidates. Returns the new count.
// May write a whole vector beyond it.
DIFFQKV_INLINE int64_t append(const Candidates& c, int64_t count, U32v scores, U32v keys, uint32_t lanes) {
#if defined(__AVX512F__)
  const __mmask16 mask = static_cast<__mmask16>(lanes);
  _mm512_storeu_si512(c.scores + count, _mm512_maskz_compress_epi32(mask, (__m512i)scores));
  _mm512_storeu_si512(c.keys + count, _mm512_maskz_compress_epi32(mask, (__m512i)keys));
  return count + __builtin_popcount(lanes);
#else
  for (; lanes; lanes &= lanes - 1) {
    const int i = __builtin_ctz(lanes);
    c.scores[count] = scores[i];
    c.keys[count] = keys[i];
    ++count;
  }
  return count;
#endif
}

// Bit i is lane i of the mask.
DIFFQKV_INLINE uint32_t lane_bits(I32v mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= mask[i] ? 1u << i : 0;
  return bits;
#endif
}

// Keeps the k best of count > k candidates in their order. Returns a threshold: a later key that
// scores it or less cannot be among the k best.
float keep_best(const Candidates& c, int64_t count, int64_t k) {
  // The largest bound that k scores reach, or the first one found that exactly k scores reach.
  uint32_t bound = 0;
  int64_t reached = count;
  for (uint32_t bit = 0x80000000u; bit && reached != k; bit >>= 1) {
    const int64_t n = count_at_least(c.scores, count, bound | bit);
    if (n >= k) {
      bound |= bit;
      reached = n;
    }
  }
  const int64_t surplus = reached - k;  // so many scores equal to the bound are dropped, the last ones
  int64_t at_bound = 0;
  if (surplus > 0)
    at_bound = reached - (bound == 0xffffffffu ? 0 : count_at_least(c.scores, count, bound + 1)) - surplus;
  int64_t kept = 0;
  for (int64_t i = 0; i < count; i += kLanes) {
    const U32v scores = load_raw<U32v>(c.scores + i);
    const U32v keys = load_raw<U32v>(c.keys + i);
    uint32_t lanes = lane_bits(scores >= bound);
    if (count - i < kLanes) lanes &= (1u << (count - i)) - 1;
    if (surplus > 0) {
      for (uint32_t equal = lanes & lane_bits(scores == bound); equal; equal &= equal - 1) {
        if (at_bound-- <= 0) lanes &= ~(equal & -equal);
      }
    }
    kept = append(c, kept, scores, keys, lanes);
  }
  return ordered_score(surplus > 0 ? bound : bound - 1);
}

// The best candidates of one row, and max and sum of the softmax over all its keys.
struct Selection {
  float m, d;
  float threshold;  // of raw scores
  int64_t count;

  // Leaves room for the insertions of one block above the best k, and for writing whole vectors.
  static int64_t capacity(int64_t k) { return round_up(max_of(2 * k, k + 256) + kBlock + kLanes, 16); }

  DIFFQKV_INLINE void insert(const Candidates& c, int64_t k, const float* s, int64_t num_keys, int64_t first_key) {
    for (int64_t j = 0; j < num_keys; j += kLanes) {
      const F32v x = load(s + j);
      uint32_t lanes = lane_bits(~(x <= threshold));  // NaN too
      if (num_keys - j < kLanes) lanes &= (1u << (num_keys - j)) - 1;
#if !defined(__AVX512F__)
      if (!lanes) continue;  // compress stores are faster without this branch
#endif
      count = append(c, count, order_scores(x), (U32v)(lane_numbers() + static_cast<int32_t>(first_key + j)), lanes);
    }
    if (count > capacity(k) - kBlock - kLanes) shrink(c, k);
  }

  void shrink(const Candidates& c, int64_t k) {
    if (count <= k) return;
    threshold = keep_best(c, count, k);  // if this is NaN, every key is inserted
    count = k;
  }

  DIFFQKV_INLINE void add_weights(const float* s, int64_t num_keys, const Weight& weight) {
    F32v total = {};
    int64_t j = 0;
    for (; j + kLanes <= num_keys; j += kLanes) total += weight(load(s + j));
    if (j < num_keys) {
      const F32v x = weight(load(s + j));
      total += lane_numbers() < static_cast<int32_t>(num_keys - j) ? x : F32v{};
    }
    d += sum(total);
  }
};

// o = sum of weights[i] * V[keys[i]], with V head `head` of a sequence.
template <typename T>
void gather_values(const Cache& v, int64_t batch, int64_t head, const uint32_t* keys, const float* weights,
                   int64_t count, int64_t head_dim, float* o) {
  constexpr int64_t kAhead = 16;
  for (int64_t d = 0; d < head_dim; d += kLanes) store(o + d, F32v{});
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) {
      const char* row = v.token(batch, keys[i + kAhead]) + head * v.head_bytes;
      for (int64_t byte = 0; byte < v.head_bytes; byte += 64) __builtin_prefetch(row + byte);
      if (v.scaled) __builtin_prefetch(v.token_scales(batch, keys[i + kAhead]) + head);
    }
    const T* row = reinterpret_cast<const T*>(v.token(batch, keys[i]) + head * v.head_bytes);
    const F32v weight = set1(v.scaled ? weights[i] * load1(v.token_scales(batch, keys[i]) + head) : weights[i]);
    int64_t d = 0;
    for (; d + kLanes <= head_dim; d += kLanes) store(o + d, fma(load(row + d), weight, load(o + d)));
    if (d < head_dim) store(o + d, fma(load_n(row + d, head_dim - d), weight, load(o + d)));
  }
}

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
