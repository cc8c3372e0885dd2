// The pages of a KV cache as one range of bytes, to save them and to restore them on a device with
// the same page layout. For each page that is not forgotten: K of all layers, then V of all layers,
// unless V is K. Executor thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/kv_cache.h"
#include "model/model.h"

namespace diffqkv {

// Names the order of the elements in a page (KvPage in ops.h). "rows": the CPU's. "panels": that of
// cuda/kv_page.h.
const char* page_layout_name(const Backend& backend);

// Bytes of one page in an image.
uint64_t image_page_bytes(const Config& config, KvTypes types);

class KvImage {
 public:
  // `cache` belongs to `model`, has kv_len rows, and stays unchanged as long as this object.
  KvImage(Model& model, const KvCache& cache, int64_t kv_len);

  uint64_t bytes() const;
  // Copies `bytes` bytes from `offset` on. What is not a row of the sequence is 0: a page may have rows of
  // earlier sequences after those of this one. Throws ERR_INVALID_ARGUMENT if the range is not within
  // the image.
  void read(uint64_t offset, uint8_t* out, size_t bytes);
  void write(uint64_t offset, const uint8_t* from, size_t bytes);

 private:
  // A range of bytes in device memory.
  struct Piece {
    uint8_t* data;
    size_t bytes;
    const uint8_t* mask;  // null: all bytes belong to rows
  };
  // Calls `use` for the parts of a range, in order.
  template <typename Use>
  void for_each_piece(uint64_t offset, size_t bytes, Use use);
  void check(uint64_t offset, size_t bytes) const;
  void make_masks();

  Model& model_;
  const KvCache& cache_;
  int64_t kv_len_;
  uint64_t k_layer_bytes_, v_layer_bytes_;  // v: 0 if V is K
  // Of a layer's part of the last page, if that has fewer than kPageTokens rows: 255 in the bytes of
  // the rows.
  std::vector<uint8_t> k_mask_, v_mask_;
};

}  // namespace diffqkv
