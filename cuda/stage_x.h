// The rows of x of a product for few tokens in shared memory, in their 16-bit type, where all warps of a
// block read them: as they are, or normalized from f32. The first copies of weights are under way
// meanwhile.
#pragma once

#include "element_types.h"
#include "norm_scale.h"
#include "reductions.h"

namespace diffqkv::cuda {

// Up to so many tokens are normalized by each block of a product. For more, a launch that normalizes
// each token once takes less time.
constexpr int kMaxNormedTokens = 8;

// Bytes from row to row: whole pieces of 128 columns, and 64 bytes, so that the fragments of eight
// tokens have no bank conflicts.
inline int staged_pitch(int64_t in_features) { return static_cast<int>((in_features + 127) / 128 * 256 + 64); }

// Of the rows of all tokens, if these share one reading of the weights, which is of `most_tokens`; else
// more than there is.
inline size_t staged_bytes(int64_t num_tokens, int64_t in_features, int most_tokens) {
  constexpr int64_t kMostFeatures = int64_t{1} << 28;  // offsets in a row are int
  if (num_tokens > most_tokens || in_features > kMostFeatures) return SIZE_MAX / 4;
  return static_cast<size_t>(num_tokens) * static_cast<size_t>(staged_pitch(in_features));
}

// Where rows are staged.
struct StagedRows {
  unsigned char* rows;  // aligned to 16 bytes
  int pitch;            // staged_pitch
  double* sums;         // for kMaxNormedTokens tokens and the block's warps, if the rows are normalized
};

// Copies `num_tokens` rows of `row_size` elements of 16 bits, a multiple of 8, aligned to 16 bytes. What
// a staged row has beyond them becomes 0. All `kThreads` threads of the block take part; then all may read.
template <int kThreads>
__device__ __forceinline__ void stage_rows(const void* x, int num_tokens, int row_size, const StagedRows& staged) {
#pragma unroll 1
  for (int token = 0; token < num_tokens; ++token) {
    const unsigned char* row = static_cast<const unsigned char*>(x) + 2 * static_cast<int64_t>(token) * row_size;
#pragma unroll 4
    for (int at = static_cast<int>(threadIdx.x) * 16; at < staged.pitch - 64; at += kThreads * 16) {
      Words4 words = {};
      if (at < 2 * row_size) words = ld_global(reinterpret_cast<const Words4*>(row + at));
      st_shared(reinterpret_cast<Words4*>(staged.rows + token * staged.pitch + at), words);
    }
  }
  __syncthreads();
}

// The same of normalized rows, with the bits of rms_norm: x is f32, and its rows, the norm's weight and
// sizes are as above.
template <typename T, int kThreads>
__device__ __forceinline__ void stage_normed_rows(const void* x, const InputNorm& norm, int num_tokens, int row_size,
                                                  const StagedRows& staged) {
  constexpr int kVector = 8, kWarps = kThreads / kWarpSize;
  const auto load = [&](int token, int i, float(&h)[kVector]) {
    load_elements(static_cast<const float*>(x) + static_cast<int64_t>(token) * row_size + i, h);
  };
  const int first = static_cast<int>(threadIdx.x) * kVector;
#pragma unroll 1
  for (int token = 0; token < num_tokens; ++token) {
    float squares = 0;
#pragma unroll 2
    for (int i = first; i < row_size; i += kThreads * kVector) {
      float h[kVector];
      load(token, i, h);
#pragma unroll
      for (int j = 0; j < kVector; ++j) squares = __fmaf_rn(h[j], h[j], squares);
    }
    const double sum = warp_sum(static_cast<double>(squares));
    if (lane_index() == 0) st_shared(staged.sums + token * kWarps + warp_index(), sum);
  }
  __syncthreads();
#pragma unroll 1
  for (int token = 0; token < num_tokens; ++token) {
    const auto block_sum = [&] {
      double total = 0;
      for (int warp = 0; warp < kWarps; ++warp) total += ld_shared(staged.sums + token * kWarps + warp);
      return total;
    };
    double total = block_sum();
    if (!squares_are_in_range(total)) {  // of all threads or of none
      double exact = 0;
#pragma unroll 1
      for (int i = first; i < row_size; i += kThreads * kVector) {
        float h[kVector];
        load(token, i, h);
#pragma unroll
        for (int j = 0; j < kVector; ++j) exact += static_cast<double>(h[j]) * h[j];
      }
      exact = warp_sum(exact);
      __syncthreads();
      if (lane_index() == 0) st_shared(staged.sums + token * kWarps + warp_index(), exact);
      __syncthreads();
      total = block_sum();
    }
    const float scale = norm_scale(total, row_size, norm.eps);
#pragma unroll 1
    for (int i = first; i < staged.pitch / 2 - 32; i += kThreads * kVector) {
      Words4 words = {};
      if (i < row_size) {
        float h[kVector], weight[kVector];
        load(token, i, h);
        load_elements(norm.weight + i, weight);
#pragma unroll
        for (int j = 0; j < kVector; j += 2)
          words.w[j / 2] = cvt_rn_x2<T>(h[j] * scale * weight[j], h[j + 1] * scale * weight[j + 1]);
      }
      st_shared(reinterpret_cast<Words4*>(staged.rows + token * staged.pitch + 2 * i), words);
    }
  }
  __syncthreads();
}

// How many blocks a multiprocessor has, one or two, and whether they have room for x.
struct SharedPlan {
  int blocks;
  bool staged;
  size_t bytes;  // of a block
};

// For blocks that need `bytes` and, with x, `x_bytes` more. A block is enough to have the copies under
// way that a multiprocessor needs; two hide the ends of blocks. `prefers_x`: x is worth the second.
inline SharedPlan plan_shared(size_t bytes, size_t x_bytes, bool prefers_x, size_t max_shared_bytes) {
  constexpr size_t kReserved = 1024;  // of each block, by CUDA
  const auto has_room = [&](size_t of_block, int blocks) {
    return static_cast<size_t>(blocks) * (of_block + kReserved) <= max_shared_bytes + kReserved;
  };
  const int blocks = has_room(bytes, 2) ? 2 : 1;
  if (has_room(bytes + x_bytes, blocks)) return {blocks, true, bytes + x_bytes};
  if (prefers_x && has_room(bytes + x_bytes, 1)) return {1, true, bytes + x_bytes};
  return {blocks, false, bytes};
}

}  // namespace diffqkv::cuda
