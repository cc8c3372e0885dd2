// The exact top k of scores. A candidate is a key and its score, as an unsigned integer with the
// order of the scores. Candidates are in the order of their keys, so that of equal scores the earlier
// one is kept. Kept describes the candidates that are kept: those above a bound, and the first few
// that equal it.
#pragma once

#include <device/memory.h>

#include "conversions.h"
#include "reductions.h"

namespace diffqkv::cuda {
namespace {

// The larger; NaN, once in, stays.
__device__ __forceinline__ float larger(float top, float x) { return x > top || x != x ? x : top; }

// 2^((score - top) scale). What is above 0 in the reference, in float64, is above 0 here.
__device__ __forceinline__ float weight_of(float score, float top, float scale_log2) {
  const float x = (score - top) * scale_log2;
  const float weight = ex2_approx(x);
  return weight == 0.0f && x > -1075.0f ? bit_cast<float>(1u) : weight;
}

// NaN counts as the largest; -0 and 0 are equal. 0 is below every score.
__device__ __forceinline__ uint32_t order_score(float score) {
  if (score != score) return 0xffffffffu;
  const uint32_t bits = bit_cast<uint32_t>(score + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float ordered_score(uint32_t ordered) {
  return bit_cast<float>(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
}

__device__ __forceinline__ uint32_t count_bits(uint32_t x) {
  x -= x >> 1 & 0x55555555u;
  x = (x & 0x33333333u) + (x >> 2 & 0x33333333u);
  return ((x + (x >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24;
}

__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }

template <typename T, typename F>
__device__ __forceinline__ T warp_reduce(T x, const F& f) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x = f(x, __shfl_xor_sync(kAllLanes, x, mask));
  return x;
}
__device__ __forceinline__ uint32_t add_words(uint32_t a, uint32_t b) { return a + b; }
__device__ __forceinline__ uint32_t larger_word(uint32_t a, uint32_t b) { return a > b ? a : b; }
__device__ __forceinline__ uint32_t smaller_word(uint32_t a, uint32_t b) { return a < b ? a : b; }

struct Kept {
  uint32_t bound = 0, num_equal = 0;
};

// Where kept candidates go, as a warp walks over them 32 at a time.
struct Places {
  uint32_t higher = 0, equal = 0;  // so many came before

  __device__ __forceinline__ void count(const Kept& kept, uint32_t score) {
    higher += count_bits(__ballot_sync(kAllLanes, score > kept.bound));
    if (kept.num_equal > 0) equal += count_bits(__ballot_sync(kAllLanes, score == kept.bound));
  }
  // The place of this lane's candidate, or -1 if it is not kept. Counts the candidates of all lanes.
  __device__ __forceinline__ int take(const Kept& kept, uint32_t score) {
    const uint32_t lanes_before = (1u << lane_index()) - 1;
    const bool is_higher = score > kept.bound, is_equal = score == kept.bound;
    const uint32_t higher_lanes = __ballot_sync(kAllLanes, is_higher),
                   equal_lanes = kept.num_equal > 0 ? __ballot_sync(kAllLanes, is_equal) : 0u;
    const uint32_t own_higher = higher + count_bits(higher_lanes & lanes_before);
    const uint32_t own_equal = equal + count_bits(equal_lanes & lanes_before);
    higher += count_bits(higher_lanes), equal += count_bits(equal_lanes);
    if (!is_higher && !(is_equal && own_equal < kept.num_equal)) return -1;
    return static_cast<int>(own_higher + smaller_word(own_equal, kept.num_equal));
  }
  __device__ __forceinline__ uint32_t total(const Kept& kept) const {
    return higher + smaller_word(equal, kept.num_equal);
  }
};

// The k best of a warp's scores, kCount a lane, of which more than k are not 0. Bit by bit from the
// top: the largest bound that k scores reach, or the first found that exactly k reach.
template <int kCount>
__device__ __forceinline__ Kept keep_best(const uint32_t (&scores)[kCount], uint32_t k) {
  const auto count_at_least = [&](uint32_t bound) {
    uint32_t count = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) count += scores[i] >= bound ? 1u : 0u;
    return warp_reduce(count, add_words);
  };
  uint32_t bound = 0;
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    const uint32_t count = count_at_least(bound | bit);
    if (count >= k) bound |= bit;
    if (count == k) return {bound - 1, 0};
  }
  return {bound, bound == 0xffffffffu ? k : k - count_at_least(bound + 1)};
}

constexpr int kBins = 256;
struct BinSearch {
  uint32_t histogram[kBins];
  uint32_t digit, wanted, is_whole;
};

// The k best of `count` > k scores, by a block of kBins threads or more: a digit of up to 8 bits at
// a time, by histogram, below the bits that the lowest and the highest score share.
template <typename Scores>
__device__ __forceinline__ Kept keep_best(const Scores& scores, int count, uint32_t k, uint32_t lowest,
                                          uint32_t highest, BinSearch* search) {
  const int thread = threadIdx.x, lane = lane_index();
  int shift = 32;
  while (shift > 0 && ((lowest ^ highest) >> (shift - 1)) == 0) --shift;
  uint64_t prefix = static_cast<uint64_t>(highest) >> shift;
  uint32_t wanted = k;  // of those with the prefix
  while (shift > 0) {
    const int bits = shift < 8 ? shift : 8, above = shift;
    shift -= bits;
    if (thread < kBins) st_shared(&search->histogram[thread], 0u);
    __syncthreads();
    for (int j = thread; j < count; j += blockDim.x) {
      const uint32_t score = scores(j);
      if (static_cast<uint64_t>(score) >> above == prefix) {
        atomicAdd(&search->histogram[score >> shift & ((1u << bits) - 1)], 1u);
      }
    }
    __syncthreads();
    if (thread < kWarpSize) {  // from the highest bin down, eight to a lane
      constexpr int kLaneBins = kBins / kWarpSize;
      uint32_t counts[kLaneBins], own = 0;
#pragma unroll
      for (int i = 0; i < kLaneBins; ++i) {
        counts[i] = ld_shared(&search->histogram[kBins - 1 - (lane * kLaneBins + i)]);
        own += counts[i];
      }
      uint32_t before = own;
#pragma unroll
      for (int delta = 1; delta < kWarpSize; delta *= 2) {
        const uint32_t other = __shfl_up_sync(kAllLanes, before, delta);
        if (lane >= delta) before += other;
      }
      before -= own;
#pragma unroll
      for (int i = 0; i < kLaneBins; ++i) {
        if (before < wanted && wanted <= before + counts[i]) {
          st_shared(&search->digit, static_cast<uint32_t>(kBins - 1 - (lane * kLaneBins + i)));
          st_shared(&search->wanted, wanted - before);
          st_shared(&search->is_whole, wanted - before == counts[i] ? 1u : 0u);
        }
        before += counts[i];
      }
    }
    __syncthreads();
    prefix = prefix << bits | ld_shared(&search->digit);
    wanted = ld_shared(&search->wanted);
    if (ld_shared(&search->is_whole) != 0) return {(static_cast<uint32_t>(prefix) << shift) - 1, 0};
  }
  return {static_cast<uint32_t>(prefix), wanted};
}

}  // namespace
}  // namespace diffqkv::cuda
