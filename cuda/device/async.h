// cp.async: copies from global to shared memory that go on while the thread works. A thread waits for its own copies;
// that others see them takes a barrier after the wait.
#pragma once

#include <cstdint>

#include <device/base.h>

namespace diffqkv::cuda {

// 16 bytes, both sides aligned to 16. The first `valid_bytes` (0 to 16) are read, the rest of the 16 is filled with 0.
__device__ __forceinline__ void cp_async_cg(void* shared, const void* global, int valid_bytes = 16) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;"
               :
               : "r"(to), "l"(global), "r"(valid_bytes)
               : "memory");
}
// Closes a group of copies.
__device__ __forceinline__ void cp_async_commit_group() { asm volatile("cp.async.commit_group;" : : : "memory"); }
// Waits until at most kNewest of this thread's groups, the newest, are still under way.
template <int kNewest>
__device__ __forceinline__ void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kNewest) : "memory");
}

}  // namespace diffqkv::cuda
