// Who uses which slot of the Arena. The linear layers nest (augmented_q calls matmul calls gemv), so each has its own;
// attention calls nothing else and may use any.
#pragma once

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

}  // namespace diffqkv::cpu
