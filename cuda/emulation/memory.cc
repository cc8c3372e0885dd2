#include "emulation/memory.h"

#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <shared_mutex>

#include "emulation/engine.h"

namespace diffqkv::emulated {
namespace {

std::shared_mutex memory_mutex;
std::map<uintptr_t, uintptr_t> memory;       // begin -> end
std::atomic<uint64_t> memory_generation{1};  // changes when a range goes

}  // namespace

// Each thread remembers the few that it met last.
Range find_memory(uintptr_t begin, uintptr_t end) {
  struct Recent {
    uint64_t generation = 0;
    unsigned next = 0;
    std::array<Range, 8> ranges{};
  };
  thread_local Recent recent;
  const uint64_t generation = memory_generation.load(std::memory_order_acquire);
  if (recent.generation != generation) recent = Recent{generation, 0, {}};
  for (const Range& range : recent.ranges)
    if (begin >= range.begin && end <= range.end) return range;
  std::shared_lock lock(memory_mutex);
  auto after = memory.upper_bound(begin);
  if (after == memory.begin()) return {};
  --after;
  if (end > after->second) return {};
  const Range range = {after->first, after->second};
  recent.ranges[recent.next++ % recent.ranges.size()] = range;
  return range;
}

std::string describe_address(uintptr_t address) {
  std::shared_lock lock(memory_mutex);
  auto after = memory.upper_bound(address);
  if (after == memory.begin()) return "in no allocation";
  --after;
  return "at byte " + std::to_string(address - after->first) + " from the beginning of an allocation of " +
         std::to_string(after->second - after->first) + " bytes";
}

void add_memory(const void* p, size_t bytes) {
  if (bytes == 0) return;
  std::unique_lock lock(memory_mutex);
  memory[reinterpret_cast<uintptr_t>(p)] = reinterpret_cast<uintptr_t>(p) + bytes;
}

void remove_memory(const void* p) {
  std::unique_lock lock(memory_mutex);
  memory.erase(reinterpret_cast<uintptr_t>(p));
  memory_generation.fetch_add(1, std::memory_order_release);
}

}  // namespace diffqkv::emulated
