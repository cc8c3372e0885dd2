#include "model/page_store.h"

#include <bit>

namespace diffqkv {

void* PageStore::allocate() {
  // Uses the fullest slab that has a free page, so that other slabs become empty and are freed.
  auto slab = slabs_.end();
  for (auto it = slabs_.begin(); it != slabs_.end(); ++it) {
    const int free = std::popcount(it->second.free);
    if (free > 0 && (slab == slabs_.end() || free < std::popcount(slab->second.free))) slab = it;
  }
  if (slab == slabs_.end()) {
    Buffer memory(backend_, static_cast<size_t>(kSlabPages * page_bytes()));
    const char* base = memory.as<const char>();
    slab = slabs_.emplace(base, Slab{std::move(memory)}).first;
  }
  const int index = std::countr_zero(slab->second.free);
  slab->second.free &= slab->second.free - 1;
  return slab->second.memory.as<char>() + index * layer_bytes_;
}

void PageStore::release(void* page) noexcept {
  auto slab = std::prev(slabs_.upper_bound(static_cast<const char*>(page)));
  slab->second.free |= 1u << ((static_cast<const char*>(page) - slab->first) / layer_bytes_);
  if (slab->second.free == (1u << kSlabPages) - 1) slabs_.erase(slab);
}

void PageStore::copy(void* to, const void* from) {
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    backend_->copy(static_cast<char*>(to) + layer * layer_stride(),
                   static_cast<const char*>(from) + layer * layer_stride(), static_cast<size_t>(layer_bytes_));
  }
}

}  // namespace diffqkv
