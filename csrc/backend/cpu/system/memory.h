// Memory of the CPU device: aligned, in huge pages if it is large, and returned to the system when
// freed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace diffqkv::cpu {

// The memory of the machine, or the limit of this process's control group if that is less.
uint64_t total_memory();

// Aligned to 256 bytes. Zero bytes are allowed. Throws ERR_OUT_OF_MEMORY, also if the system would
// grant the memory but does not have it: Linux overcommits, and would kill the process at the first
// access.
void* allocate_memory(size_t bytes);
void free_memory(void* data, size_t bytes) noexcept;  // the size that was allocated

}  // namespace diffqkv::cpu
