// Pages of one size, K's or V's, for every session of a model, cut from slabs.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "backend/backend.h"

namespace diffqkv {

class PageStore {
 public:
  // Of a slab: large enough that the CPU gives it big pages, small enough for one short sequence.
  static constexpr int64_t kSlabPages = 8;

  // layer_bytes: of one layer's part of a page (kv_page_layer_bytes).
  PageStore(std::shared_ptr<Backend> backend, int64_t layer_bytes, int64_t num_layers)
      : backend_(std::move(backend)), layer_bytes_(layer_bytes), num_layers_(num_layers) {}

  // Where layer 0 of a page lies; layer l is l * layer_stride() bytes on. The parts of one layer of neighbouring pages
  // touch, so that pages taken one after another are read as one stream. Throws ERR_OUT_OF_MEMORY.
  void* take();
  void give(void* page) noexcept;
  void copy(void* to, const void* from);  // all layers

  int64_t layer_stride() const { return kSlabPages * layer_bytes_; }
  int64_t page_bytes() const { return num_layers_ * layer_bytes_; }

 private:
  struct Slab {
    Buffer memory;
    uint32_t free = (1u << kSlabPages) - 1;  // a bit a page
  };

  std::shared_ptr<Backend> backend_;
  int64_t layer_bytes_, num_layers_;
  std::map<const char*, Slab> slabs_;  // by address
};

}  // namespace diffqkv
