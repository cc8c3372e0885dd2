#include "engine/global_memory.h"

#include <algorithm>

#include "engine/sites.h"

namespace diffqkv::emulated {
namespace {

// Blocks on other threads of the system may be at the same numbers: a race of the kernel's own.
uint32_t get(const uint32_t* number) { return __atomic_load_n(number, __ATOMIC_ACQUIRE); }
void set(uint32_t* number, uint32_t id) { __atomic_store_n(number, id, __ATOMIC_RELEASE); }

}  // namespace

uint32_t updated(uint32_t before, const AtomicUpdate& update) {
  switch (update.op) {
    case AtomicUpdate::Op::add: return before + update.value;
    case AtomicUpdate::Op::maximum: return std::max(before, update.value);
    case AtomicUpdate::Op::compare_exchange: return before == update.expected ? update.value : before;
  }
  return before;
}

void GlobalMemory::start_block(Launch* launch, int32_t block, int num_threads) {
  if (launch_ == nullptr || launch_number_ != launch->number()) num_authors_left_ = 0;
  launch_ = launch;
  launch_number_ = launch->number();
  block_ = block;
  threads_.assign(static_cast<size_t>(num_threads), {});
  acquisitions_.clear();
}

uint32_t GlobalMemory::add_author(int thread, uint16_t site) {
  if (num_authors_left_ == 0) {
    authors_ = launch_->add_authors(&next_id_);
    if (!authors_) fault("too many stores for the emulation to remember", site_of(site));
    num_authors_left_ = Launch::kChunk;
  }
  *authors_++ = author_now(thread, site);
  --num_authors_left_;
  return next_id_++;
}

Author GlobalMemory::author_now(int thread, uint16_t site) const {
  return {block_, static_cast<uint16_t>(thread), site, clock_.time(thread / 32),
          threads_[static_cast<size_t>(thread)].fences};
}

// Stores that differ in nothing but their bytes have one number.
uint32_t GlobalMemory::storing_id(int thread, uint16_t site) {
  Thread& t = threads_[static_cast<size_t>(thread)];
  const Author author = author_now(thread, site);
  if (t.storing_id == 0 || t.storing != author) {
    t.storing_id = add_author(thread, site);
    t.storing = author;
  }
  return t.storing_id;
}

std::vector<Acquired> GlobalMemory::acquired_by(int thread) const {
  std::vector<Acquired> acquired;
  const std::array<Time, kMaxWarps>& seen = clock_.seen(thread / 32);
  for (const Acquisition& a : acquisitions_)
    if (a.thread == thread || a.time < seen[static_cast<size_t>(a.thread) / 32]) acquired.push_back(a.acquired);
  return acquired;
}

bool GlobalMemory::ordered(const Author& author, int thread) {
  if (author.block == block_) {
    return author.thread == thread || author.time < clock_.seen(thread / 32)[static_cast<size_t>(author.thread) / 32];
  }
  if (acquisitions_.empty()) return false;
  std::lock_guard lock(launch_->atomics_mutex());
  return Launch::includes(acquired_by(thread), author);
}

std::string GlobalMemory::name_of(const Author& author) const {
  std::string name = "thread " + std::to_string(author.thread);
  if (author.block != block_) {
    const int64_t x = launch_->grid().grid[0], y = launch_->grid().grid[1];
    name += " of block (" + std::to_string(author.block % x) + ", " + std::to_string(author.block / x % y) + ", " +
            std::to_string(author.block / x / y) + ")";
  }
  return name + " (" + text_of(site_of(author.site)) + ")";
}

bool GlobalMemory::fail(const Author& author) {
  conflict_ = "that " + name_of(author) + " wrote, with no " +
              (author.block == block_ ? "barrier" : "chain of fence, atomic, atomic and fence") + " between them";
  return false;
}

bool GlobalMemory::load_written(Shadow& shadow, uintptr_t p, size_t bytes, int thread, Time issued) {
  const uint32_t* const ids = shadow.written.find(p);
  if (!ids) return true;
  uint32_t known = 0;
  for (size_t i = 0; i < bytes; ++i) {
    const uint32_t id = get(ids + i);
    if (id < launch_->first() || id == known) continue;
    known = id;
    const Author& author = launch_->author(id);
    if (!ordered(author, thread)) return fail(author);
    if (author.block == block_ && author.time > issued) {
      conflict_ = "that " + name_of(author) + " wrote before the copy had ended";
      return false;
    }
  }
  return true;
}

bool GlobalMemory::load_streaming(const Range& range, uintptr_t p, int thread, uint16_t site) {
  Shadow& shadow = *range.shadow;
  launch_->touch(range.shadow, &shadow.streamed);
  Thread& t = threads_[static_cast<size_t>(thread)];
  if (t.streaming_id == 0 || t.streaming_site != site) {
    t.streaming_id = add_author(thread, site);
    t.streaming_site = site;
  }
  set(shadow.streamed.find_or_add(p), t.streaming_id);
  if (shadow.written.launch.load(std::memory_order_relaxed) != launch_->number()) return true;
  const uint32_t* const ids = shadow.written.find(p);
  for (size_t i = 0; ids && i < 16; ++i) {
    const uint32_t id = get(ids + i);
    if (id < launch_->first()) continue;
    conflict_ = "by ld_global_nc or a bulk copy that " + name_of(launch_->author(id)) + " writes in the same launch";
    return false;
  }
  return true;
}

bool GlobalMemory::is_streamed(const Range& range, uintptr_t p, size_t bytes) {
  const NumberTable& streamed = range.shadow->streamed;
  if (streamed.launch.load(std::memory_order_relaxed) != launch_->number()) return false;
  for (uintptr_t at = p / 16 * 16; at < p + bytes; at += 16) {
    const uint32_t* const id = streamed.find(at);
    if (!id || get(id) < launch_->first()) continue;
    conflict_ =
        "that " + name_of(launch_->author(get(id))) + " reads by ld_global_nc or a bulk copy in the same launch";
    return true;
  }
  return false;
}

bool GlobalMemory::store(const Range& range, uintptr_t p, size_t bytes, int thread, uint16_t site) {
  if (is_streamed(range, p, bytes)) return false;
  const uint32_t own = storing_id(thread, site);
  NumberTable& written = range.shadow->written;
  launch_->touch(range.shadow, &written);
  uint32_t* const ids = written.find_or_add(p);
  uint32_t known = own;
  for (size_t i = 0; i < bytes; ++i) {
    const uint32_t id = get(ids + i);
    if (id >= launch_->first() && id != known) {
      known = id;
      const Author& author = launch_->author(id);
      if (!ordered(author, thread)) return fail(author);
    }
    set(ids + i, own);
  }
  return true;
}

std::optional<uint32_t> GlobalMemory::atomic(const Range& range, uint32_t* p, const AtomicUpdate& update, int thread,
                                             uint16_t site) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(p);
  if (is_streamed(range, at, 4)) return {};
  NumberTable& written = range.shadow->written;
  launch_->touch(range.shadow, &written);
  uint32_t* const ids = written.find_or_add(at);
  Thread& t = threads_[static_cast<size_t>(thread)];
  std::lock_guard lock(launch_->atomics_mutex());
  AtomicWord& word = launch_->atomic_word(at);
  for (int i = 0; i < 4; ++i) {
    const uint32_t id = get(ids + i);
    if (id < launch_->first() || id == word.last) continue;
    // A plain store. What atomics before it have handed on ends here.
    word.begin = word.released.size();
    const Author& author = launch_->author(id);
    if (!ordered(author, thread)) {
      fail(author);
      return {};
    }
  }
  const uint32_t before = *p;
  t.observed.push_back({&word, word.begin, word.released.size()});
  if (update.op == AtomicUpdate::Op::compare_exchange && before != update.expected) return before;
  *p = updated(before, update);
  word.last = add_author(thread, site);
  for (int i = 0; i < 4; ++i) set(ids + i, word.last);
  if (t.released) Launch::release(&word, t.released);
  return before;
}

bool GlobalMemory::is_of_previous(const Range& range, uintptr_t p, size_t bytes) const {
  const uint32_t* const ids = range.shadow->written.find(p);
  for (size_t i = 0; ids && i < bytes; ++i) {
    const uint32_t id = get(ids + i);
    if (id >= launch_->first_of_previous() && id < launch_->first()) return true;
  }
  return false;
}

void GlobalMemory::fence(int thread) {
  Thread& t = threads_[static_cast<size_t>(thread)];
  for (const Acquired& observed : t.observed) acquisitions_.push_back({thread, clock_.time(thread / 32), observed});
  t.observed.clear();
  const std::array<Time, kMaxWarps>& seen = clock_.seen(thread / 32);
  const size_t num_warps = threads_.size() / 32;
  t.released = std::make_shared<const Released>(
      Released{block_, static_cast<uint16_t>(thread), ++t.fences,
               std::vector<Time>(seen.begin(), seen.begin() + static_cast<int64_t>(num_warps)), acquired_by(thread)});
}

}  // namespace diffqkv::emulated
