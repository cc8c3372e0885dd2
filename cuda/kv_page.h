// Where the rows of a paged K or V cache are; see KvPage in csrc/backend/ops.h. The layout inside a
// layer's part of a page is this device's own: only kv_append writes it.
//
// The rows of one head are adjacent: [head][token][dim], then the scales, bf16 [head][token]. If
// elements have 1 or 2 bytes and rows are multiples of 32 bytes, the rows of a head are cut into
// panels: [panel][token][width], 128 bytes wide, and at the end 64 and 32 if the row has those
// left. Chunks of 16 bytes are swizzled in a panel as shared memory needs them. So 16 or more
// tokens of a panel are one range of bytes that is copied as it is.
#pragma once

#include <device/memory.h>
#include "kernels.h"

namespace diffqkv::cuda {

// Tables are aligned to 16 bytes.
__device__ __forceinline__ KvPage load_page(const KvPage* page) {
  const Words4 words = ld_global(reinterpret_cast<const Words4*>(page));
  return bit_cast<KvPage>(words);
}

// The panel that has a byte of a row.
struct KvPanel {
  int start, width;  // bytes of the row
};
__host__ __device__ __forceinline__ constexpr KvPanel kv_panel(int row_bytes, int byte) {
  if (row_bytes % 128 == 0) return {byte & ~127, 128};
  const int wide = row_bytes & ~127, end_of_64 = wide + (row_bytes & 64);
  return byte < wide ? KvPanel{byte & ~127, 128} : byte < end_of_64 ? KvPanel{wide, 64} : KvPanel{end_of_64, 32};
}

// What the index of a chunk in a row of a panel is XORed with: neither 8 rows at one chunk nor 8
// neighboring chunks meet in a bank.
__host__ __device__ __forceinline__ constexpr int panel_swizzle(int width, int row) {
  return width == 128 ? row & 7 : width == 64 ? row >> 1 & 3 : row >> 2 & 1;
}

// Where a byte of a row is in `num_rows` rows that are cut into panels.
__host__ __device__ __forceinline__ constexpr int place_in_panels(int row_bytes, int num_rows, int row, int byte) {
  const KvPanel panel = kv_panel(row_bytes, byte);
  const int chunk = (byte - panel.start) >> 4;
  return panel.start * num_rows + row * panel.width + ((chunk ^ panel_swizzle(panel.width, row)) << 4) + (byte & 15);
}

// The rows of a head in a page.
struct KvHeadLayout {
  int row_bytes, page_tokens;
  bool has_panels;
  __host__ __device__ __forceinline__ constexpr KvHeadLayout(int64_t dims, int element_bytes, int64_t tokens)
      : row_bytes(static_cast<int>(dims) * element_bytes),
        page_tokens(static_cast<int>(tokens)),
        has_panels(element_bytes <= 2 && row_bytes % 32 == 0) {}
  __host__ __device__ __forceinline__ constexpr int bytes() const { return row_bytes * page_tokens; }
  // Where a byte of a token's row is. The bytes from there to the next multiple of 16 of the row
  // follow it.
  __host__ __device__ __forceinline__ constexpr int place(int token, int byte) const {
    return has_panels ? place_in_panels(row_bytes, page_tokens, token, byte) : token * row_bytes + byte;
  }
};

// One head of one layer in a page: its elements, as KvHeadLayout has them, and its scales, one per
// token, if the type has them.
struct KvHead {
  unsigned char* elements;
  bf16* scales;
};

// k_or_v: the page's start in its pool; offset: of the layer.
__host__ __device__ __forceinline__ KvHead head_in_page(void* k_or_v, int64_t offset, const KvHeadLayout& layout,
                                                        int64_t head, int64_t num_heads) {
  unsigned char* const layer = static_cast<unsigned char*>(k_or_v) + offset;
  return {layer + head * layout.bytes(),
          reinterpret_cast<bf16*>(layer + num_heads * layout.bytes()) + head * layout.page_tokens};
}

}  // namespace diffqkv::cuda
