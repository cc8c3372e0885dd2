// What is known of the GPUs of this machine, and what became of them. Shared by cuda_devices.cu and cuda_backend.cu.
#pragma once

#include <atomic>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "backend/backend.h"
#include "launch.h"

namespace diffqkv::cuda {

// The device with this ordinal; `info` is what it says of itself.
std::shared_ptr<Backend> open_gpu(int ordinal, const DeviceInfo& info);

// What all backends of one GPU in this process share: its context, in CUDA's words. A kernel that faults takes the
// context along, and with it all memory of all of them. The next device that is opened resets the GPU; what is left of
// those before must not touch it any more, for new memory may stand at the same addresses.
struct Gpu {
  std::shared_mutex mutex;              // shared by calls, exclusive for the reset
  std::atomic<uint64_t> generation{0};  // counts the resets
  std::atomic<bool> lost{false};
  std::mutex reason_mutex;
  std::string reason;  // of the loss
  std::mutex kernels_mutex;
  std::unordered_set<const void*> kernels_with_all_shared_memory;  // since the last reset
  std::unordered_map<const void*, bool> kernels_whose_code_waits;
};
Gpu& gpu(int ordinal);

// Resets the GPU for all of this process. Nothing else may use the GPU meanwhile.
cudaError_t reset_gpu(int ordinal);

// The GPU that this thread works on: cudaSetDevice, and where check_cuda leaves word of a loss.
void use_gpu(int ordinal);

}  // namespace diffqkv::cuda
