// The KV cache of all sessions of a model: pages of 64 tokens, K and V each in a store of its own, counted against one
// budget. A page has as many holders as sessions (and the prefix cache) share it, and goes back with the last of them.
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
  uint64_t max_bytes = UINT64_MAX;  // of all pages in use, those of the prefix cache too
  uint64_t prefix_bytes = 0;        // of those that the prefix cache keeps; 0: there is none
};

class KvPool {
 public:
  static constexpr int64_t kPageTokens = 64;
  // The stores of one pair of types.
  struct Stores {
    Stores(const std::shared_ptr<Backend>& backend, const Config& config, KvTypes types);
    PageStore k, v;
    uint64_t page_bytes() const { return static_cast<uint64_t>(k.page_bytes() + v.page_bytes()); }
  };

  // On the executor thread alone, but for the numbers at the end.
  KvPool(std::shared_ptr<Backend> backend, const Config& config, KvLimits limits);

  Stores& stores(KvTypes types);
  // Makes sure that the budget has room for `count` pages: pages that only the prefix cache holds give way, if that is
  // enough; else ERR_KV_CACHE_FULL, with nothing changed.
  void make_room(const Stores& stores, uint64_t count);
  // A page nobody else holds, contents undefined; there must be room for it. Throws ERR_OUT_OF_MEMORY. The stores must be of
  // this pool.
  std::shared_ptr<KvPage> take(Stores& stores);
  PrefixCache& prefixes() { return prefixes_; }

  const KvLimits& limits() const { return limits_; }
  uint64_t pages() const { return pages_.load(); }  // in use, each once; any thread
  uint64_t bytes() const { return bytes_.load(); }

 private:
  std::shared_ptr<Backend> backend_;
  const Config& config_;
  KvLimits limits_;
  std::atomic<uint64_t> pages_{0}, bytes_{0};
  std::map<KvTypes, Stores> stores_;
  PrefixCache prefixes_;  // its pages go before the stores
};

}  // namespace diffqkv
