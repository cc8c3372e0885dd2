// Who uses which slot of the Arena. The linear layers nest (augmented_q calls matmul calls gemv), so each has its own;
// attention calls nothing else and may use any.
#pragma once

#include <cstddef>

namespace diffqkv::cpu {

enum ArenaSlot : int {
  kSlotX = 0,     // x in float32
  kSlotWeight,    // a panel of a weight in float32
  kSlotOut,       // an output in float32, before it is rounded
  kSlotGate,      // augmented_q: silu(x gate^T) or x gate^T
  kSlotInner,     // augmented_q: the input of down
  kSlotGateSums,  // gated_gemv: x gate^T
  kSlotUpSums,    // gated_gemv: x up^T
  kSlotOneDnn,    // scratchpad of a oneDNN primitive
};

// Scratch memory of one backend, grown as needed and reused from call to call. Slots keep pieces apart within one call.
class Arena {
 public:
  static constexpr int kSlots = 8;
  ~Arena();
  void* get(int slot, size_t bytes);  // aligned to 64 bytes, contents undefined; throws ERR_OUT_OF_MEMORY

 private:
  void* data_[kSlots] = {};
  size_t bytes_[kSlots] = {};
};

}  // namespace diffqkv::cpu
