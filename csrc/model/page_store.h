// Pages of one size, for K or for V, cut from slabs. Shared by all sessions of a model.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "backend/backend.h"

namespace diffqkv {

class PageStore {
 public:
  // Pages per slab: large enough for huge pages on the CPU, small enough for one short sequence.
  static constexpr int64_t kSlabPages = 8;

  // layer_bytes: bytes of one layer in a page (kv_page_layer_bytes).
  PageStore(std::shared_ptr<Backend> backend, int64_t layer_bytes, int64_t num_layers)
      : backend_(std::move(backend)), layer_bytes_(layer_bytes), num_layers_(num_layers) {}

  // Returns the address of layer 0 of a page; layer l is l * layer_stride() bytes after it. The
  // parts of one layer in neighboring pages are adjacent, so that consecutive pages are read as one
  // stream. Throws ERR_OUT_OF_MEMORY.
  void* allocate();
  void release(void* page) noexcept;
  void copy(void* to, const void* from);  // all layers

  int64_t layer_stride() const { return kSlabPages * layer_bytes_; }
  int64_t page_bytes() const { return num_layers_ * layer_bytes_; }

 private:
  struct Slab {
    Buffer memory;
    uint32_t free = (1u << kSlabPages) - 1;  // one bit per page
  };

  std::shared_ptr<Backend> backend_;
  int64_t layer_bytes_;
  int64_t num_layers_;
  std::map<const char*, Slab> slabs_;  // by address
};

}  // namespace diffqkv
