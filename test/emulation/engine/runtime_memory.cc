// Device memory is the host's, filled with what is NaN, and known to the engine while it may be accessed.
#include <cstdlib>
#include <cstring>

#include "engine/engine.h"
#include "engine/runtime.h"

namespace diffqkv::emulated {
namespace {

// The allocation that all of [p, p + bytes) lies in, or none. Under Device::mutex.
bool in_device_memory(const void* p, size_t bytes, bool count_host) {
  const char* at = static_cast<const char*>(p);
  auto next = device().memory.upper_bound(at);
  if (next == device().memory.begin()) return false;
  const auto& [start, allocation] = *std::prev(next);
  return (count_host || !allocation.host) && static_cast<size_t>(at - start) + bytes <= allocation.bytes;
}

cudaError_t reserve(void** data, size_t bytes, bool host) {
  Device& d = device();
  std::lock_guard lock(d.mutex);
  if (d.sticky != cudaSuccess) return d.sticky;
  if (data == nullptr) return cudaErrorInvalidValue;
  *data = nullptr;
  if (bytes == 0) return cudaSuccess;
  if (!host && (bytes > memory_limit() || d.used > memory_limit() - bytes)) return cudaErrorMemoryAllocation;
  // Exactly `bytes`, so that AddressSanitizer sees what goes past the end.
  if (posix_memalign(data, 256, bytes) != 0) {
    *data = nullptr;
    return cudaErrorMemoryAllocation;
  }
  d.memory[static_cast<const char*>(*data)] = {bytes, host};
  if (!host) d.used += bytes;
  return cudaSuccess;
}
void give_back(void* data) {
  Device& d = device();
  std::lock_guard lock(d.mutex);
  auto found = d.memory.find(static_cast<const char*>(data));
  if (found == d.memory.end()) return;
  if (!found->second.host) d.used -= found->second.bytes;
  d.memory.erase(found);
  std::free(data);
}
bool is_allocation(void* data) {
  std::lock_guard lock(device().mutex);
  return device().memory.count(static_cast<const char*>(data)) != 0;
}

void open_memory(void* data, size_t bytes) {
  std::memset(data, 0xff, bytes);
  add_memory(data, bytes);
}

bool copy_is_valid(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind) {
  std::lock_guard lock(device().mutex);
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  return (!to_device || in_device_memory(dst, bytes, false)) && (!from_device || in_device_memory(src, bytes, false));
}

}  // namespace

cudaError_t cudaMalloc(void** data, size_t bytes) {
  if (const cudaError_t status = forbid_in_capture(nullptr)) return status;
  const cudaError_t status = reserve(data, bytes, false);
  if (status == cudaSuccess && *data != nullptr) open_memory(*data, bytes);
  return answer(status);
}
cudaError_t cudaFree(void* data) {
  if (const cudaError_t status = forbid_in_capture(nullptr)) return status;
  const cudaError_t status = finish_all(true);
  if (status != cudaSuccess || data == nullptr) return status;
  if (!is_allocation(data)) return answer(cudaErrorInvalidValue);
  remove_memory(data);
  give_back(data);
  return cudaSuccess;
}
cudaError_t cudaMallocAsync(void** data, size_t bytes, cudaStream_t stream) {
  if (const cudaError_t status = forbid_in_capture(of(stream))) return status;
  if (const cudaError_t fault = injected("cudaMallocAsync")) return answer(fault);
  cudaError_t status = reserve(data, bytes, false);
  if (status == cudaErrorMemoryAllocation) {
    finish(of(stream));  // what it frees is there then
    status = reserve(data, bytes, false);
  }
  if (status != cudaSuccess || *data == nullptr) return answer(status);
  // Not before the stream comes to it: work that another stream does earlier is a fault.
  return enqueue(stream, [memory = *data, bytes] { open_memory(memory, bytes); });
}
cudaError_t cudaFreeAsync(void* data, cudaStream_t stream) {
  if (const cudaError_t status = forbid_in_capture(of(stream))) return status;
  if (const cudaError_t fault = injected("cudaFreeAsync")) return answer(fault);
  if (data == nullptr) return cudaSuccess;
  if (!is_allocation(data)) return answer(cudaErrorInvalidValue);
  return enqueue(stream, [data] {
    remove_memory(data);
    give_back(data);
  });
}
cudaError_t cudaMallocHost(void** data, size_t bytes) { return cudaHostAlloc(data, bytes, cudaHostAllocDefault); }
cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned flags) {
  if (const cudaError_t status = forbid_in_capture(nullptr)) return status;
  if (const cudaError_t fault = injected("cudaHostAlloc")) return answer(fault);
  const cudaError_t status = reserve(data, bytes, true);
  if (status == cudaSuccess && *data != nullptr) {
    std::memset(*data, 0xff, bytes);
    if (flags & cudaHostAllocMapped) add_memory(*data, bytes);
  }
  return answer(status);
}
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return answer(is_allocation(host) ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaFreeHost(void* data) {
  if (const cudaError_t status = forbid_in_capture(nullptr)) return status;
  if (data == nullptr) return cudaSuccess;
  finish_all(true);
  if (!is_allocation(data)) return answer(cudaErrorInvalidValue);
  remove_memory(data);
  give_back(data);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  *pool = &device().pool;
  return answer(sticky());
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return answer(sticky()); }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return answer(sticky()); }

cudaError_t cudaMemcpyAsync(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (kind != cudaMemcpyDeviceToDevice) {
    if (const cudaError_t status = forbid_in_capture(of(stream))) return status;
  }
  if (const cudaError_t fault = injected("cudaMemcpyAsync")) return answer(fault);
  if (bytes == 0) return cudaSuccess;
  if (!copy_is_valid(dst, src, bytes, kind)) return answer(cudaErrorInvalidValue);
  return enqueue(stream, [=] { std::memmove(dst, src, bytes); });
}
cudaError_t cudaMemcpy(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind) {
  if (!copy_is_valid(dst, src, bytes, kind)) return answer(cudaErrorInvalidValue);
  const cudaError_t status = finish_all(false);
  if (status == cudaSuccess && bytes > 0) std::memmove(dst, src, bytes);
  return status;
}
cudaError_t cudaMemsetAsync(void* dst, int value, size_t bytes, cudaStream_t stream) {
  if (const cudaError_t fault = injected("cudaMemsetAsync")) return answer(fault);
  if (bytes == 0) return cudaSuccess;
  if (!copy_is_valid(dst, nullptr, bytes, cudaMemcpyHostToDevice)) return answer(cudaErrorInvalidValue);
  return enqueue(stream, [=] { std::memset(dst, value, bytes); });
}
cudaError_t cudaMemset(void* dst, int value, size_t bytes) { return cudaMemsetAsync(dst, value, bytes, nullptr); }

}  // namespace diffqkv::emulated
