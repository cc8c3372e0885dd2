// What the blocks of one launch know of each other: who wrote or streamed which bytes of global memory, and what atomics
// have handed on. Blocks run on several threads of the system.
//
// A block sees what another wrote through a chain that the PTX memory model calls release and acquire patterns: a fence,
// then an atomic of the same thread; an atomic of another thread on that address, later; then a fence of that other
// thread. Barriers extend the chain at both ends.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "engine/clock.h"
#include "engine/engine.h"
#include "engine/memory.h"

namespace diffqkv::emulated {

// Who accessed global memory, when. A launch's numbers of authors stay in the tables until the next launch has ended.
struct Author {
  int32_t block;  // its number in the grid
  uint16_t thread, site;
  Time time;        // of the block's clock
  uint32_t fences;  // of the thread, before
  bool operator==(const Author&) const = default;
};

struct AtomicWord;

// What a thread has from an atomic: what was released there, from `begin` to `end`.
struct Acquired {
  const AtomicWord* from;
  size_t begin, end;
};

// What a fence of a thread has made ready to be handed on by its next atomics.
struct Released {
  int32_t block;
  uint16_t thread;
  uint32_t fences;             // accesses of the thread with fewer are included
  std::vector<Time> seen;      // by warp: accesses of the block that are older are included
  std::vector<Acquired> more;  // and what the thread had acquired
  bool includes(const Author& author) const {
    return author.block == block && ((author.thread == thread && author.fences < fences) ||
                                     author.time < seen[static_cast<size_t>(author.thread) / 32]);
  }
};

struct AtomicWord {
  std::vector<std::shared_ptr<const Released>> released;  // in the order of the atomics
  std::multimap<int32_t, size_t> by_block;                // indices of `released`
  std::vector<size_t> with_more;
  size_t begin = 0;   // of those that a plain store to the word has not cut off
  uint32_t last = 0;  // author of the last atomic that wrote
};

class Launch {
 public:
  static constexpr uint32_t kChunk = 1024;

  explicit Launch(const Grid& grid);
  ~Launch();
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  const Grid& grid() const { return grid_; }
  // Authors have numbers from first() on; smaller ones are of earlier launches.
  uint32_t first() const { return first_; }
  uint32_t first_of_previous() const { return first_of_previous_; }
  uint64_t number() const { return number_; }
  const Author& author(uint32_t id) const {
    return chunks()[(id - first_) / kChunk].load(std::memory_order_acquire)[(id - first_) % kChunk];
  }
  // kChunk authors to be filled in; *id is the number of the first. Null if there are too many.
  Author* add_authors(uint32_t* id);
  // To be called before a table of the allocation gets a number.
  void touch(const std::shared_ptr<Shadow>& shadow, NumberTable* table);

  // Atomics are carried out under this lock, which the following need.
  std::recursive_mutex& atomics_mutex() { return atomics_mutex_; }
  AtomicWord& atomic_word(uintptr_t p) { return atomic_words_[p]; }
  static void release(AtomicWord* word, const std::shared_ptr<const Released>& released);
  static bool includes(const std::vector<Acquired>& acquired, const Author& author);

 private:
  static std::atomic<Author*>* chunks();

  std::unique_lock<std::mutex> only_one_;  // the numbers in the tables are of one launch at a time
  const Grid& grid_;
  uint32_t first_ = 0, first_of_previous_ = 0;
  uint64_t number_ = 0;
  std::atomic<uint32_t> num_chunks_{0};
  std::recursive_mutex atomics_mutex_;
  std::mutex touched_mutex_;
  std::map<uintptr_t, AtomicWord> atomic_words_;
  std::set<std::shared_ptr<Shadow>> touched_;
};

}  // namespace diffqkv::emulated
