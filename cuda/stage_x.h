// The rows of x of a product for few tokens in shared memory, in their 16-bit type, where all warps of a
// block read them. The first copies of weights are under way meanwhile.
#pragma once

#include "types.h"

namespace diffqkv::cuda {

// Bytes from row to row: whole pieces of 128 columns, and 64 bytes, so that the fragments of eight
// tokens have no bank conflicts.
inline int staged_pitch(int64_t in_features) { return static_cast<int>((in_features + 127) / 128 * 256 + 64); }

// Copies `num_tokens` rows of `row_size` elements of 16 bits, a multiple of 8, aligned to 16 bytes. What
// a staged row has beyond becomes 0. All `kThreads` threads of the block take part; then all may read.
template <int kThreads>
__device__ __forceinline__ void stage_x(const void* x, int num_tokens, int row_size, unsigned char* shared, int pitch) {
  const unsigned char* row = static_cast<const unsigned char*>(x);
  for (int token = 0; token < num_tokens; ++token) {
#pragma unroll 4
    for (int at = static_cast<int>(threadIdx.x) * 16; at < pitch - 64; at += kThreads * 16) {
      Words4 words = {};
      if (at < 2 * row_size) words = ld_global(reinterpret_cast<const Words4*>(row + at));
      st_shared(reinterpret_cast<Words4*>(shared + at), words);
    }
    row += 2 * static_cast<int64_t>(row_size);
    shared += pitch;
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
