// What the device `emulated` counts of the kernels that it runs; no other device counts anything.
#pragma once

#include <cstdint>
#include <memory>

namespace diffqkv {

struct DeviceCounters {
  uint64_t bytes_read = 0, bytes_written = 0;  // global memory; what several lanes of one access share, once
  uint64_t sectors = 0;                        // of 32 bytes, read and written
  uint64_t bank_conflicts = 0, mma_ops = 0;    // mma_ops: m16n8k16, each of a warp
};

// Kernels are counted, and run slower, as long as what this gives lives. These are from any thread, and wait for what runs.
std::shared_ptr<void> count_emulated();
// Of the kernels that have run since the reset, in this process.
DeviceCounters emulated_counters();
void reset_emulated_counters();

}  // namespace diffqkv
