// Pages that outlive their sessions, found again by the tokens that they hold and all tokens before them: a prompt that
// begins as an earlier one did takes those pages over and skips their prefill. Keys are compared in full, not by hash.
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
  // Stands for a sequence of whole pages; what is kept under one number never changes. 0: not known.
  using Id = uint64_t;

  PrefixCache(int64_t page_tokens, uint64_t max_bytes) : page_tokens_(page_tokens), max_bytes_(max_bytes) {}
  bool enabled() const { return max_bytes_ > 0; }

  // The empty sequence under these conditions: what changes what a page holds, besides its tokens.
  Id root(DType k_type, DType v_type, int64_t selective_top_k, bool renormalize);

  // The sequence `parent` and one more page of tokens. Null: not there.
  std::shared_ptr<KvPage> find(Id parent, const int32_t* tokens, Id* id);
  // Keeps the page (of `bytes`), unless another has the same key already. The pages used the longest ago make room.
  Id add(Id parent, const int32_t* tokens, const std::shared_ptr<KvPage>& page, uint64_t bytes);
  // Bytes of the pages that nobody else holds.
  uint64_t unused_bytes() const;
  // Lets go of that of them which was used the longest ago. False: there is none.
  bool drop_unused();
  void drop(const std::shared_ptr<KvPage>& page);  // where it is there

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
  using Entries = std::list<Entry>;  // the latest used first, a page before those that follow it in its sequence

  void touch(Entries::iterator entry);
  void erase(Entries::iterator entry);

  int64_t page_tokens_;
  uint64_t max_bytes_, bytes_ = 0;
  Id last_id_ = 0;
  std::map<std::tuple<DType, DType, int64_t, bool>, Id> roots_;
  Entries entries_;
  std::unordered_map<Key, Entries::iterator, Hash> by_key_;
  std::unordered_map<Id, Entries::iterator> by_id_;
  std::atomic<uint64_t> num_pages_{0};
};

}  // namespace diffqkv
