// How the host starts a kernel. A launch that fails is an exception that names the kernel.
#pragma once

#include <device/launch.h>

#include "backend/error.h"

namespace diffqkv::cuda {

struct LaunchShape {
  unsigned grid[3] = {1, 1, 1};
  unsigned threads = 32;
  size_t shared_bytes = 0;
  // All threads of the kernel call wait_for_previous_kernel: it may begin before the kernel before it has ended, where
  // the GPU can do that (programmatic dependent launch).
  bool waits = false;
};

// Whether the kernel's code for the calling thread's GPU waits: code for GPUs before Hopper, which newer GPUs can run too,
// does not.
bool code_waits(const void* kernel, const char* name);

// Throws what `status` says, if it is an error: cudaErrorMemoryAllocation as ERR_OUT_OF_MEMORY, else an error of the
// device, with `what` in front. Clears the runtime's last error.
void check_cuda(cudaError_t status, const char* what);

// Dynamic shared memory that any kernel may have.
constexpr size_t kSharedBytesWithoutAttribute = 48 * 1024;

// Allows the kernel all shared memory that the calling thread's GPU has for a block. Only the first call for a kernel
// and GPU reaches the driver. The limit is the kernel's, whoever launches it: a limit for one launch could be too low
// for another thread's launch of the same kernel.
void allow_all_shared_memory(const void* kernel, const char* name);

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
            const Arguments&... arguments) {
  if (shape.shared_bytes > kSharedBytesWithoutAttribute)
    allow_all_shared_memory(reinterpret_cast<const void*>(kernel), name);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3{shape.grid[0], shape.grid[1], shape.grid[2]};
  config.blockDim = dim3{shape.threads};
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute dependent = {};
  dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  dependent.val.programmaticStreamSerializationAllowed = 1;
  if (shape.waits && code_waits(reinterpret_cast<const void*>(kernel), name)) {
    config.attrs = &dependent;
    config.numAttrs = 1;
  }
  check_cuda(launch_kernel(name, config, kernel, Parameters(arguments)...), name);
}

}  // namespace diffqkv::cuda
