// Selective V: the exact top k scores of each query head, kept in one pass over the keys.
//
// A candidate is one 64-bit word, score above and complemented key index below, so that plain integer order is "higher score
// first, of equal scores the earlier key", and no two are equal. A row's buffer takes every score above the threshold; when it
// may overflow, a quickselect leaves the best k, and the k-th becomes the threshold. The buffer holds 2k or more, so each
// quickselect is paid for by k insertions: linear in the number of keys, whatever their order.
#pragma once

#include "backend/cpu/attention_tile.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

// NaN counts as the largest score, so that it reaches the output.
DIFFQKV_INLINE uint64_t make_candidate(float score, uint32_t key) {
  const uint32_t bits = bit_cast<uint32_t>(score + 0.0f);  // -0 and 0 are equal
  const uint32_t ordered = score != score ? 0xffffffffu : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return uint64_t{ordered} << 32 | ~key;
}

DIFFQKV_INLINE float candidate_score(uint64_t candidate) {
  const uint32_t ordered = static_cast<uint32_t>(candidate >> 32);
  return bit_cast<float>(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);  // 0xffffffff gives a NaN back
}

DIFFQKV_INLINE uint32_t candidate_key(uint64_t candidate) { return ~static_cast<uint32_t>(candidate); }

// Moves the k largest of count distinct words to the front, the k-th at [k - 1]. Pivots are drawn at random (from a fixed
// seed), so no order of the input is slow.
void select_largest(uint64_t* words, int64_t count, int64_t k) {
  uint64_t random = 0x9e3779b97f4a7c15u;
  int64_t low = 0, high = count - 1;
  while (low < high) {
    random ^= random << 13, random ^= random >> 7, random ^= random << 17;
    const uint64_t pivot = words[low + static_cast<int64_t>(random % static_cast<uint64_t>(high - low + 1))];
    int64_t i = low, j = high;
    while (i <= j) {
      while (words[i] > pivot) ++i;
      while (words[j] < pivot) --j;
      if (i > j) break;
      const uint64_t word = words[i];
      words[i++] = words[j], words[j--] = word;
    }
    if (k - 1 <= j) {
      high = j;
    } else if (k - 1 >= i) {
      low = i;
    } else {
      return;
    }
  }
}

// Bit i: lane i of x is above the threshold, or NaN.
DIFFQKV_INLINE uint32_t above(F32v x, float threshold) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(threshold), _CMP_NLE_UQ);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)x, _mm256_set1_ps(threshold), _CMP_NLE_UQ)));
#else
  const I32v below = x <= threshold;
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= below[i] ? 0 : 1u << i;
  return bits;
#endif
}

// The best candidates of one row, and the softmax's max and sum over all its keys.
struct Selection {
  float m, d;
  float threshold;  // of raw scores
  int64_t count;

  // Room for a block's worth of insertions above the best k.
  static int64_t capacity(int64_t k) { return max_of(2 * k, k + 256) + kBlock; }

  DIFFQKV_INLINE void insert(uint64_t* words, int64_t k, const float* s, int64_t num_keys, int64_t first_key) {
    for (int64_t j = 0; j < num_keys; j += kLanes) {
      uint32_t bits = above(load(s + j), threshold);
      if (num_keys - j < kLanes) bits &= (1u << (num_keys - j)) - 1;
      for (; bits; bits &= bits - 1) {
        const int64_t i = j + __builtin_ctz(bits);
        words[count++] = make_candidate(s[i], static_cast<uint32_t>(first_key + i));
      }
    }
    if (count > capacity(k) - kBlock) shrink(words, k);
  }

  void shrink(uint64_t* words, int64_t k) {
    if (count <= k) return;
    select_largest(words, count, k);
    count = k;
    const float last = candidate_score(words[k - 1]);
    threshold = last == last ? last : kInfinity;  // k NaNs: only NaN comes in
  }

  DIFFQKV_INLINE void add_exponents(const float* s, int64_t num_keys, float scale, float base) {
    F32v total = {};
    int64_t j = 0;
    for (; j + kLanes <= num_keys; j += kLanes) total += exp2_fast(fma(load(s + j), set1(scale), set1(-base)));
    if (j < num_keys) {
      const F32v x = exp2_fast(fma(load(s + j), set1(scale), set1(-base)));
      total += lane_numbers() < static_cast<int32_t>(num_keys - j) ? x : F32v{};
    }
    d += sum(total);
  }
};

// o = sum of weights[i] * V[words[i]'s key], one V head.
template <typename T>
void gather_values(const Rows& rows, const uint64_t* words, const float* weights, int64_t count, int64_t head_dim, float* o) {
  constexpr int64_t kAhead = 16;
  for (int64_t d = 0; d < head_dim; d += kLanes) store(o + d, F32v{});
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) {
      const char* row = rows.data + candidate_key(words[i + kAhead]) * rows.stride_bytes;
      for (int64_t byte = 0; byte < head_dim * static_cast<int64_t>(sizeof(T)); byte += 64) __builtin_prefetch(row + byte);
    }
    const T* row = reinterpret_cast<const T*>(rows.data + candidate_key(words[i]) * rows.stride_bytes);
    const F32v weight = set1(weights[i]);
    int64_t d = 0;
    for (; d + kLanes <= head_dim; d += kLanes) store(o + d, fma(load(row + d), weight, load(o + d)));
    if (d < head_dim) store(o + d, fma(load_n(row + d, head_dim - d), weight, load(o + d)));
  }
}

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
