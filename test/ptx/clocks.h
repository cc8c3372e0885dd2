// Which accesses of a block's threads are ordered by barriers, and shared memory that checks it.
//
// Each warp has a vector clock. A barrier joins the clocks of its warps, and bar.warp.sync advances that of its warp. An
// access is ordered before a thread if the thread itself made it or if the thread's clock is past it. Two accesses of
// which one is a write, that are not ordered, are a race, whatever values come out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace diffqkv::ptx {

class Clocks {
 public:
  void reset(int num_warps) {
    num_warps_ = num_warps;
    clocks_.assign(static_cast<size_t>(num_warps) * static_cast<size_t>(num_warps), 0);
    for (int warp = 0; warp < num_warps; ++warp) at(warp, warp) = 1;
  }
  uint32_t now(int warp) const { return clocks_[static_cast<size_t>(warp * num_warps_ + warp)]; }
  // What `warp` knows of `other`: its accesses before that clock are ordered before `warp`.
  uint32_t known(int warp, int other) const { return clocks_[static_cast<size_t>(warp * num_warps_ + other)]; }
  void advance(int warp) { ++at(warp, warp); }
  void join(const std::vector<int>& warps) {
    for (const int warp : warps) advance(warp);
    for (int other = 0; other < num_warps_; ++other) {
      uint32_t latest = 0;
      for (const int warp : warps) latest = latest > at(warp, other) ? latest : at(warp, other);
      for (const int warp : warps) at(warp, other) = latest;
    }
  }

 private:
  uint32_t& at(int warp, int other) { return clocks_[static_cast<size_t>(warp * num_warps_ + other)]; }

  int num_warps_ = 0;
  std::vector<uint32_t> clocks_;
};

// An access to a word.
struct Stamp {
  uint32_t clock = 0;  // of its warp; 0: none
  uint16_t thread = 0;
  uint8_t bytes = 0;  // of the word, a bit each
  bool atomic = false;
};

enum class ByteState : uint8_t { unwritten, written, in_flight };

class SharedMemory {
 public:
  void reset(size_t bytes) {
    size_ = bytes;
    const size_t words = (bytes + 3) / 4;
    data_.assign((words + 4) * 4, 0xff);
    states_.assign((words + 4) * 4, static_cast<uint8_t>(ByteState::unwritten));
    writers_.assign(words, Stamp{});
    readers_.assign(words, Readers{});
  }
  size_t size() const { return size_; }
  unsigned char* data(uint32_t offset) { return data_.data() + offset; }
  // What a bulk copy has written is ordered by the waits for it alone.
  void forget_writers(uint32_t offset, uint32_t bytes) {
    std::fill_n(writers_.begin() + offset / 4, bytes / 4, Stamp{});
  }
  void set_state(uint32_t offset, uint32_t bytes, ByteState state) {
    std::memset(states_.data() + offset, static_cast<int>(state), bytes);
  }
  // Null if the bytes whose bits are set in `used` can be read, else why not.
  const char* unreadable(uint32_t offset, uint32_t bytes, uint32_t used = ~0u) const {
    for (uint32_t i = 0; i < bytes; ++i) {
      const ByteState state = static_cast<ByteState>(states_[offset + i]);
      if (state == ByteState::written || !(used >> i & 1)) continue;
      return state == ByteState::unwritten ? "that nobody has written" : "to which a copy is under way";
    }
    return nullptr;
  }
  // Whether no cp.async is under way to any of the bytes.
  bool idle(uint32_t offset, uint32_t bytes) const {
    for (uint32_t i = 0; i < bytes; ++i)
      if (static_cast<ByteState>(states_[offset + i]) == ByteState::in_flight) return false;
    return true;
  }
  // Records an access of a thread of `warp`. Empty, or with whom it races. `thread` < 0: of the warp as a whole.
  std::string record_read(const Clocks& clocks, int warp, int thread, uint32_t offset, uint32_t bytes,
                          uint32_t used = ~0u) {
    return for_words(offset, bytes, used, [&](size_t word, uint8_t mask) -> std::string {
      const Stamp& writer = writers_[word];
      if (races(clocks, warp, thread, writer, mask)) return told("written", writer);
      const Stamp stamp = {clocks.now(warp), static_cast<uint16_t>(thread < 0 ? kWholeWarp + warp : thread), mask,
                           false};
      Readers& readers = readers_[word];
      // Of two readers that are not ordered both are kept; of three, two.
      Stamp& first = readers.stamps[0];
      const bool replaces = first.clock == 0 || (first.thread == stamp.thread && first.clock == stamp.clock) ||
                            !races(clocks, warp, thread, first, 0xff);
      Stamp& kept = readers.stamps[replaces ? 0 : 1];
      const bool same = kept.thread == stamp.thread && kept.clock == stamp.clock;
      kept = stamp;
      if (same) kept.bytes |= mask;
      return "";
    });
  }
  std::string record_write(const Clocks& clocks, int warp, int thread, uint32_t offset, uint32_t bytes, bool atomic) {
    return for_words(offset, bytes, ~0u, [&](size_t word, uint8_t mask) -> std::string {
      Stamp& writer = writers_[word];
      if (!(atomic && writer.atomic) && races(clocks, warp, thread, writer, mask)) return told("written", writer);
      for (const Stamp& reader : readers_[word].stamps)
        if (races(clocks, warp, thread, reader, mask)) return told("read", reader);
      writer = {clocks.now(warp), static_cast<uint16_t>(thread), mask, atomic};
      return "";
    });
  }

 private:
  static constexpr int kWholeWarp = 1 << 12;  // added to the warp, instead of a thread
  struct Readers {
    Stamp stamps[2];
  };

  template <typename Access>
  std::string for_words(uint32_t offset, uint32_t bytes, uint32_t used, const Access& access) {
    for (uint32_t at = offset; at < offset + bytes;) {
      const uint32_t in_word = at % 4, count = std::min(4 - in_word, offset + bytes - at);
      const uint32_t mask = (used >> (at - offset) & ((1u << count) - 1)) << in_word;
      std::string wrong = mask ? access(at / 4, static_cast<uint8_t>(mask)) : "";
      if (!wrong.empty()) return wrong;
      at += count;
    }
    return "";
  }
  static bool races(const Clocks& clocks, int warp, int thread, const Stamp& other, uint8_t mask) {
    if (other.clock == 0 || !(other.bytes & mask)) return false;
    const int other_warp = other.thread >= kWholeWarp ? other.thread - kWholeWarp : other.thread / 32;
    if (other.thread == thread) return false;
    return other.clock >= clocks.known(warp, other_warp);
  }
  static std::string told(const char* what, const Stamp& other) {
    const std::string who = other.thread >= kWholeWarp ? "warp " + std::to_string(other.thread - kWholeWarp)
                                                       : "thread " + std::to_string(other.thread);
    return std::string("that ") + who + " has " + what + ", with no barrier between";
  }

  size_t size_ = 0;
  std::vector<unsigned char> data_;
  std::vector<uint8_t> states_;
  std::vector<Stamp> writers_;
  std::vector<Readers> readers_;
};

}  // namespace diffqkv::ptx
