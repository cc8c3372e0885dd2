// K and V of one sequence: pages of the model's pool, and a table of page pointers in device
// memory. Forks share pages; a shared page is copied before it is written.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "model/kv_pool.h"

namespace diffqkv {

class KvCache {
 public:
  KvCache(std::shared_ptr<Backend> backend, KvPool& pool, KvTypes types);

  // Makes rows [used, kv_len) writable. After ERR_KV_CACHE_FULL or ERR_OUT_OF_MEMORY the first
  // `used` rows and the number of pages are unchanged.
  void prepare(int64_t used, int64_t kv_len);
  void keep(int64_t kv_len);  // keeps the first kv_len rows and releases the pages after them
  // Releases the pages before that of row `first`. Their places in the table remain.
  void forget(int64_t first);
  int64_t first() const { return first_page_ * KvPool::kPageTokens; }  // the first row not forgotten
  // Makes rows [first, kv_len) of an empty cache writable, as if those before `first`, a multiple of
  // kPageTokens, had been forgotten. Throws like prepare; the cache is empty then.
  void prepare_from(int64_t first, int64_t kv_len);
  void append(std::shared_ptr<KvPage> page);
  // Replaces all rows by the first kv_len rows of `other`.
  void share(const KvCache& other, int64_t kv_len);

  const KvPage* table() const { return table_.as<KvPage>(); }  // in device memory
  const std::vector<std::shared_ptr<KvPage>>& pages() const { return pages_; }
  int64_t capacity() const { return static_cast<int64_t>(pages_.size()) * KvPool::kPageTokens; }
  KvTypes types() const { return types_; }
  KvView k_view(int64_t layer) const { return view(stores_.k_view, stores_.k, layer); }
  KvView v_view(int64_t layer) const { return view(stores_.v_view, stores_.shared ? stores_.k : stores_.v, layer); }

  // Bytes of the pages; shared pages count in full. Any thread.
  uint64_t k_bytes() const { return num_pages_.load() * static_cast<uint64_t>(stores_.k.page_bytes()); }
  uint64_t v_bytes() const { return num_pages_.load() * static_cast<uint64_t>(stores_.v.page_bytes()); }
  uint64_t page_bytes() const { return stores_.page_bytes(); }

 private:
  static KvView view(KvView layer_0, const PageStore& store, int64_t layer) {
    layer_0.page_offset = layer * store.layer_stride();
    return layer_0;
  }
  void reserve_table(size_t pages);
  void upload_table();
  void count_pages();

  std::shared_ptr<Backend> backend_;
  KvPool& pool_;
  KvTypes types_;
  KvPool::Stores& stores_;
  std::vector<std::shared_ptr<KvPage>> pages_;  // the first first_page_ are null
  int64_t first_page_ = 0;
  Buffer table_;         // KvPage [pages_.size()], with room for more
  size_t uploaded_ = 0;  // number of leading entries of table_ that equal those of pages_
  std::atomic<uint64_t> num_pages_{0};
};

}  // namespace diffqkv
