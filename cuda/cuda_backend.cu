// The CUDA devices of this machine, through the statically linked CUDA runtime: the module loads with and without a
// driver, and says which it found.
#include <cuda_runtime_api.h>

#include <cstdio>

#include "backend/backend.h"

namespace diffqkv {
namespace {

constexpr int kRequiredVersion = CUDART_VERSION / 1000 * 1000;  // a driver serves every minor version of its CUDA

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// The first driver branch of a CUDA major version, which is what `nvidia-smi` shows and users install.
const char* required_driver() { return kRequiredVersion >= 13000 ? "R580" : "R525"; }

DeviceInfo no_device(std::string reason) {
  DeviceInfo info;
  info.id = info.kind = "cuda";
  info.name = "CUDA";
  info.usable = false;
  info.reason = std::move(reason);
  return info;
}

// Empty where GPUs can be asked for. cudaGetDeviceCount says cudaErrorInsufficientDriver both when there is no driver and
// when it is too old; the driver's version tells them apart.
std::string driver_problem(int* count) {
  int driver = 0;
  cudaDriverGetVersion(&driver);
  if (driver == 0) return "no NVIDIA driver on this machine (libcuda is not there or does not load)";
  if (driver < kRequiredVersion) {
    return "NVIDIA driver too old: found one for CUDA " + version_text(driver) + ", needs one for CUDA " +
           version_text(kRequiredVersion) + " (" + required_driver() + " or newer); update the driver";
  }
  cudaError_t status = cudaGetDeviceCount(count);
  if (status == cudaErrorNoDevice || (status == cudaSuccess && *count == 0)) {
    return "the NVIDIA driver (CUDA " + version_text(driver) +
           ") shows no GPU to this process; see CUDA_VISIBLE_DEVICES";
  }
  if (status != cudaSuccess) return std::string("the NVIDIA driver answers: ") + cudaGetErrorString(status);
  return "";
}

DeviceInfo gpu_info(int ordinal) {
  DeviceInfo info;
  info.id = "cuda:" + std::to_string(ordinal);
  info.kind = "cuda";
  info.name = "GPU " + std::to_string(ordinal);
  info.usable = false;
  cudaDeviceProp properties;
  cudaError_t status = cudaGetDeviceProperties(&properties, ordinal);
  if (status != cudaSuccess) {
    info.reason = std::string("its properties cannot be read: ") + cudaGetErrorString(status);
    return info;
  }
  info.name = properties.name;
  info.total_memory = properties.totalGlobalMem;
  info.compute_capability = std::to_string(properties.major) + "." + std::to_string(properties.minor);
  int driver = 0;
  cudaDriverGetVersion(&driver);
  info.details = {{"driver", "CUDA " + version_text(driver)}, {"runtime", "CUDA " + version_text(CUDART_VERSION)}};
  info.reason = "this build has no CUDA kernels yet: use 'cpu'";
  return info;
}

}  // namespace

std::vector<DeviceInfo> cuda_device_infos() {
  int count = 0;
  std::string problem = driver_problem(&count);
  if (!problem.empty()) return {no_device(problem)};
  std::vector<DeviceInfo> infos;
  for (int ordinal = 0; ordinal < count; ++ordinal) infos.push_back(gpu_info(ordinal));
  return infos;
}

std::shared_ptr<Backend> make_cuda_backend(int ordinal) {
  std::vector<DeviceInfo> infos = cuda_device_infos();
  if (infos[0].id == "cuda") fail(ErrorCode::device_unavailable, "cuda:%d: %s", ordinal, infos[0].reason.c_str());
  if (ordinal < 0 || ordinal >= static_cast<int>(infos.size())) {
    fail(ErrorCode::device_unavailable, "there is no cuda:%d: this machine has %zu GPUs, cuda:0 to cuda:%zu", ordinal,
         infos.size(), infos.size() - 1);
  }
  fail(ErrorCode::device_unavailable, "cuda:%d (%s): %s", ordinal, infos[ordinal].name.c_str(),
       infos[ordinal].reason.c_str());
}

}  // namespace diffqkv
