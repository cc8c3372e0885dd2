// The limits that Linux control groups (containers) put on this process.
#pragma once

#include <cstdint>

namespace diffqkv::cpu {

constexpr uint64_t kNoLimit = UINT64_MAX;

struct MemoryLimit {
  uint64_t total = kNoLimit, available = kNoLimit;  // bytes
};

// The tightest of this process's control groups, version 2 or 1, from its own up to the root.
MemoryLimit control_group_memory();

// How many CPUs' time this process may use, at least 1; INT_MAX where nothing limits it.
int control_group_cpus();

}  // namespace diffqkv::cpu
