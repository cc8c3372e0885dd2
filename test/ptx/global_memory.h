// Global memory as one launch sees it: every access lies in an allocation of the emulation; what another block wrote is
// seen only if a thread there released it, by a fence and then an atomic operation, and a thread here acquired it, by an
// atomic operation and then a fence, and barriers order the rest; and no thread writes what ld.global.nc reads.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "clocks.h"
#include "engine/memory.h"

namespace diffqkv::ptx {

class GlobalMemory {
 public:
  explicit GlobalMemory(unsigned threads) : threads_(threads) {}

  // A block begins; the one before has ended.
  void begin_block(uint32_t block, const Clocks* clocks);
  // Each returns nothing where all is well, else what is wrong.
  std::string read(int thread, uint64_t address, uint32_t bytes, bool read_only);
  // `value`: what is about to be written; null: by an atomic operation. Threads may write the same value unordered.
  std::string write(int thread, uint64_t address, uint32_t bytes, const unsigned char* value);
  void fence(int thread);

 private:
  struct Event {
    uint32_t block, clock;
    uint16_t thread;
    bool atomic;
  };
  // What is known of an allocation that is written, or read by ld.global.nc.
  struct Tracked {
    std::vector<uint32_t> writers;   // of each byte: an index of events_, or 0
    std::vector<uint8_t> read_only;  // whether ld.global.nc has read it
  };
  // What is ordered before a fence: of each warp what it wrote before a clock; and of the thread itself its events before
  // an index.
  struct Fence {
    std::vector<uint32_t> clocks;
    uint32_t events = 0;
  };
  // What atomic operations have released of a block.
  struct Released {
    std::vector<uint32_t> clocks;  // of each warp
    std::vector<uint32_t> events;  // of each thread
  };

  std::string find(uint64_t address, uint32_t bytes);
  bool is_ordered(const Event& event, int thread) const;
  bool is_released(uint32_t index) const;
  bool has_acquired(int thread) const;
  void release(int thread);
  std::string conflict(uint32_t index, int thread, bool is_write) const;

  unsigned threads_;
  uint32_t block_ = 0;
  const Clocks* clocks_ = nullptr;
  emulated::RecentMemory memory_;
  emulated::Range range_;       // of the last access
  Tracked* tracked_ = nullptr;  // of that range; null if there is nothing to know
  std::map<uintptr_t, Tracked> allocations_;
  std::vector<Event> events_{1};
  std::map<uint32_t, Released> released_;  // by block
  // Of the running block, for each thread: its last fence; whether it has made an atomic operation; and the clock at its
  // last fence after one, or 0.
  std::vector<Fence> fences_;
  std::vector<bool> atomics_;
  std::vector<uint32_t> acquires_;
};

}  // namespace diffqkv::ptx
