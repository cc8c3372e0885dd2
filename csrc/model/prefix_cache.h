// Keeps pages after their sessions are disposed. The key of a page is its tokens and all tokens
// before them. A prompt that begins like an earlier one reuses those pages and skips their prefill.
// Keys are compared in full, not by hash.
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "backend/ops.h"

namespace diffqkv {

class PrefixCache {
 public:
  // Identifies a sequence of whole pages. An id is never reused. 0: unknown.
  using Id = uint64_t;

  PrefixCache(int64_t page_tokens, uint64_t max_bytes) : page_tokens_(page_tokens), max_bytes_(max_bytes) {}
  bool enabled() const { return max_bytes_ > 0; }

  // The empty sequence for these settings, which change the contents of a page.
  Id root(DType k_type, DType v_type, int64_t selective_top_k, bool renormalize, bool long_rope);

  // The page that follows the sequence `parent` and has these tokens; sets its id. Null if there is
  // none.
  std::shared_ptr<KvPage> find(Id parent, const int32_t* tokens, Id* id);
  // Keeps the page (of `bytes`), unless a page with the same key exists. Drops the least recently
  // used pages to make room. Returns the id of the sequence, or 0 if the page was not kept.
  Id add(Id parent, const int32_t* tokens, const std::shared_ptr<KvPage>& page, uint64_t bytes);
  // Bytes of the pages that only this cache holds.
  uint64_t unused_bytes() const;
  // Drops the least recently used one of them. Returns whether there was one.
  bool drop_unused();
  void drop(const std::shared_ptr<KvPage>& page);  // if the cache has it

  uint64_t pages() const { return num_pages_.load(); }  // any thread

 private:
  struct Key {
    Id parent;
    std::vector<int32_t> tokens;
    bool operator==(const Key&) const = default;
  };
  struct Hash {
    size_t operator()(const Key& key) const;
  };
  struct Entry {
    Key key;
    Id id;
    std::shared_ptr<KvPage> page;
    uint64_t bytes;
  };
  // The most recently used first. A page is before the pages that follow it in its sequence.
  using Entries = std::list<Entry>;

  void touch(Entries::iterator entry);
  void erase(Entries::iterator entry);

  int64_t page_tokens_;
  uint64_t max_bytes_;
  uint64_t bytes_ = 0;
  Id last_id_ = 0;
  std::map<std::tuple<DType, DType, int64_t, bool, bool>, Id> roots_;
  Entries entries_;
  std::unordered_map<Key, Entries::iterator, Hash> by_key_;
  std::unordered_map<Id, Entries::iterator> by_id_;
  std::atomic<uint64_t> num_pages_{0};
};

}  // namespace diffqkv
