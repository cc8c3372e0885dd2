// Sums and maxima over the 32 lanes of a warp. All lanes take part.
#pragma once

#include "types.h"

namespace diffqkv::cuda {

// Every lane gets the sum, in the same order of summation in each: all lanes have the same bits.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(kAllLanes, x, mask);
  return x;
}
// double or uint64_t.
template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
  static_assert(sizeof(T) == sizeof(Words2));
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const Words2 words = bit_cast<Words2>(x);
    x += bit_cast<T>(
        Words2{{__shfl_xor_sync(kAllLanes, words.w[0], mask), __shfl_xor_sync(kAllLanes, words.w[1], mask)}});
  }
  return x;
}
// NaN is passed over, unless all are.
__device__ __forceinline__ float max_number(float a, float b) { return a > b || b != b ? a : b; }
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x = max_number(x, __shfl_xor_sync(kAllLanes, x, mask));
  return x;
}

}  // namespace diffqkv::cuda
