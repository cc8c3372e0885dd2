// The launch of a kernel, by the CUDA runtime.
#pragma once

#include <cuda_runtime.h>

namespace diffqkv::cuda {

// The runtime has no use for the kernel's name.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_kernel(const char*, const cudaLaunchConfig_t& config, void (*kernel)(Parameters...),
                          Arguments&&... arguments) {
  return cudaLaunchKernelEx(&config, kernel, static_cast<Arguments&&>(arguments)...);
}

}  // namespace diffqkv::cuda
