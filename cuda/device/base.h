// The device layer: what a kernel of this project is written in. Every function has two bodies, PTX for nvcc and C++ for
// the emulation (cuda/emulation), so that one .cu file is both. Kernels touch memory through it alone: the emulation
// checks and counts every access. What hardware leaves open, the emulation decides against the kernel.
//
// This file: the words that differ between the two compilers, vectors of words, where a thread stands, barriers.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define DIFFQKV_DEVICE_NS cuda
#define DIFFQKV_DEVICE __device__ __forceinline__
#define DIFFQKV_HOST_DEVICE __host__ __device__ __forceinline__
// A kernel of at most `threads` threads, `min_blocks` blocks of which are to fit one multiprocessor.
#define DIFFQKV_KERNEL(threads, min_blocks) __global__ void __launch_bounds__(threads, min_blocks)
#define DIFFQKV_UNROLL _Pragma("unroll")
#define DIFFQKV_ROLLED _Pragma("unroll 1")
#else
#include "emulation/engine.h"
#define DIFFQKV_EMULATION 1
#define DIFFQKV_DEVICE_NS emulated
#define DIFFQKV_DEVICE inline
#define DIFFQKV_HOST_DEVICE inline
#define DIFFQKV_KERNEL(threads, min_blocks) void
#define DIFFQKV_UNROLL
#define DIFFQKV_ROLLED
// Where a call stands, for messages and counters: the last parameter of every device function here.
#define DIFFQKV_SITE , ::diffqkv::emulated::Site site = {__builtin_FILE(), __builtin_LINE()}
#define DIFFQKV_ONLY_SITE ::diffqkv::emulated::Site site = {__builtin_FILE(), __builtin_LINE()}
#endif

namespace diffqkv::DIFFQKV_DEVICE_NS {

constexpr int kWarpSize = 32;

// Words that move together.
struct alignas(8) Words2 {
  uint32_t w[2];
};
struct alignas(16) Words4 {
  uint32_t w[4];
};

#if !defined(DIFFQKV_EMULATION)

DIFFQKV_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
DIFFQKV_DEVICE int lane_index() { return static_cast<int>(threadIdx.x & 31); }
DIFFQKV_DEVICE int num_threads() { return static_cast<int>(blockDim.x); }
DIFFQKV_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
DIFFQKV_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }

// All threads of the block. What was written before, to shared or global memory, is seen after.
DIFFQKV_DEVICE void sync_block() { __syncthreads(); }
// All 32 lanes of the warp, likewise.
DIFFQKV_DEVICE void sync_warp() { __syncwarp(); }
// `threads` threads of the block, whole warps, that name the same barrier, 1 to 15.
DIFFQKV_DEVICE void sync_named(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" : : "r"(barrier), "r"(threads) : "memory");
}

// The block's dynamic shared memory, of the size given at launch, aligned to 128 bytes. There is no other.
DIFFQKV_DEVICE unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char diffqkv_shared[];
  return diffqkv_shared;
}

#else

DIFFQKV_DEVICE int thread_index() { return self().thread; }
DIFFQKV_DEVICE int lane_index() { return self().thread & 31; }
DIFFQKV_DEVICE int num_threads() { return self().num_threads; }
DIFFQKV_DEVICE int block_x() { return self().block[0]; }
DIFFQKV_DEVICE int grid_x() { return self().grid[0]; }
DIFFQKV_DEVICE void sync_block(DIFFQKV_ONLY_SITE) { block_barrier(0, 0, site); }
DIFFQKV_DEVICE void sync_warp(DIFFQKV_ONLY_SITE) { warp_barrier(site); }
DIFFQKV_DEVICE void sync_named(int barrier, int threads DIFFQKV_SITE) { block_barrier(barrier, threads, site); }
DIFFQKV_DEVICE unsigned char* dynamic_shared() { return shared_base(); }

#endif

}  // namespace diffqkv::DIFFQKV_DEVICE_NS
