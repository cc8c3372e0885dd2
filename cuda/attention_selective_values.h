// The values of selective V: the list of V rows that a block is to read, and their weighted sum.
#pragma once

#include "attention_selective_keys.h"
#include "attention_selective_top.h"
#include "element_types.h"

namespace diffqkv::cuda {
namespace {

constexpr int kMaxHeadDim = 256;
constexpr int kListRows = 2048;  // V rows that are gathered at once
static_assert(kThreads == kBins && kThreads >= kMaxHeadDim && kListRows % kThreads == 0);

struct ValuesShared {
  BinSearch search;
  uint32_t warps[2][kWarps];  // two numbers of each warp
  union {
    struct {
      const unsigned char* rows[kListRows];  // of V
      uint32_t weights[kListRows];           // at first the candidates' indices
    } list;
    float sums[kThreads * 16];  // [rows at once][head_dim_vo]
  };
  // Then the candidates' scores, where they fit.
};

// Two numbers of each thread, reduced over the block: the same bits in every thread. Ends with a barrier.
template <typename T, typename F, typename G>
__device__ __forceinline__ void block_reduce(T& a, T& b, const F& f, const G& g, ValuesShared* shared) {
  a = warp_reduce(a, f), b = warp_reduce(b, g);
  if (lane_index() == 0) {
    st_shared(&shared->warps[0][warp_index()], bit_cast<uint32_t>(a));
    st_shared(&shared->warps[1][warp_index()], bit_cast<uint32_t>(b));
  }
  __syncthreads();
  a = bit_cast<T>(ld_shared(&shared->warps[0][0])), b = bit_cast<T>(ld_shared(&shared->warps[1][0]));
  for (int i = 1; i < kWarps; ++i) {
    a = f(a, bit_cast<T>(ld_shared(&shared->warps[0][i])));
    b = g(b, bit_cast<T>(ld_shared(&shared->warps[1][i])));
  }
  __syncthreads();
}
__device__ __forceinline__ float add_floats(float a, float b) { return a + b; }

// The sum of weighted V rows: a thread owns 16 bytes of every rows_at_once-th row of the list.
template <typename V>
struct Gather {
  static constexpr int kElements = 16 / sizeof(V), kAtOnce = kElements > 8 ? 2 : 4;  // kAtOnce: loads under way
  int dim, rows_at_once, slot, first_dim;
  float o[kElements] = {};

  __device__ __forceinline__ explicit Gather(int head_dim_vo) : dim(head_dim_vo) {
    const int thread = threadIdx.x, lanes = dim / kElements;
    rows_at_once = kThreads / lanes, slot = thread / lanes, first_dim = thread % lanes * kElements;
  }

  __device__ __forceinline__ void add(const ValuesShared* shared, int count) {
    if (slot >= rows_at_once) return;
    for (int first = slot; first < count; first += rows_at_once * kAtOnce) {
      float weights[kAtOnce];
      Elements<V, kElements> parts[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int j = first + i * rows_at_once;
        weights[i] = j < count ? bit_cast<float>(ld_shared(&shared->list.weights[j])) : 0.0f;
        if (weights[i] == 0.0f) continue;  // 0 times infinity is not to be seen
        parts[i] = ld_global(reinterpret_cast<const Elements<V, kElements>*>(ld_shared(&shared->list.rows[j])) +
                             first_dim / kElements);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (weights[i] == 0.0f) continue;
#pragma unroll
        for (int e = 0; e < kElements; ++e) o[e] = __fmaf_rn(weights[i], to_float(parts[i].v[e]), o[e]);
      }
    }
  }

  // Dim threadIdx.x of the sum; the list is overwritten.
  __device__ __forceinline__ float finish(ValuesShared* shared) const {
    if (slot < rows_at_once) {
#pragma unroll
      for (int e = 0; e < kElements; e += 4) {
        st_shared(reinterpret_cast<Words4*>(&shared->sums[slot * dim + first_dim + e]),
                  Words4{{bit_cast<uint32_t>(o[e]), bit_cast<uint32_t>(o[e + 1]), bit_cast<uint32_t>(o[e + 2]),
                          bit_cast<uint32_t>(o[e + 3])}});
      }
    }
    __syncthreads();
    float sum = 0;
    const int d = threadIdx.x;
    if (d < dim) {
      for (int i = 0; i < rows_at_once; ++i) sum += ld_shared(&shared->sums[i * dim + d]);
    }
    return sum;
  }
};

}  // namespace
}  // namespace diffqkv::cuda
