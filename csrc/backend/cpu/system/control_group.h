// The limits of Linux control groups (containers) on this process.
#pragma once

#include <cstdint>
#include <string>

namespace diffqkv::cpu {

constexpr uint64_t kNoLimit = UINT64_MAX;

struct MemoryLimit {
  uint64_t total = kNoLimit;      // bytes
  uint64_t available = kNoLimit;  // bytes
};

// The lowest limit among the control groups (version 2 or 1) of this process, from its own group to
// the root. `root` is the folder of /proc and /sys; tests have another.
MemoryLimit control_group_memory(const std::string& root = "");

// The number of CPUs whose time this process may use, at least 1. INT_MAX without a limit.
int control_group_cpus(const std::string& root = "");

}  // namespace diffqkv::cpu
