// The GPUs of this machine, through the statically linked CUDA runtime: the module loads with and without a driver, and
// says which it found. And how the runtime's errors become this project's.
#include "cuda_devices.h"

#include <algorithm>

namespace diffqkv::cuda {
namespace {

constexpr int kRequiredVersion = CUDART_VERSION / 1000 * 1000;  // a driver serves every minor version of its CUDA
constexpr int kRequiredCapability = 80;                         // bf16 on tensor cores, cp.async

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// The first driver branch of a CUDA major version, which is what `nvidia-smi` shows and users install.
const char* required_driver() { return kRequiredVersion >= 13000 ? "R580" : "R525"; }

constexpr const char* kKind = "cuda";

DeviceInfo no_device(std::string reason, int driver) {
  DeviceInfo info;
  info.id = info.kind = kKind;
  info.name = "CUDA";
  info.usable = false;
  info.reason = std::move(reason);
  if (driver != 0 && driver < kRequiredVersion) info.details = {{"driver", "CUDA " + version_text(driver)}};
  return info;
}

// Empty where GPUs can be asked for. cudaGetDeviceCount says cudaErrorInsufficientDriver both when there is no driver and
// when it is too old; the driver's version tells them apart.
std::string driver_problem(int driver, int* count) {
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

DeviceInfo gpu_info(int ordinal, int driver) {
  DeviceInfo info;
  info.id = kKind + (":" + std::to_string(ordinal));
  info.kind = kKind;
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
  info.details = {{"driver", "CUDA " + version_text(driver)},
                  {"runtime", "CUDA " + version_text(CUDART_VERSION)},
                  {"multiprocessors", std::to_string(properties.multiProcessorCount)}};
  if (properties.major * 10 + properties.minor < kRequiredCapability) {
    info.reason = "too old: its compute capability is " + info.compute_capability +
                  ", and 8.0 (Ampere, 2020) or newer is needed; use 'cpu'";
    return info;
  }
  info.usable = true;
  return info;
}

// Errors after which the GPU's context answers every call with the same error. CUDA promises nothing but a new process
// then; a reset often does not help.
bool takes_context_along(cudaError_t status) {
  switch (static_cast<int>(status)) {
    case 214:  // cudaErrorECCUncorrectable
    case 220:  // cudaErrorNvlinkUncorrectable
    case 700:  // cudaErrorIllegalAddress
    case 702:  // cudaErrorLaunchTimeout
    case 709:  // cudaErrorContextIsDestroyed
    case 710:  // cudaErrorAssert
    case 714:  // cudaErrorHardwareStackError
    case 715:  // cudaErrorIllegalInstruction
    case 716:  // cudaErrorMisalignedAddress
    case 717:  // cudaErrorInvalidAddressSpace
    case 718:  // cudaErrorInvalidPc
    case 719:  // cudaErrorLaunchFailure
    case 721:  // cudaErrorContained
    case 999:  // cudaErrorUnknown
      return true;
  }
  return false;
}

bool has_no_code_for_gpu(cudaError_t status) {
  switch (static_cast<int>(status)) {
    case 98:   // cudaErrorInvalidDeviceFunction
    case 209:  // cudaErrorNoKernelImageForDevice
    case 222:  // cudaErrorUnsupportedPtxVersion
      return true;
  }
  return false;
}

thread_local int current_ordinal = 0;

}  // namespace

std::vector<DeviceInfo> device_infos() {
  int count = 0, driver = 0;
  cudaDriverGetVersion(&driver);
  const std::string problem = driver_problem(driver, &count);
  if (!problem.empty()) return {no_device(problem, driver)};
  std::vector<DeviceInfo> infos;
  for (int ordinal = 0; ordinal < count; ++ordinal) infos.push_back(gpu_info(ordinal, driver));
  return infos;
}

Gpu& gpu(int ordinal) {
  constexpr int kMaxGpus = 64;
  static Gpu* const gpus = new Gpu[kMaxGpus];  // never destroyed: threads may outlive the end of main
  return gpus[std::clamp(ordinal, 0, kMaxGpus - 1)];
}

void use_gpu(int ordinal) {
  current_ordinal = ordinal;
  check_cuda(cudaSetDevice(ordinal), "cudaSetDevice");
}

cudaError_t reset_gpu(int ordinal) {
  Gpu& state = gpu(ordinal);
  cudaSetDevice(ordinal);
  const cudaError_t status = cudaDeviceReset();
  ++state.generation;
  std::lock_guard lock(state.kernels_mutex);
  state.kernels_with_all_shared_memory.clear();
  return status;
}

void allow_all_shared_memory(const void* kernel, const char* name) {
  Gpu& state = gpu(current_ordinal);
  std::lock_guard lock(state.kernels_mutex);
  if (state.kernels_with_all_shared_memory.count(kernel) != 0) return;
  int bytes = 0;
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, current_ordinal), name);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), name);
  state.kernels_with_all_shared_memory.insert(kernel);
}

bool code_waits(const void* kernel, const char* name) {
  constexpr int kHopper = 90;
  Gpu& state = gpu(current_ordinal);
  std::lock_guard lock(state.kernels_mutex);
  const auto [known, is_new] = state.kernels_whose_code_waits.try_emplace(kernel, false);
  if (is_new) {
    cudaFuncAttributes attributes = {};
    const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
    if (status != cudaSuccess) state.kernels_whose_code_waits.erase(known);
    check_cuda(status, name);
    known->second = attributes.binaryVersion >= kHopper && attributes.ptxVersion >= kHopper;
  }
  return known->second;
}

void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  const std::string text = cudaGetErrorString(status);
  cudaGetLastError();  // takes it away
  if (status == cudaErrorMemoryAllocation) fail(ErrorCode::out_of_memory, "%s: out of memory on the GPU", what);
  if (has_no_code_for_gpu(status)) {
    fail(ErrorCode::device_unavailable,
         "%s: this module was compiled for other GPUs (%s); compile it on this machine: npx diffqkv build", what,
         text.c_str());
  }
  if (!takes_context_along(status)) fail(ErrorCode::device_unavailable, "%s failed: %s", what, text.c_str());
  Gpu& state = gpu(current_ordinal);
  {
    std::lock_guard lock(state.reason_mutex);
    if (!state.lost) state.reason = text;
    state.lost = true;
  }
  fail(ErrorCode::device_unavailable,
       "the GPU failed (%s): %s; the device is lost, with all that was on it: start the process again", what,
       text.c_str());
}

}  // namespace diffqkv::cuda
