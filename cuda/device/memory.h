// Loads and stores. T is any type of 1, 2, 4, 8 or 16 bytes, aligned to its size.
#pragma once

#include "types.h"

namespace diffqkv::cuda {

// Global memory.
template <typename T>
__device__ __forceinline__ T ld_global(const T* p) {
  if constexpr (sizeof(T) == 16) {
    const uint4 words = *reinterpret_cast<const uint4*>(p);  // a value first: bit_cast from memory would load bytes
    return bit_cast<T>(words);
  } else if constexpr (sizeof(T) == 8) {
    const uint2 words = *reinterpret_cast<const uint2*>(p);
    return bit_cast<T>(words);
  } else if constexpr (sizeof(T) == 4) {
    const uint32_t word = *reinterpret_cast<const uint32_t*>(p);
    return bit_cast<T>(word);
  } else if constexpr (sizeof(T) == 2) {
    const uint16_t half = *reinterpret_cast<const uint16_t*>(p);
    return bit_cast<T>(half);
  } else {
    return *p;
  }
}
template <typename T>
__device__ __forceinline__ void st_global(T* p, const T& value) {
  if constexpr (sizeof(T) == 16) {
    *reinterpret_cast<uint4*>(p) = bit_cast<uint4>(value);
  } else if constexpr (sizeof(T) == 8) {
    *reinterpret_cast<uint2*>(p) = bit_cast<uint2>(value);
  } else if constexpr (sizeof(T) == 4) {
    *reinterpret_cast<uint32_t*>(p) = bit_cast<uint32_t>(value);
  } else if constexpr (sizeof(T) == 2) {
    *reinterpret_cast<uint16_t*>(p) = bit_cast<uint16_t>(value);
  } else {
    *p = value;
  }
}

// 16 bytes that are read once, from memory that nobody writes while the kernel runs: past the L1, in 256-byte requests.
__device__ __forceinline__ Words4 ld_global_nc(const void* p) {
  Words4 r;
  asm("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(r.w[0]), "=r"(r.w[1]), "=r"(r.w[2]), "=r"(r.w[3])
      : "l"(p));
  return r;
}

// Shared memory.
template <typename T>
__device__ __forceinline__ T ld_shared(const T* p) {
  return ld_global(p);
}
template <typename T>
__device__ __forceinline__ void st_shared(T* p, const T& value) {
  st_global(p, value);
}

}  // namespace diffqkv::cuda
