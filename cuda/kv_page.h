// Where the rows of a paged K or V cache lie; see KvPage in csrc/backend/ops.h.
#pragma once

#include <device/memory.h>
#include "kernels.h"

namespace diffqkv::cuda {

// Tables are aligned to 16 bytes.
__device__ __forceinline__ KvPage load_page(const KvPage* page) {
  const Words4 words = ld_global(reinterpret_cast<const Words4*>(page));
  return bit_cast<KvPage>(words);
}

// One token's rows of one layer, of all heads: their first element's byte, and their scales, of which there are none where
// the type has none.
struct KvRows {
  unsigned char* elements;
  bf16* scales;
};

// k_or_v: the page's start in its pool; offset: of the layer; token: in the page.
__device__ __forceinline__ KvRows rows_in_page(void* k_or_v, int64_t offset, int token, int page_tokens, int num_heads,
                                               int64_t row_bytes) {
  unsigned char* const layer = static_cast<unsigned char*>(k_or_v) + offset;
  return {layer + token * (num_heads * row_bytes),
          reinterpret_cast<bf16*>(layer + page_tokens * (num_heads * row_bytes)) + token * num_heads};
}

}  // namespace diffqkv::cuda
