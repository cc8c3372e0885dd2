// cuda/device/base.h as C++, and CUDA's own words for kernels: qualifiers, indices, barriers, atomics, shuffles, intrinsics.
// What hardware leaves open, the engine decides against the kernel (engine/engine.h).
//
// Everything that is compiled as emulation has this folder's parent first on its include path and -Dcuda=emulated on its
// command line. The kernels' namespace diffqkv::cuda is then diffqkv::emulated, so that one program can link both copies.
#pragma once

#include <cmath>
#include <cstdint>

#include "engine/engine.h"

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)

// Where a call is, for messages and counters: the last parameter of every device function.
#define DIFFQKV_SITE ::diffqkv::emulated::Site site = {__builtin_FILE(), __builtin_LINE()}

namespace diffqkv::emulated {

// threadIdx and the like: `x` is looked up when it is read.
template <int (*kLookUp)()>
struct Coordinates {
  struct {
    operator unsigned() const { return static_cast<unsigned>(kLookUp()); }
  } x;
};
inline int thread_index() { return self().thread; }
inline int block_index() { return self().block[0]; }
inline int block_size() { return self().num_threads; }
inline int grid_size() { return self().grid[0]; }
inline constexpr Coordinates<thread_index> threadIdx{};
inline constexpr Coordinates<block_index> blockIdx{};
inline constexpr Coordinates<block_size> blockDim{};
inline constexpr Coordinates<grid_size> gridDim{};

inline unsigned char* dynamic_shared() { return shared_base(); }

inline void __syncthreads(DIFFQKV_SITE) { block_barrier(0, 0, site); }
inline void __syncwarp(DIFFQKV_SITE) { warp_barrier(site); }
inline void bar_sync(int barrier, int threads, DIFFQKV_SITE) { block_barrier(barrier, threads, site); }
inline void __threadfence() { fence(); }
inline void wait_for_previous_kernel() { wait_for_previous(); }
inline void start_next_kernel(DIFFQKV_SITE) { start_next(site); }

inline uint32_t atomicAdd(uint32_t* p, uint32_t value, DIFFQKV_SITE) {
  return atomic(p, {AtomicUpdate::Op::add, value}, site);
}
inline uint32_t atomicMax(uint32_t* p, uint32_t value, DIFFQKV_SITE) {
  return atomic(p, {AtomicUpdate::Op::maximum, value}, site);
}
inline uint32_t atomicCAS(uint32_t* p, uint32_t expected, uint32_t value, DIFFQKV_SITE) {
  return atomic(p, {AtomicUpdate::Op::compare_exchange, value, expected}, site);
}

// `from`: the lane whose value a lane gets, or less than 0 for its own. All lanes of the warp take part, so the mask that
// the shuffles and votes begin with is not looked at.
template <typename T, typename From>
inline T shuffle_from(const char* name, T value, const From& from, Site site) {
  struct Lane {
    T value, result;
    int from;
  } lane = {value, value, from(self().thread & 31)};
  warp_collective(
      name, &lane,
      [](void* const* lanes) {
        for (int i = 0; i < 32; ++i) {
          Lane& to = *static_cast<Lane*>(lanes[i]);
          if (to.from >= 0) to.result = static_cast<Lane*>(lanes[to.from])->value;
        }
      },
      site);
  return lane.result;
}
template <typename T>
inline T __shfl_sync(unsigned, T value, int lane, DIFFQKV_SITE) {
  return shuffle_from(
      "shuffle", value, [&](int) { return lane & 31; }, site);
}
template <typename T>
inline T __shfl_xor_sync(unsigned, T value, int mask, DIFFQKV_SITE) {
  return shuffle_from(
      "shuffle_xor", value, [&](int lane) { return (lane ^ mask) & 31; }, site);
}
template <typename T>
inline T __shfl_up_sync(unsigned, T value, int delta, DIFFQKV_SITE) {
  return shuffle_from(
      "shuffle_up", value, [&](int lane) { return lane - delta; }, site);
}
template <typename T>
inline T __shfl_down_sync(unsigned, T value, int delta, DIFFQKV_SITE) {
  return shuffle_from(
      "shuffle_down", value, [&](int lane) { return lane + delta < 32 ? lane + delta : -1; }, site);
}
inline uint32_t __ballot_sync(unsigned, bool condition, DIFFQKV_SITE) {
  struct Lane {
    bool condition;
    uint32_t result;
  } lane = {condition, 0};
  warp_collective(
      "ballot", &lane,
      [](void* const* lanes) {
        uint32_t bits = 0;
        for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(static_cast<Lane*>(lanes[i])->condition) << i;
        for (int i = 0; i < 32; ++i) static_cast<Lane*>(lanes[i])->result = bits;
      },
      site);
  return lane.result;
}

// Byte i of the result is the byte of y:x that nibble i of the selector names. CUDA looks at three bits of each nibble.
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t from = selector >> 4 * i & 7;
    r |= static_cast<uint32_t>(bytes >> 8 * from & 0xff) << 8 * i;
  }
  return r;
}

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __frsqrt_rn(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }

}  // namespace diffqkv::emulated
