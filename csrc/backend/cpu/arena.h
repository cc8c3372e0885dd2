// Scratch memory of the CPU device.
#pragma once

#include <cstddef>

namespace diffqkv::cpu {

// Which part of an operator uses which slot. The linear layers nest (gated_mlp calls matmul calls
// gemv), so each part has its own slot. Attention calls no linear layer and shares two of their
// slots.
enum ArenaSlot : int {
  kSlotX = 0,     // x in f32 or bf16, or in integers
  kSlotWeight,    // panels of a weight in f32 or bf16, and rows of a quantized one
  kSlotOut,       // an output in f32, before it is rounded
  kSlotGate,      // gated_mlp: x gate^T or its activation
  kSlotInner,     // gated_mlp: the input of down
  kSlotGateSums,  // gated_gemv: x gate^T
  kSlotUpSums,    // gated_gemv: x up^T
  kSlotNormed,    // the normalized rows of x
  kSlotOneDnn,    // scratchpad of a oneDNN primitive
  kNumSlots,
  kSlotAttention = kSlotX,      // scratch memory of the threads
  kSlotPartials = kSlotWeight,  // results of splits before they are merged
};

// Scratch memory of one backend. A slot grows as needed and keeps its memory for later calls.
class Arena {
 public:
  ~Arena();
  // Aligned to 64 bytes; contents are undefined. Throws ERR_OUT_OF_MEMORY.
  void* get(ArenaSlot slot, size_t bytes);

 private:
  void* data_[kNumSlots] = {};
  size_t bytes_[kNumSlots] = {};
};

}  // namespace diffqkv::cpu
