#include "model/prefix_cache.h"

#include <iterator>
#include <string_view>

namespace diffqkv {

size_t PrefixCache::Hash::operator()(const Key& key) const {
  const std::string_view bytes(reinterpret_cast<const char*>(key.tokens.data()), key.tokens.size() * sizeof(int32_t));
  return std::hash<std::string_view>()(bytes) ^ (key.parent * 0x9e3779b97f4a7c15u);
}

PrefixCache::Id PrefixCache::root(DType k_type, DType v_type, int64_t selective_top_k, bool renormalize,
                                  bool long_rope) {
  Id& id = roots_[{k_type, v_type, selective_top_k, renormalize, long_rope}];
  if (id == 0) id = ++last_id_;
  return id;
}

// Moves the entry and then its predecessors to the front. So a page is never older than the pages
// that follow it, and the oldest page is the end of a sequence.
void PrefixCache::touch(Entries::iterator entry) {
  for (;;) {
    entries_.splice(entries_.begin(), entries_, entry);
    const auto parent = by_id_.find(entry->key.parent);
    if (parent == by_id_.end()) return;
    entry = parent->second;
  }
}

std::shared_ptr<KvPage> PrefixCache::find(Id parent, const int32_t* tokens, Id* id) {
  const auto found = by_key_.find(Key{parent, {tokens, tokens + page_tokens_}});
  if (found == by_key_.end()) return nullptr;
  touch(found->second);
  *id = found->second->id;
  return found->second->page;
}

PrefixCache::Id PrefixCache::add(Id parent, const int32_t* tokens, const std::shared_ptr<KvPage>& page,
                                 uint64_t bytes) {
  if (!enabled() || bytes > max_bytes_) return 0;
  bool known = by_id_.count(parent) > 0;  // if it was dropped, the new page could never be found
  for (const auto& [settings, id] : roots_) known = known || id == parent;
  if (!known) return 0;
  Key key{parent, {tokens, tokens + page_tokens_}};
  if (const auto found = by_key_.find(key); found != by_key_.end()) {
    touch(found->second);
    return found->second->id;
  }
  entries_.push_front({key, ++last_id_, page, bytes});
  bytes_ += bytes;
  num_pages_ += 1;
  try {
    by_key_.emplace(std::move(key), entries_.begin());
    by_id_.emplace(last_id_, entries_.begin());
  } catch (...) {
    erase(entries_.begin());
    throw;
  }
  touch(entries_.begin());
  const Id id = last_id_;
  while (bytes_ > max_bytes_) erase(std::prev(entries_.end()));
  return by_id_.count(id) ? id : 0;
}

uint64_t PrefixCache::unused_bytes() const {
  uint64_t bytes = 0;
  for (const Entry& entry : entries_) bytes += entry.page.use_count() == 1 ? entry.bytes : 0;
  return bytes;
}

bool PrefixCache::drop_unused() {
  for (auto entry = entries_.end(); entry != entries_.begin();) {
    if ((--entry)->page.use_count() != 1) continue;
    erase(entry);
    return true;
  }
  return false;
}

void PrefixCache::drop(const std::shared_ptr<KvPage>& page) {
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    if (entry->page == page) return erase(entry);
  }
}

void PrefixCache::erase(Entries::iterator entry) {
  bytes_ -= entry->bytes;
  num_pages_ -= 1;
  by_id_.erase(entry->id);
  by_key_.erase(entry->key);
  entries_.erase(entry);
}

}  // namespace diffqkv
