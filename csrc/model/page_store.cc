#include "model/page_store.h"

#include <bit>

namespace diffqkv {

void* PageStore::take() {
  auto slab = slabs_.begin();
  while (slab != slabs_.end() && slab->second.free == 0) ++slab;
  if (slab == slabs_.end()) {
    Buffer memory(backend_, static_cast<size_t>(kSlabPages * page_bytes()));
    const char* base = memory.as<const char>();
    slab = slabs_.emplace(base, Slab{std::move(memory)}).first;
  }
  const int index = std::countr_zero(slab->second.free);
  slab->second.free &= slab->second.free - 1;
  return slab->second.memory.as<char>() + index * layer_bytes_;
}

void PageStore::give(void* page) noexcept {
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
