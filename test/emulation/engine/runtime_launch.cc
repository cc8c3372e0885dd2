// Launches of kernels, and the attribute that limits their shared memory.
#include "engine/engine.h"
#include "engine/runtime.h"

namespace diffqkv::emulated {
namespace {

constexpr size_t kSharedBytesWithoutAttribute = 48 * 1024;

uint64_t failing_launch() {
  static const uint64_t launch = from_environment("DIFFQKV_EMULATED_FAIL_LAUNCH", 0);
  return launch;
}

// How much dynamic shared memory a launch of the kernel may have.
size_t max_dynamic_shared(const void* function) {
  std::lock_guard lock(device().mutex);
  const auto found = device().max_dynamic_shared.find(function);
  return found != device().max_dynamic_shared.end() ? found->second : kSharedBytesWithoutAttribute;
}

std::string run_kernel(const KernelLaunch& launch) {
  if (executor()) return executor()(launch);
  const auto& [x, y, z] = launch.grid;
  return run_grid({launch.name, {x, y, z}, launch.threads, launch.shared_bytes, launch.dependent}, launch.body);
}

}  // namespace

// Code for Hopper, on whatever GPU: there dependent launches begin early.
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->binaryVersion = attributes->ptxVersion = 90;
  return answer(sticky());
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (const cudaError_t fault = injected("cudaFuncSetAttribute")) return answer(fault);
  Device& d = device();
  std::lock_guard lock(d.mutex);
  if (d.sticky != cudaSuccess) return answer(d.sticky);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      static_cast<size_t>(value) > gpu_shape().max_shared_bytes)
    return answer(cudaErrorInvalidValue);
  d.max_dynamic_shared[function] = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t enqueue_kernel(cudaStream_t stream, KernelLaunch launch) {
  const auto& [x, y, z] = launch.grid;
  if (launch.threads < 1 || launch.threads > 1024 || launch.threads % 32 != 0 || x < 1 || x > 0x7fffffffu || y < 1 ||
      y > 65535 || z < 1 || z > 65535)
    return answer(cudaErrorInvalidConfiguration);
  if (device().before_launch) device().before_launch();
  if (launch.shared_bytes > max_dynamic_shared(launch.function)) return answer(cudaErrorInvalidValue);
  if (const cudaError_t fault = injected("cudaLaunchKernelEx")) return answer(fault);
  return enqueue(stream, [launch = std::move(launch)] {
    if (sticky() != cudaSuccess || injected("kernel") != cudaSuccess) return;
    uint64_t number;
    {
      std::lock_guard lock(device().mutex);
      number = ++device().launches;
    }
    if (number == failing_launch()) {
      set_sticky(std::string(launch.name) + ": launch " + std::to_string(number) +
                 " fails, as DIFFQKV_EMULATED_FAIL_LAUNCH has it");
      return;
    }
    const std::string problem = run_kernel(launch);
    if (!problem.empty()) set_sticky(problem);
  });
}

}  // namespace diffqkv::emulated
