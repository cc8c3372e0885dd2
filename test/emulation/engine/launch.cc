#include "engine/launch.h"

#include <algorithm>
#include <tuple>

namespace diffqkv::emulated {
namespace {

constexpr uint32_t kMaxChunks = 1 << 18;

std::mutex only_one;
uint32_t next_id = 1;  // 0 is nobody
uint32_t first_of_last = 0;
uint64_t num_launches = 0;

// What the last launch has touched. Never destroyed.
std::set<std::shared_ptr<Shadow>>& touched_by_last() {
  static auto* const touched = new std::set<std::shared_ptr<Shadow>>;
  return *touched;
}

void forget(const std::set<std::shared_ptr<Shadow>>& touched) {
  for (const auto& shadow : touched) {
    shadow->written.remove_pages();
    shadow->streamed.remove_pages();
  }
}

}  // namespace

// Chunks stay for later launches. Never destroyed: threads may still run kernels as the process ends.
std::atomic<Author*>* Launch::chunks() {
  static std::atomic<Author*>* const chunks = new std::atomic<Author*>[kMaxChunks]();
  return chunks;
}

Launch::Launch(const Grid& grid) : only_one_(only_one), grid_(grid) {
  if (next_id >= 0x80000000u) {
    forget(touched_by_last());
    touched_by_last().clear();
    first_of_last = 0;
    free_number_pages();  // as no launch runs, that is all of them
    next_id = 1;
  }
  first_ = next_id;
  first_of_previous_ = first_of_last;
  number_ = ++num_launches;
}

Launch::~Launch() {
  std::set<std::shared_ptr<Shadow>>& last = touched_by_last();
  for (const auto& shadow : touched_) last.erase(shadow);
  forget(last);
  last = std::move(touched_);
  first_of_last = first_;
  next_id = first_ + std::min(num_chunks_.load(), kMaxChunks) * kChunk;
}

Author* Launch::add_authors(uint32_t* id) {
  const uint32_t chunk = num_chunks_.fetch_add(1);
  if (chunk >= kMaxChunks) return nullptr;
  *id = first_ + chunk * kChunk;
  std::atomic<Author*>& authors = chunks()[chunk];
  if (!authors.load(std::memory_order_relaxed)) authors.store(new Author[kChunk], std::memory_order_release);
  return authors.load(std::memory_order_relaxed);
}

void Launch::touch(const std::shared_ptr<Shadow>& shadow, NumberTable* table) {
  if (table->launch.load(std::memory_order_relaxed) == number_) return;
  std::lock_guard lock(touched_mutex_);
  touched_.insert(shadow);
  table->launch.store(number_, std::memory_order_relaxed);
}

void Launch::release(AtomicWord* word, const std::shared_ptr<const Released>& released) {
  if (!released->more.empty()) word->with_more.push_back(word->released.size());
  word->by_block.emplace(released->block, word->released.size());
  word->released.push_back(released);
}

bool Launch::includes(const std::vector<Acquired>& acquired, const Author& author) {
  std::set<std::tuple<const AtomicWord*, size_t, size_t>> visited;
  std::vector<Acquired> left = acquired;
  while (!left.empty()) {
    const Acquired next = left.back();
    left.pop_back();
    if (!visited.insert({next.from, next.begin, next.end}).second) continue;
    const auto [first, last] = next.from->by_block.equal_range(author.block);
    for (auto at = first; at != last; ++at) {
      if (at->second >= next.begin && at->second < next.end && next.from->released[at->second]->includes(author))
        return true;
    }
    for (const size_t index : next.from->with_more) {
      if (index < next.begin || index >= next.end) continue;
      const std::vector<Acquired>& more = next.from->released[index]->more;
      left.insert(left.end(), more.begin(), more.end());
    }
  }
  return false;
}

}  // namespace diffqkv::emulated
