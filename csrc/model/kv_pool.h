// The KV cache of all sessions of a model: pages of 64 tokens, with separate stores for K and V and
// one budget for both. Sessions and the prefix cache share pages. A page returns to its store after
// its last holder.
#pragma once

#include <atomic>
#include <compare>
#include <cstdint>
#include <map>
#include <memory>

#include "backend/backend.h"
#include "model/config.h"
#include "model/page_store.h"
#include "model/prefix_cache.h"

namespace diffqkv {

struct KvTypes {
  DType k, v;
  auto operator<=>(const KvTypes&) const = default;
};

struct KvLimits {
  uint64_t max_bytes = UINT64_MAX;  // of all pages in use, including those of the prefix cache
  uint64_t prefix_bytes = 0;        // of the pages that the prefix cache keeps; 0: no prefix cache
};

class KvPool {
 public:
  static constexpr int64_t kPageTokens = 64;
  // The stores of one pair of types.
  struct Stores {
    Stores(const std::shared_ptr<Backend>& backend, const Config& config, KvTypes types);
    KvView k_view, v_view;  // of layer 0
    // With latent attention the rows of K are those of V: no page is allocated from v.
    PageStore k, v;
    bool shared = false;
    uint64_t page_bytes() const { return static_cast<uint64_t>(k.page_bytes() + v.page_bytes()); }
  };

  // Executor thread only, except limits(), pages() and bytes().
  KvPool(std::shared_ptr<Backend> backend, const Config& config, KvLimits limits);

  Stores& stores(KvTypes types);
  // Ensures that the budget has room for `count` pages. Drops pages that only the prefix cache
  // holds if that suffices. Otherwise throws ERR_KV_CACHE_FULL and changes nothing.
  void make_room(const Stores& stores, uint64_t count);
  // An uninitialized page of `stores`, which must belong to this pool. Call make_room first. Throws
  // ERR_OUT_OF_MEMORY.
  std::shared_ptr<KvPage> allocate(Stores& stores);
  PrefixCache& prefixes() { return prefixes_; }

  const KvLimits& limits() const { return limits_; }
  uint64_t pages() const { return pages_.load(); }  // in use; a shared page counts once
  uint64_t bytes() const { return bytes_.load(); }

 private:
  std::shared_ptr<Backend> backend_;
  const Config& config_;
  KvLimits limits_;
  std::atomic<uint64_t> pages_{0};
  std::atomic<uint64_t> bytes_{0};
  std::map<KvTypes, Stores> stores_;
  PrefixCache prefixes_;  // after stores_, so that its pages are released first
};

}  // namespace diffqkv
