// Global memory as one block sees it. It sees what an earlier launch wrote, and what happened before by the block's clock
// or, in other blocks, by a chain of fences and atomics (launch.h). Anything else that it reads or writes is a conflict,
// whatever the values are; a store buffer would find the error only if the values differ. Only reads by
// ld_global_nc are recorded. A write that races with another read is found only in the orders of threads and blocks in
// which the write comes first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/clock.h"
#include "engine/launch.h"

namespace diffqkv::emulated {

uint32_t updated(uint32_t before, const AtomicUpdate& update);

class GlobalMemory {
 public:
  explicit GlobalMemory(const BlockClock& clock) : clock_(clock) {}
  void start_block(Launch* launch, int32_t block, int num_threads);

  // Each is false on a conflict, which conflict() then describes. The bytes lie in the allocation, on one page.
  bool load(const Range& range, uintptr_t p, size_t bytes, int thread) {
    return range.shadow->written.launch.load(std::memory_order_relaxed) != launch_->number() ||
           load_written(*range.shadow, p, bytes, thread, clock_.now());
  }
  // The source of a cp.async that was issued at some time and ends now.
  bool end_copy(Shadow& shadow, uintptr_t p, size_t bytes, int thread, Time issued) {
    return shadow.written.launch.load(std::memory_order_relaxed) != launch_->number() ||
           load_written(shadow, p, bytes, thread, issued);
  }
  bool load_streaming(const Range& range, uintptr_t p, int thread, uint16_t site);
  bool store(const Range& range, uintptr_t p, size_t bytes, int thread, uint16_t site);
  // What was there before; nothing on a conflict.
  std::optional<uint32_t> atomic(const Range& range, uint32_t* p, const AtomicUpdate& update, int thread,
                                 uint16_t site);
  void fence(int thread);
  // Whether the launch before has written a byte of these.
  bool is_of_previous(const Range& range, uintptr_t p, size_t bytes) const;
  const std::string& conflict() const { return conflict_; }

 private:
  struct Thread {
    uint32_t fences = 0;
    uint32_t storing_id = 0, streaming_id = 0;  // the thread's last numbers, 0: none
    uint16_t streaming_site = 0;
    Author storing{};
    std::vector<Acquired> observed;            // by atomics since the last fence
    std::shared_ptr<const Released> released;  // by the last fence
  };
  struct Acquisition {
    int thread;
    Time time;
    Acquired acquired;
  };

  bool load_written(Shadow& shadow, uintptr_t p, size_t bytes, int thread, Time issued);
  bool is_streamed(const Range& range, uintptr_t p, size_t bytes);
  uint32_t add_author(int thread, uint16_t site);
  Author author_now(int thread, uint16_t site) const;
  uint32_t storing_id(int thread, uint16_t site);
  bool ordered(const Author& author, int thread);
  std::vector<Acquired> acquired_by(int thread) const;
  std::string name_of(const Author& author) const;
  bool fail(const Author& author);

  const BlockClock& clock_;
  Launch* launch_ = nullptr;
  uint64_t launch_number_ = 0;
  int32_t block_ = 0;
  std::vector<Thread> threads_;
  std::vector<Acquisition> acquisitions_;  // of all threads of the block
  Author* authors_ = nullptr;              // to be filled in next
  uint32_t next_id_ = 0, num_authors_left_ = 0;
  std::string conflict_;
};

}  // namespace diffqkv::emulated
