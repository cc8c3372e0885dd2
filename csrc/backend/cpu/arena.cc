#include "backend/cpu/arena.h"

#include "backend/cpu/system/memory.h"

namespace diffqkv::cpu {

Arena::~Arena() {
  for (int slot = 0; slot < kSlots; ++slot) free_memory(data_[slot], bytes_[slot]);
}

void* Arena::get(int slot, size_t bytes) {
  if (bytes > bytes_[slot] || !data_[slot]) {
    // Freed first: contents need not survive, and both at once might not fit.
    free_memory(data_[slot], bytes_[slot]);
    data_[slot] = nullptr;
    bytes_[slot] = 0;
    data_[slot] = allocate_memory(bytes);
    bytes_[slot] = bytes;
  }
  return data_[slot];
}

}  // namespace diffqkv::cpu
