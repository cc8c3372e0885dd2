// Bulk copies from global to shared memory, and the barriers in shared memory (mbarrier) on which they complete. One
// thread asks for a copy of any size, and the copy engine, not the thread, moves the bytes: its accesses are those of
// the async proxy. sm_90 and later.
#pragma once

#include <cstdint>

#include <device/base.h>

namespace diffqkv::cuda {

// Whether this code is compiled for a GPU that has them. If not, the functions below do nothing.
__device__ __forceinline__ constexpr bool has_bulk_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return true;
#else
  return false;
#endif
}

// Begins the first phase of a barrier, 8 bytes. A phase is complete when `arrivals` threads have arrived and as many
// bytes were copied as they expect. Before others use the barrier: fence_proxy_async(), then a barrier of the threads.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, int arrivals) {
  if constexpr (has_bulk_copies()) {
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(at), "r"(arrivals) : "memory");
  }
}
// Arrives, and has the phase expect `bytes` more.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint64_t* barrier, int bytes) {
  if constexpr (has_bulk_copies()) {
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" : : "r"(at), "r"(bytes) : "memory");
  }
}
// Whether the phase of this parity is complete: that of the first phase is 0, of the next 1, and so on by turns. Then
// what was copied in it is there for the thread. May wait for a while.
__device__ __forceinline__ bool mbarrier_try_wait_parity(uint64_t* barrier, int parity) {
  uint32_t complete = 1;
  if constexpr (has_bulk_copies()) {
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(complete)
        : "r"(at), "r"(parity)
        : "memory");
  }
  return complete != 0;
}
// Copies `bytes`, a multiple of 16, aligned to 16 on both sides, in the barrier's phase.
__device__ __forceinline__ void cp_async_bulk(void* shared, const void* global, int bytes, uint64_t* barrier) {
  if constexpr (has_bulk_copies()) {
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :
                 : "r"(to), "l"(global), "r"(bytes), "r"(at)
                 : "memory");
  }
}
// Orders this thread's earlier accesses to shared memory before later ones of the async proxy.
__device__ __forceinline__ void fence_proxy_async() {
  if constexpr (has_bulk_copies()) asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
}

}  // namespace diffqkv::cuda
