// Loads, stores and atomics. T is any type of 1, 2, 4, 8 or 16 bytes, aligned to its size.
#pragma once

#include "device/numbers.h"

namespace diffqkv::DIFFQKV_DEVICE_NS {

#if !defined(DIFFQKV_EMULATION)

// Global memory.
template <typename T>
DIFFQKV_DEVICE T load(const T* p) {
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
DIFFQKV_DEVICE void store(T* p, const T& value) {
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
DIFFQKV_DEVICE Words4 load_streaming(const void* p) {
  Words4 r;
  asm("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(r.w[0]), "=r"(r.w[1]), "=r"(r.w[2]), "=r"(r.w[3])
      : "l"(p));
  return r;
}

// Shared memory.
template <typename T>
DIFFQKV_DEVICE T load_shared(const T* p) {
  return load(p);
}
template <typename T>
DIFFQKV_DEVICE void store_shared(T* p, const T& value) {
  store(p, value);
}

// How blocks hand on what they stored: this fence and then an atomic by one thread, an atomic on the same address and then
// this fence by a thread of another block. Each fence is for its own thread alone. Barriers extend the chain to the other
// threads of both blocks: one before the first fence, one after the second.
DIFFQKV_DEVICE void fence_device() { __threadfence(); }

// Atomics on global memory; they return what was there before.
DIFFQKV_DEVICE uint32_t atomic_add(uint32_t* p, uint32_t value) { return atomicAdd(p, value); }
// Becomes `value` if it was `expected`.
DIFFQKV_DEVICE uint32_t atomic_compare_exchange(uint32_t* p, uint32_t expected, uint32_t value) {
  return atomicCAS(p, expected, value);
}
// And on shared memory.
DIFFQKV_DEVICE uint32_t atomic_add_shared(uint32_t* p, uint32_t value) { return atomicAdd(p, value); }
DIFFQKV_DEVICE uint32_t atomic_max_shared(uint32_t* p, uint32_t value) { return atomicMax(p, value); }

#else

template <typename T>
DIFFQKV_DEVICE T load(const T* p DIFFQKV_SITE) {
  check_access(p, sizeof(T), Access::global_load, site);
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}
template <typename T>
DIFFQKV_DEVICE void store(T* p, const T& value DIFFQKV_SITE) {
  check_access(p, sizeof(T), Access::global_store, site);
  std::memcpy(p, &value, sizeof(T));
}
DIFFQKV_DEVICE Words4 load_streaming(const void* p DIFFQKV_SITE) {
  check_streaming_load(p, site);
  Words4 value;
  std::memcpy(&value, p, 16);
  return value;
}
template <typename T>
DIFFQKV_DEVICE T load_shared(const T* p DIFFQKV_SITE) {
  check_access(p, sizeof(T), Access::shared_load, site);
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}
template <typename T>
DIFFQKV_DEVICE void store_shared(T* p, const T& value DIFFQKV_SITE) {
  check_access(p, sizeof(T), Access::shared_store, site);
  std::memcpy(p, &value, sizeof(T));
}
DIFFQKV_DEVICE void fence_device() { fence(); }
DIFFQKV_DEVICE uint32_t atomic_add(uint32_t* p, uint32_t value DIFFQKV_SITE) {
  return global_atomic(p, {AtomicUpdate::Op::add, value}, site);
}
DIFFQKV_DEVICE uint32_t atomic_compare_exchange(uint32_t* p, uint32_t expected, uint32_t value DIFFQKV_SITE) {
  return global_atomic(p, {AtomicUpdate::Op::compare_exchange, value, expected}, site);
}
DIFFQKV_DEVICE uint32_t atomic_add_shared(uint32_t* p, uint32_t value DIFFQKV_SITE) {
  return shared_atomic(p, {AtomicUpdate::Op::add, value}, site);
}
DIFFQKV_DEVICE uint32_t atomic_max_shared(uint32_t* p, uint32_t value DIFFQKV_SITE) {
  return shared_atomic(p, {AtomicUpdate::Op::maximum, value}, site);
}

#endif

// One element as f32.
template <typename T>
DIFFQKV_DEVICE float load_float(const T* p) {
  return to_float(load(p));
}

}  // namespace diffqkv::DIFFQKV_DEVICE_NS
