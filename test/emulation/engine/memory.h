// Where device memory is: what global accesses must lie in.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace diffqkv::emulated {

// A number for each 2^shift bytes of an allocation, in pages that exist only for what a launch accesses.
class NumberTable {
 public:
  static constexpr size_t kPage = 4096;  // numbers
  NumberTable(uintptr_t begin, uintptr_t end, int shift);
  // The numbers from that of byte `p` on, to the end of its page; null if the page does not exist.
  uint32_t* find(uintptr_t p) const {
    const uintptr_t index = (p >> shift_) - first_;
    uint32_t* const page = pages_[index / kPage].load(std::memory_order_acquire);
    return page ? page + index % kPage : nullptr;
  }
  uint32_t* find_or_add(uintptr_t p);
  void remove_pages();
  // The launch that has written numbers last.
  std::atomic<uint64_t> launch{0};

 private:
  uintptr_t first_;
  int shift_;
  std::unique_ptr<std::atomic<uint32_t*>[]> pages_;
  std::vector<size_t> used_;  // under the lock of the pages that are free
};
// Frees the memory of pages that no table has.
void free_number_pages();

// What a launch has done to an allocation: who wrote each byte, and who read each 16 bytes by ld_global_nc.
struct Shadow {
  Shadow(uintptr_t begin, uintptr_t end) : written(begin, end, 0), streamed(begin, end, 4) {}
  NumberTable written, streamed;
};

struct Range {
  uintptr_t begin = 0, end = 0;
  std::shared_ptr<Shadow> shadow;
};

// The allocations that one thread of the system met last.
class RecentMemory {
 public:
  // The allocation that [begin, end) lies in, or null.
  const Range* find(uintptr_t begin, uintptr_t end);

 private:
  const Range* look_up(uintptr_t begin, uintptr_t end);
  uint64_t generation_ = 0;
  unsigned next_ = 0;
  std::array<Range, 8> ranges_;
};
extern std::atomic<uint64_t> memory_generation;  // changes when an allocation goes

inline const Range* RecentMemory::find(uintptr_t begin, uintptr_t end) {
  if (generation_ == memory_generation.load(std::memory_order_acquire)) {
    for (const Range& range : ranges_)
      if (begin >= range.begin && end <= range.end) return &range;
  }
  return look_up(begin, end);
}

// In words, where an address lies that is in none.
std::string describe_address(uintptr_t address);

}  // namespace diffqkv::emulated
