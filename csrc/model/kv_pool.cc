#include "model/kv_pool.h"

namespace diffqkv {

KvPool::Stores::Stores(const std::shared_ptr<Backend>& backend, const Config& config, KvTypes types)
    : k_view{.num_heads = config.num_k_heads, .head_dim = config.head_dim_k, .dtype = types.k},
      v_view{.num_heads = config.num_v_heads, .head_dim = config.head_dim_vo, .dtype = types.v},
      k(backend, kv_page_layer_bytes(types.k, kPageTokens, config.num_k_heads, config.head_dim_k), config.num_layers),
      v(backend,
        config.is_latent() ? 0 : kv_page_layer_bytes(types.v, kPageTokens, config.num_v_heads, config.head_dim_vo),
        config.num_layers),
      shared(config.is_latent()) {}

KvPool::KvPool(std::shared_ptr<Backend> backend, const Config& config, KvLimits limits)
    : backend_(std::move(backend)), config_(config), limits_(limits), prefixes_(kPageTokens, limits.prefix_bytes) {}

KvPool::Stores& KvPool::stores(KvTypes types) {
  const auto found = stores_.find(types);
  return found != stores_.end() ? found->second : stores_.try_emplace(types, backend_, config_, types).first->second;
}

void KvPool::make_room(const Stores& stores, uint64_t count) {
  const uint64_t used = bytes_;
  const uint64_t needed = count * stores.page_bytes();
  const uint64_t limit = limits_.max_bytes;
  if (used + needed <= limit) return;
  if (used + needed - prefixes_.unused_bytes() > limit) {
    fail(ErrorCode::kv_cache_full,
         "the KV cache of the model is full: the call needs pages of %llu bytes, and %llu of %llu bytes (kvCacheBytes) "
         "are in use; dispose of or truncate sessions, or load the model with a larger kvCacheBytes",
         static_cast<unsigned long long>(needed), static_cast<unsigned long long>(used),
         static_cast<unsigned long long>(limit));
  }
  while (bytes_ + needed > limit) prefixes_.drop_unused();
}

std::shared_ptr<KvPage> KvPool::allocate(Stores& stores) {
  const uint64_t page_bytes = stores.page_bytes();
  const auto allocate_from = [&](PageStore& store) {
    for (;;) {
      try {
        return store.allocate();
      } catch (const Error& error) {
        if (error.code() != ErrorCode::out_of_memory || !prefixes_.drop_unused()) throw;
      }
    }
  };
  // The deleter also runs if the second allocate_from throws; v is null then.
  std::shared_ptr<KvPage> page(new KvPage{nullptr, nullptr}, [this, &stores, page_bytes](KvPage* last) {
    if (last->v) {
      pages_ -= 1;
      bytes_ -= page_bytes;
      if (!stores.shared) stores.v.release(last->v);
    }
    if (last->k) stores.k.release(last->k);
    delete last;
  });
  page->k = allocate_from(stores.k);
  page->v = stores.shared ? page->k : allocate_from(stores.v);
  pages_ += 1;
  bytes_ += page_bytes;
  return page;
}

}  // namespace diffqkv
