// The shared memory of a block, and who accessed what of it last: a read of what nobody wrote, or two accesses of the same
// bytes that no barrier orders, is a conflict, whatever the values are.
//
// A granule of 4 bytes has a cell: its last write, and its reads since. If several warps have read it, their last reads
// are in a row beside the cell. At the first access of 1 or 2 bytes, granules of the block become single bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "engine/bulk_copies.h"
#include "engine/clock.h"

namespace diffqkv::emulated {

// Who accesses: a thread, or several lanes of a warp at once.
struct SharedAccess {
  static constexpr int kSeveralLanes = 32;
  SharedAccess(Time time, uint16_t site, int warp, int lane)
      : record(uint64_t{time} << 32 | uint64_t{site} << 16 | static_cast<uint64_t>(warp) << 11 |
               static_cast<uint64_t>(lane) << 5) {}
  uint64_t record;
};

class SharedMemory {
 public:
  SharedMemory(const BlockClock& clock, const BulkCopies& bulk) : clock_(clock), bulk_(bulk) {}
  // For a block of so many warps. What the cells have of earlier blocks is older than the clock's start.
  void start_block(size_t bytes, int num_warps);
  // The cells forget everything: to be called when the clock is reset.
  void forget();

  unsigned char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

  // Each is false on a conflict, which conflict() then describes. `offset`: aligned to `bytes`, a power of two.
  bool load(size_t offset, size_t bytes, SharedAccess access);
  bool store(size_t offset, size_t bytes, SharedAccess access);
  // Atomics are ordered among each other.
  bool atomic(size_t offset, size_t bytes, SharedAccess access);
  // A cp.async of 16 bytes: from its issue to its end nobody may access them.
  bool begin_copy(size_t offset, SharedAccess access);
  void end_copy(size_t offset, SharedAccess access);
  void abandon_copy(size_t offset);
  // A bulk copy in a phase: from its issue on its bytes are the phase's.
  bool begin_bulk_copy(size_t offset, size_t bytes, size_t phase, SharedAccess access);
  // Whether all lanes of a warp that read 16 bytes together have seen the phase of the bulk copy there complete.
  bool is_seen_by_warp(size_t offset, SharedAccess access);
  const std::string& conflict() const { return conflict_; }

 private:
  // A record is: time, place in the source, warp, lane, flags. Marks have a time that is after all others.
  struct Cell {
    uint64_t write, read;
  };
  // A granule that atomics have accessed since its last plain write.
  struct Atomics {
    size_t cell;
    uint64_t write;
    std::array<uint64_t, kMaxWarps> last;
  };
  static constexpr uint64_t kFlags = 31, kManyWarps = 1, kCopying = 2, kAtomics = 4, kBulk = 8;
  static constexpr uint64_t kThread = 0xffe0, kWarp = 0xf800;
  static constexpr uint64_t kNever = uint64_t{0xffffffffu} << 32;
  static int warp_of(uint64_t record) { return static_cast<int>(record >> 11 & 31); }
  static uint64_t lane_of(uint64_t record) { return record >> 5 & 63; }
  static uint64_t index_of(uint64_t atomics) { return (atomics & 0xffffffffu) >> 5; }

  Cell* cells_at(size_t offset) { return cells_.get() + (offset >> shift_); }
  uint64_t* row(const Cell* cell) { return rows_.get() + static_cast<size_t>(cell - cells_.get()) * num_warps_; }
  uint64_t start() const { return uint64_t{clock_.start()} << 32; }
  uint64_t all_synchronized() const { return uint64_t{clock_.all_synchronized()} << 32; }
  // Whether an access that is on record happened before `access`.
  bool ordered(uint64_t record, uint64_t access) const;
  static uint64_t joined(uint64_t record, uint64_t access);
  void add_read(Cell* cell, uint64_t access);
  bool after_write(const Cell& cell, uint64_t access);
  bool after_reads(const Cell& cell, uint64_t access);
  bool after_phase(const BulkPhase& phase, uint64_t access);
  bool fail(const char* what, uint64_t record);
  void split_granules();

  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  template <typename T>
  using Zeroed = std::unique_ptr<T[], Free>;  // of calloc: pages that nothing touches cost nothing

  const BlockClock& clock_;
  const BulkCopies& bulk_;
  struct Region {
    size_t offset, bytes;
  };
  std::vector<Region> bulk_regions_;  // that bulk copies of this block wrote
  // Of each granule of 4 bytes its last writer and how many proxy fences that thread had made then, if the block has
  // mbarriers: 1 + thread, and fences from bit 16 on. What was written before the first mbarrier counts as fenced.
  std::vector<uint64_t> writers_;
  std::unique_ptr<unsigned char[]> storage_;
  unsigned char* data_ = nullptr;
  size_t bytes_ = 0, capacity_ = 0, rows_capacity_ = 0, num_warps_ = 1;
  int shift_ = 2;  // log2 of a granule's bytes
  Zeroed<Cell> cells_;
  Zeroed<uint64_t> rows_;  // [cell][warp]
  std::vector<Atomics> atomics_;
  std::string conflict_;
};

}  // namespace diffqkv::emulated
