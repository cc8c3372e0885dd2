#include "model/kv_pool.h"

namespace diffqkv {

KvPool::Stores::Stores(const std::shared_ptr<Backend>& backend, const Config& config, KvTypes types)
    : k(backend, kv_page_layer_bytes(types.k, kPageTokens, config.num_k_heads, config.head_dim_k), config.num_layers),
      v(backend, kv_page_layer_bytes(types.v, kPageTokens, config.num_v_heads, config.head_dim_vo), config.num_layers) {
}

KvPool::KvPool(std::shared_ptr<Backend> backend, const Config& config, KvLimits limits)
    : backend_(std::move(backend)), config_(config), limits_(limits), prefixes_(kPageTokens, limits.prefix_bytes) {}

KvPool::Stores& KvPool::stores(KvTypes types) {
  const auto found = stores_.find(types);
  return found != stores_.end() ? found->second : stores_.try_emplace(types, backend_, config_, types).first->second;
}

void KvPool::make_room(const Stores& stores, uint64_t count) {
  const uint64_t used = bytes_, asked = count * stores.page_bytes(), limit = limits_.max_bytes;
  if (used + asked <= limit) return;
  if (used + asked - prefixes_.unused_bytes() > limit) {
    fail(ErrorCode::kv_cache_full,
         "the KV cache of the model is full: pages of %llu bytes are asked, %llu of %llu bytes (kvCacheBytes) are in "
         "use; dispose or truncate sessions, or load the model with more",
         static_cast<unsigned long long>(asked), static_cast<unsigned long long>(used),
         static_cast<unsigned long long>(limit));
  }
  while (bytes_ + asked > limit) prefixes_.drop_unused();
}

std::shared_ptr<KvPage> KvPool::take(Stores& stores) {
  const uint64_t page_bytes = stores.page_bytes();
  const auto take_from = [&](PageStore& store) {
    for (;;) {
      try {
        return store.take();
      } catch (const Error& error) {
        if (error.code() != ErrorCode::out_of_memory || !prefixes_.drop_unused()) throw;
      }
    }
  };
  // Its holders give back what it has got by then.
  std::shared_ptr<KvPage> page(new KvPage{nullptr, nullptr}, [this, &stores, page_bytes](KvPage* last) {
    if (last->v) pages_ -= 1, bytes_ -= page_bytes, stores.v.give(last->v);
    if (last->k) stores.k.give(last->k);
    delete last;
  });
  page->k = take_from(stores.k);
  page->v = take_from(stores.v);
  pages_ += 1, bytes_ += page_bytes;
  return page;
}

}  // namespace diffqkv
