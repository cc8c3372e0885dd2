// The device layer, cuda/device: PTX as functions that are named after their instruction, and the accesses to memory. A
// kernel touches memory only through it and through CUDA's atomics. Include it as <device/...>: the tests have headers of
// the same names in C++, and put them first on the include path.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace diffqkv::cuda {

// `threads` threads of the block, in whole warps, that name the same barrier, 1 to 15.
__device__ __forceinline__ void bar_sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" : : "r"(barrier), "r"(threads) : "memory");
}

// A kernel that is launched so (LaunchShape::waits) begins while the kernel before it in the stream still runs. From
// here on that kernel has ended, and all that it and earlier ones have written is there. Each thread calls it, before it
// reads what a kernel may have written, and before it writes.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}
// Lets the blocks of the next kernel begin, if it is launched so, where they find room beside those of this one. It takes
// effect when all blocks have called it or ended. Called after wait_for_previous_kernel, so that only this kernel and the
// next run at once.
__device__ __forceinline__ void start_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" : : : "memory");
#endif
}

// The block's dynamic shared memory, of the size given at launch, aligned to 128 bytes. Kernels have no other.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char diffqkv_shared[];
  return diffqkv_shared;
}

}  // namespace diffqkv::cuda
