// How the host starts a kernel. A launch that fails is an exception that names the kernel.
#pragma once

#include <string>

#include "backend/error.h"
#include "device/base.h"
#if defined(DIFFQKV_EMULATION)
#include "emulation/cuda_runtime.h"
#endif

namespace diffqkv::DIFFQKV_DEVICE_NS {

struct LaunchShape {
  unsigned grid[3] = {1, 1, 1};
  unsigned threads = 32;
  size_t shared_bytes = 0;
};

// Throws what `status` says, if it is an error: cudaErrorMemoryAllocation as ERR_OUT_OF_MEMORY, else an error of the
// device, with `what` in front. Clears the runtime's last error.
void check_cuda(cudaError_t status, const char* what);

#if !defined(DIFFQKV_EMULATION)

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
            const Arguments&... arguments) {
  if (shape.shared_bytes > 48 * 1024) {
    check_cuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes)),
        name);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(shape.grid[0], shape.grid[1], shape.grid[2]);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  check_cuda(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), name);
}

#else

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
            const Arguments&... arguments) {
  check_cuda(enqueue_kernel(stream, name, {shape.grid[0], shape.grid[1], shape.grid[2]}, shape.threads,
                            shape.shared_bytes, [=] { kernel(Parameters(arguments)...); }),
             name);
}

#endif

}  // namespace diffqkv::DIFFQKV_DEVICE_NS
