// Types and functions that need no instruction of their own: the element types, words that move together, lanes.
#pragma once

#include <cstdint>
#include <cstring>

#include <device/base.h>

namespace diffqkv::cuda {

constexpr int kWarpSize = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarpSize; }
__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x & 31); }

// Words that move together.
struct alignas(8) Words2 {
  uint32_t w[2];
};
struct alignas(16) Words4 {
  uint32_t w[4];
};

// 8 elements of a 16-bit type with the other sign.
__device__ __forceinline__ Words4 negated(Words4 words) {
#pragma unroll
  for (int i = 0; i < 4; ++i) words.w[i] ^= 0x80008000u;
  return words;
}

// Storage of one element. Kernels compute in f32.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
struct f8e4m3 {
  uint8_t bits;
};
struct i8 {
  int8_t value;
};

template <typename To, typename From>
__host__ __device__ __forceinline__ To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

__host__ __device__ __forceinline__ float infinity() { return bit_cast<float>(0x7f800000u); }

}  // namespace diffqkv::cuda
