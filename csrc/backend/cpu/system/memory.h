// Memory of the CPU device: aligned, in big pages where it is large, given back to the system when freed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace diffqkv::cpu {

uint64_t total_memory();  // of the machine, or of this process's control group where that is less

// Aligned to 256 bytes; zero bytes are allowed. Throws ERR_OUT_OF_MEMORY, also where the system would promise the
// memory but could not keep the promise: Linux overcommits, and would kill the process at the first touch instead.
void* allocate_memory(size_t bytes);
void free_memory(void* data, size_t bytes) noexcept;  // bytes as asked for

}  // namespace diffqkv::cpu
