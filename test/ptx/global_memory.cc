#include "global_memory.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace diffqkv::ptx {

void GlobalMemory::begin_block(uint32_t block, const Clocks* clocks) {
  block_ = block;
  clocks_ = clocks;
  fences_.assign(threads_, {});
  atomics_.assign(threads_, false);
  acquires_.assign(threads_, 0);
}

// Makes range_ and tracked_ those of the access.
std::string GlobalMemory::find(uint64_t address, uint32_t bytes) {
  if (address >= range_.begin && address + bytes <= range_.end) return "";
  const emulated::Range* const range = memory_.find(address, address + bytes);
  if (range == nullptr) {
    char text[32];
    std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(address));
    return std::string("address ") + text + ", " + emulated::describe_address(address);
  }
  range_ = *range;
  const auto found = allocations_.find(range_.begin);
  tracked_ = found == allocations_.end() ? nullptr : &found->second;
  return "";
}

bool GlobalMemory::is_ordered(const Event& event, int thread) const {
  return event.thread == thread || event.clock < clocks_->known(thread / 32, event.thread / 32);
}

bool GlobalMemory::is_released(uint32_t index) const {
  const Event& event = events_[index];
  if (event.atomic) return true;
  const auto found = released_.find(event.block);
  return found != released_.end() &&
         (event.clock < found->second.clocks[event.thread / 32] || index < found->second.events[event.thread]);
}

bool GlobalMemory::has_acquired(int thread) const {
  for (int other = 0; other < static_cast<int>(threads_); ++other) {
    const uint32_t clock = acquires_[static_cast<size_t>(other)];
    if (clock != 0 && (other == thread || clock < clocks_->known(thread / 32, other / 32))) return true;
  }
  return false;
}

// Why a thread must not access what an event has written; nothing if it may.
std::string GlobalMemory::conflict(uint32_t index, int thread, bool is_write) const {
  const Event& event = events_[index];
  const auto told = [&](const char* lack) {
    return std::string(is_write ? "writes" : "reads") + " a byte that thread " + std::to_string(event.thread) +
           " of block " + std::to_string(event.block) + " has written, " + lack;
  };
  if (event.block == block_) return is_ordered(event, thread) ? "" : told("with no barrier between");
  if (!is_released(index)) return told("with no fence and atomic operation after it");
  if (event.atomic && is_write && atomics_[static_cast<size_t>(thread)]) return "";  // it has seen the last value
  return has_acquired(thread) ? "" : told("without an atomic operation and a fence before");
}

std::string GlobalMemory::read(int thread, uint64_t address, uint32_t bytes, bool read_only) {
  std::string wrong = find(address, bytes);
  if (!wrong.empty()) return wrong;
  if (read_only && !tracked_) tracked_ = &allocations_[range_.begin];
  if (!tracked_) return "";
  const size_t first = address - range_.begin;
  if (!tracked_->writers.empty()) {
    uint32_t last = 0;
    for (size_t i = first; i < first + bytes; ++i) {
      const uint32_t index = tracked_->writers[i];
      if (index == last) continue;
      last = index;
      if (index != 0 && read_only) return "ld.global.nc reads a byte that the kernel has written";
      wrong = conflict(index, thread, false);
      if (index != 0 && !wrong.empty()) return wrong;
    }
  }
  if (read_only) {
    if (tracked_->read_only.empty()) tracked_->read_only.resize(range_.end - range_.begin);
    std::memset(&tracked_->read_only[first], 1, bytes);
  }
  return "";
}

std::string GlobalMemory::write(int thread, uint64_t address, uint32_t bytes, const unsigned char* value) {
  const bool atomic = value == nullptr;
  std::string wrong = find(address, bytes);
  if (!wrong.empty()) return wrong;
  if (!tracked_) tracked_ = &allocations_[range_.begin];
  const size_t first = address - range_.begin;
  if (!tracked_->read_only.empty()) {
    for (size_t i = first; i < first + bytes; ++i)
      if (tracked_->read_only[i]) return "writes a byte that ld.global.nc has read in this kernel";
  }
  if (tracked_->writers.empty()) tracked_->writers.resize(range_.end - range_.begin);
  const bool changes = atomic || std::memcmp(reinterpret_cast<const void*>(address), value, bytes) != 0;
  for (size_t i = first; changes && i < first + bytes; ++i) {
    const uint32_t index = tracked_->writers[i];
    if (index == 0 || (atomic && events_[index].atomic)) continue;
    wrong = conflict(index, thread, true);
    if (!wrong.empty()) return wrong;
  }
  if (atomic) {
    atomics_[static_cast<size_t>(thread)] = true;
    release(thread);
  }
  const uint32_t event = static_cast<uint32_t>(events_.size());
  events_.push_back({block_, clocks_->now(thread / 32), static_cast<uint16_t>(thread), atomic});
  for (size_t i = first; i < first + bytes; ++i) tracked_->writers[i] = event;
  return "";
}

void GlobalMemory::fence(int thread) {
  const int warp = thread / 32, num_warps = static_cast<int>(threads_ / 32);
  Fence& fence = fences_[static_cast<size_t>(thread)];
  fence.clocks.resize(static_cast<size_t>(num_warps));
  for (int other = 0; other < num_warps; ++other)
    fence.clocks[static_cast<size_t>(other)] = clocks_->known(warp, other);
  fence.events = static_cast<uint32_t>(events_.size());
  if (atomics_[static_cast<size_t>(thread)]) acquires_[static_cast<size_t>(thread)] = clocks_->now(warp);
}

// An atomic operation releases what is ordered before the thread's last fence.
void GlobalMemory::release(int thread) {
  const Fence& fence = fences_[static_cast<size_t>(thread)];
  if (fence.clocks.empty()) return;
  Released& released = released_[block_];
  released.clocks.resize(fence.clocks.size());
  released.events.resize(threads_);
  for (size_t warp = 0; warp < fence.clocks.size(); ++warp)
    released.clocks[warp] = std::max(released.clocks[warp], fence.clocks[warp]);
  released.events[static_cast<size_t>(thread)] = fence.events;
}

}  // namespace diffqkv::ptx
