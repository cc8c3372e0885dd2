// cuda/device/launch.h for the emulated runtime, whose messages and counters name the kernel.
#pragma once

#include <cuda_runtime.h>

#include <utility>

namespace diffqkv::emulated {

template <typename... Parameters, typename... Arguments>
cudaError_t launch_kernel(const char* name, cudaLaunchConfig_t config, void (*kernel)(Parameters...),
                          Arguments&&... arguments) {
  config.kernel_name = name;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace diffqkv::emulated
