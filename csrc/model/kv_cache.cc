#include "model/kv_cache.h"

#include <algorithm>

namespace diffqkv {

KvCache::KvCache(std::shared_ptr<Backend> backend, KvPool& pool, KvTypes types)
    : backend_(std::move(backend)), pool_(pool), types_(types), stores_(pool.stores(types)) {}

void KvCache::prepare(int64_t used, int64_t kv_len) {
  constexpr int64_t kTokens = KvPool::kPageTokens;
  const size_t before = pages_.size();
  const size_t needed = static_cast<size_t>((kv_len + kTokens - 1) / kTokens);
  const size_t added = needed > before ? needed - before : 0;
  // The page of row `used` is written in place, unless it is shared.
  const size_t partial = static_cast<size_t>(used / kTokens);
  bool copies = used < kv_len && partial < before && pages_[partial].use_count() > 1;
  try {
    pool_.make_room(stores_, added + copies);
  } catch (const Error&) {
    // If the page is shared only with the prefix cache, dropping it there saves the copy.
    if (!copies) throw;
    pool_.prefixes().drop(pages_[partial]);
    copies = pages_[partial].use_count() > 1;
    if (copies) throw;
    pool_.make_room(stores_, added);
  }
  reserve_table(needed);
  if (copies) {
    std::shared_ptr<KvPage> own = pool_.allocate(stores_);
    if (used % kTokens != 0) {
      stores_.k.copy(own->k, pages_[partial]->k);
      if (!stores_.shared) stores_.v.copy(own->v, pages_[partial]->v);
    }
    pages_[partial] = std::move(own);
    uploaded_ = std::min(uploaded_, partial);
  }
  try {
    while (pages_.size() < needed) pages_.push_back(pool_.allocate(stores_));
    upload_table();
  } catch (...) {
    pages_.resize(before);
    throw;
  }
  count_pages();
}

void KvCache::keep(int64_t kv_len) {
  pages_.resize(std::min(pages_.size(), static_cast<size_t>((kv_len + KvPool::kPageTokens - 1) / KvPool::kPageTokens)));
  uploaded_ = std::min(uploaded_, pages_.size());
  first_page_ = std::min<int64_t>(first_page_, static_cast<int64_t>(pages_.size()));
  count_pages();
}

void KvCache::forget(int64_t first) {
  const int64_t end = std::min<int64_t>(first / KvPool::kPageTokens, static_cast<int64_t>(pages_.size()));
  for (; first_page_ < end; first_page_++) pages_[first_page_] = nullptr;
  count_pages();
}

void KvCache::prepare_from(int64_t first, int64_t kv_len) {
  pages_.resize(static_cast<size_t>(first / KvPool::kPageTokens));
  first_page_ = static_cast<int64_t>(pages_.size());
  try {
    prepare(first, kv_len);
  } catch (...) {
    keep(0);
    throw;
  }
}

void KvCache::append(std::shared_ptr<KvPage> page) {
  reserve_table(pages_.size() + 1);
  pages_.push_back(std::move(page));
  upload_table();
  count_pages();
}

void KvCache::share(const KvCache& other, int64_t kv_len) {
  const size_t count = static_cast<size_t>((kv_len + KvPool::kPageTokens - 1) / KvPool::kPageTokens);
  reserve_table(count);
  pages_.assign(other.pages_.begin(), other.pages_.begin() + static_cast<std::ptrdiff_t>(count));
  first_page_ = other.first_page_;
  uploaded_ = 0;
  upload_table();
  count_pages();
}

void KvCache::reserve_table(size_t pages) {
  if (table_.bytes() >= pages * sizeof(KvPage)) return;
  Buffer larger(backend_, std::max<size_t>({pages * sizeof(KvPage), 2 * table_.bytes(), 16 * sizeof(KvPage)}));
  if (uploaded_ > 0) backend_->copy(larger.data(), table_.data(), uploaded_ * sizeof(KvPage));
  backend_->synchronize();  // a queued kernel may still read the old table
  table_ = std::move(larger);
}

void KvCache::upload_table() {
  if (uploaded_ >= pages_.size()) return;
  std::vector<KvPage> entries;
  for (size_t i = uploaded_; i < pages_.size(); i++) entries.push_back(pages_[i] ? *pages_[i] : KvPage{});
  backend_->upload(table_.as<KvPage>() + uploaded_, entries.data(), entries.size() * sizeof(KvPage));
  uploaded_ = pages_.size();
}

void KvCache::count_pages() { num_pages_ = pages_.size() - static_cast<size_t>(first_page_); }

}  // namespace diffqkv
