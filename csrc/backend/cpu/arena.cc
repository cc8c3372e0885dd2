#include "backend/cpu/arena.h"

#include "backend/cpu/system/memory.h"

namespace diffqkv::cpu {

Arena::~Arena() {
  for (int slot = 0; slot < kNumSlots; ++slot) free_memory(data_[slot], bytes_[slot]);
}

void* Arena::get(ArenaSlot slot, size_t bytes) {
  if (bytes > bytes_[slot] || !data_[slot]) {
    // Free first: the contents need not survive, and memory may not suffice for both.
    free_memory(data_[slot], bytes_[slot]);
    data_[slot] = nullptr;
    bytes_[slot] = 0;
    data_[slot] = allocate_memory(bytes);
    bytes_[slot] = bytes;
  }
  return data_[slot];
}

}  // namespace diffqkv::cpu
