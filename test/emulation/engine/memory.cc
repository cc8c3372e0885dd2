#include "engine/memory.h"

#include <map>
#include <mutex>
#include <shared_mutex>

#include "engine/engine.h"

namespace diffqkv::emulated {
namespace {

std::shared_mutex memory_mutex;
std::map<uintptr_t, Range> memory;  // by begin

struct FreePages {
  std::mutex mutex;
  std::vector<std::unique_ptr<uint32_t[]>> pages;
};
// Never destroyed: threads may still run kernels as the process ends.
FreePages& free_pages() {
  static FreePages* const pages = new FreePages;
  return *pages;
}

}  // namespace

std::atomic<uint64_t> memory_generation{1};

NumberTable::NumberTable(uintptr_t begin, uintptr_t end, int shift)
    : first_((begin >> shift) / kPage * kPage),
      shift_(shift),
      pages_(new std::atomic<uint32_t*>[(((end - 1) >> shift) - first_) / kPage + 1]()) {}

uint32_t* NumberTable::find_or_add(uintptr_t p) {
  if (uint32_t* const numbers = find(p)) return numbers;
  const uintptr_t index = (p >> shift_) - first_;
  FreePages& free = free_pages();
  std::lock_guard lock(free.mutex);
  if (!pages_[index / kPage].load(std::memory_order_relaxed)) {
    // What an earlier launch left on a page is below the numbers of this one.
    if (free.pages.empty()) free.pages.push_back(std::make_unique<uint32_t[]>(kPage));
    used_.push_back(index / kPage);
    pages_[index / kPage].store(free.pages.back().release(), std::memory_order_release);
    free.pages.pop_back();
  }
  return find(p);
}

void NumberTable::remove_pages() {
  FreePages& free = free_pages();
  std::lock_guard lock(free.mutex);
  for (const size_t page : used_) free.pages.emplace_back(pages_[page].exchange(nullptr));
  used_.clear();
}

void free_number_pages() {
  std::lock_guard lock(free_pages().mutex);
  free_pages().pages.clear();
}

const Range* RecentMemory::look_up(uintptr_t begin, uintptr_t end) {
  const uint64_t generation = memory_generation.load(std::memory_order_acquire);
  if (generation_ != generation) ranges_.fill({});
  generation_ = generation;
  std::shared_lock lock(memory_mutex);
  auto after = memory.upper_bound(begin);
  if (after == memory.begin()) return nullptr;
  --after;
  if (end > after->second.end) return nullptr;
  Range& range = ranges_[next_++ % ranges_.size()];
  range = after->second;
  return &range;
}

std::string describe_address(uintptr_t address) {
  std::shared_lock lock(memory_mutex);
  auto after = memory.upper_bound(address);
  if (after == memory.begin()) return "in no allocation";
  --after;
  return "at byte " + std::to_string(address - after->first) + " from the beginning of an allocation of " +
         std::to_string(after->second.end - after->first) + " bytes";
}

void add_memory(const void* p, size_t bytes) {
  if (bytes == 0) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p), end = begin + bytes;
  std::unique_lock lock(memory_mutex);
  memory[begin] = {begin, end, std::make_shared<Shadow>(begin, end)};
}

void remove_memory(const void* p) {
  std::unique_lock lock(memory_mutex);
  memory.erase(reinterpret_cast<uintptr_t>(p));
  memory_generation.fetch_add(1, std::memory_order_release);
}

}  // namespace diffqkv::emulated
