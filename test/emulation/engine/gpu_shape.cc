// Which GPU the emulated device describes itself as.
#include <cstdlib>
#include <cstring>

#include "backend/error.h"
#include "engine/runtime.h"

namespace diffqkv::emulated {
namespace {

constexpr size_t kKiB = 1024, kMiB = 1024 * kKiB;

// The first is the default: the least shared memory that a supported GPU has, and few multiprocessors, so that
// launches have few blocks.
constexpr GpuShape kShapes[] = {
    {"small", 16, 99 * kKiB, 2 * kMiB, 8, 6},
    {"h200", 132, 227 * kKiB, 60 * kMiB, 9, 0},
    {"rtx5090", 170, 99 * kKiB, 96 * kMiB, 12, 0},
};

const GpuShape& chosen_shape() {
  const char* const name = std::getenv("DIFFQKV_EMULATED_GPU");
  if (name == nullptr || *name == '\0') return kShapes[0];
  std::string names;
  for (const GpuShape& shape : kShapes) {
    if (std::strcmp(name, shape.name) == 0) return shape;
    names += (names.empty() ? "" : ", ") + std::string(shape.name);
  }
  fail(ErrorCode::device_unavailable, "DIFFQKV_EMULATED_GPU is '%s'; it must be one of %s", name, names.c_str());
}

}  // namespace

const GpuShape& gpu_shape() {
  static const GpuShape& shape = chosen_shape();
  return shape;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return answer(cudaErrorInvalidDevice);
  const GpuShape& shape = gpu_shape();
  *properties = {};
  const std::string name = "emulated GPU (" + std::string(shape.name) + ")";
  name.copy(properties->name, sizeof(properties->name) - 1);
  properties->totalGlobalMem = memory_limit();
  properties->sharedMemPerBlockOptin = shape.max_shared_bytes;
  properties->l2CacheSize = static_cast<int>(shape.l2_bytes);
  properties->major = shape.major;
  properties->minor = shape.minor;
  properties->multiProcessorCount = shape.num_multiprocessors;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return answer(cudaErrorInvalidDevice);
  const GpuShape& shape = gpu_shape();
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = shape.num_multiprocessors; return cudaSuccess;
    case cudaDevAttrL2CacheSize: *value = static_cast<int>(shape.l2_bytes); return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = shape.major; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = shape.minor; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(shape.max_shared_bytes); return cudaSuccess;
    case cudaDevAttrMemoryPoolsSupported: *value = 1; return cudaSuccess;
  }
  return answer(cudaErrorInvalidValue);
}

}  // namespace diffqkv::emulated
