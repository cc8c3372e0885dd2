#include "engine/shared_memory.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "engine/sites.h"

namespace diffqkv::emulated {
namespace {

template <typename T>
T* zeroed(size_t count) {
  void* p = std::calloc(count, sizeof(T));
  if (!p) throw std::bad_alloc();
  return static_cast<T*>(p);
}

}  // namespace

void SharedMemory::start_block(size_t bytes, int num_warps) {
  for (const Atomics& atomics : atomics_) cells_[atomics.cell].write = 0;
  atomics_.clear();
  for (const Region& region : bulk_regions_) {
    Cell* const cell = cells_at(region.offset);
    for (size_t i = 0; i < region.bytes >> shift_; ++i) {
      if ((cell[i].write & kNever) == kNever) cell[i].write = 0;
    }
  }
  bulk_regions_.clear();
  writers_.clear();
  bytes_ = bytes;
  num_warps_ = static_cast<size_t>(num_warps);
  shift_ = 2;
  if (bytes > capacity_) {
    storage_ = std::make_unique<unsigned char[]>(bytes + 128);
    const uintptr_t at = reinterpret_cast<uintptr_t>(storage_.get());
    data_ = storage_.get() + ((at + 127) / 128 * 128 - at);
    cells_.reset(zeroed<Cell>(bytes + 16));
    capacity_ = bytes;
  }
  if ((bytes + 16) * num_warps_ > rows_capacity_) {
    rows_capacity_ = (bytes + 16) * num_warps_;
    rows_.reset(zeroed<uint64_t>(rows_capacity_));
  }
}

void SharedMemory::forget() {
  if (capacity_ == 0) return;
  std::memset(static_cast<void*>(cells_.get()), 0, (capacity_ + 16) * sizeof(Cell));
  std::memset(rows_.get(), 0, rows_capacity_ * sizeof(uint64_t));
  atomics_.clear();
  bulk_regions_.clear();
}

bool SharedMemory::ordered(uint64_t record, uint64_t access) const {
  if (record >> 32 < clock_.seen(warp_of(access))[static_cast<size_t>(warp_of(record))]) return true;
  return ((record ^ access) & kThread) == 0 && lane_of(access) != SharedAccess::kSeveralLanes;
}

// One warp's record of two accesses, the second after the first.
uint64_t SharedMemory::joined(uint64_t record, uint64_t access) {
  if (record >> 32 != access >> 32 || lane_of(record) == lane_of(access)) return access;
  return (access & ~(uint64_t{63} << 5)) | uint64_t{SharedAccess::kSeveralLanes} << 5;
}

bool SharedMemory::fail(const char* what, uint64_t record) {
  const int lane = static_cast<int>(lane_of(record));
  const std::string who = lane == SharedAccess::kSeveralLanes ? "warp " + std::to_string(warp_of(record))
                                                              : "thread " + std::to_string(warp_of(record) * 32 + lane);
  const std::string where = text_of(site_of(static_cast<uint16_t>(record >> 16)));
  if (record & kBulk) {
    conflict_ = "that a bulk copy (" + text_of(site_of(bulk_.phases[index_of(record)].site)) +
                ") may still write, as the thread has not seen its phase complete";
  } else if (record & kCopying) {
    conflict_ = "that a cp.async of " + who + " (" + where + ") may still write, as that thread has not waited for it";
  } else {
    conflict_ = "that " + who + " " + what + " (" + where + ") with no barrier between them";
  }
  return false;
}

void SharedMemory::split_granules() {
  for (size_t word = (bytes_ + 3) / 4; word-- > 0;) {
    const Cell cell = cells_[word];
    if (cell.write < start()) {
      for (size_t i = 0; i < 4; ++i) cells_[4 * word + i] = {0, cell.read};
    } else {
      for (size_t i = 0; i < 4; ++i) cells_[4 * word + i] = cell;
    }
    if (cell.read < start()) continue;
    std::array<uint64_t, kMaxWarps> from;
    std::memcpy(from.data(), row(&cells_[word]), num_warps_ * sizeof(uint64_t));
    for (size_t i = 0; i < 4; ++i) std::memcpy(row(&cells_[4 * word + i]), from.data(), num_warps_ * sizeof(uint64_t));
  }
  const size_t num_atomics = atomics_.size();
  for (size_t i = 0; i < num_atomics; ++i) {
    const size_t word = atomics_[i].cell;
    atomics_[i].cell = 4 * word;
    for (size_t byte = 1; byte < 4; ++byte) {
      cells_[4 * word + byte].write = kNever | kAtomics | atomics_.size() << 5;
      atomics_.push_back(atomics_[i]);
      atomics_.back().cell = 4 * word + byte;
    }
  }
  shift_ = 0;
}

// Whether the last write, which is not before the last barrier of all, happened before `access`.
bool SharedMemory::after_write(const Cell& cell, uint64_t access) {
  if (cell.write < start()) {
    conflict_ = "that nobody wrote";
    return false;
  }
  if ((cell.write & kNever) == kNever && (cell.write & kBulk) != 0) {
    return after_phase(bulk_.phases[index_of(cell.write)], access) || fail("copies", cell.write);
  }
  if (cell.write & kCopying) return fail("copies", cell.write);
  if ((cell.write & kAtomics) == 0) return ordered(cell.write, access) || fail("wrote", cell.write);
  const Atomics& atomics = atomics_[index_of(cell.write)];
  if (atomics.write >= start() && !ordered(atomics.write, access)) return fail("wrote", atomics.write);
  for (size_t warp = 0; warp < num_warps_; ++warp) {
    const uint64_t last = atomics.last[warp];
    if (last >= start() && !ordered(last, access)) return fail("changed by an atomic", last);
  }
  return true;
}

// Whether the access is by a thread that has seen the phase complete, or after one that has. If lanes of a warp access
// together, one of them is enough: is_seen_by_warp() asks for the others.
bool SharedMemory::after_phase(const BulkPhase& phase, uint64_t access) {
  const size_t own = static_cast<size_t>(warp_of(access));
  const uint64_t lane = lane_of(access);
  const uint32_t lanes = lane == SharedAccess::kSeveralLanes ? ~0u : 1u << lane;
  if ((phase.lanes[own] & lanes) != 0) return true;
  return phase.is_seen_before(clock_.seen(static_cast<int>(own)));
}

bool SharedMemory::after_reads(const Cell& cell, uint64_t access) {
  if ((cell.read & kManyWarps) == 0) return ordered(cell.read, access) || fail("read", cell.read);
  const uint64_t* const reads = row(&cell);
  for (size_t warp = 0; warp < num_warps_; ++warp)
    if (reads[warp] >= all_synchronized() && !ordered(reads[warp], access)) return fail("read", reads[warp]);
  return true;
}

void SharedMemory::add_read(Cell* cell, uint64_t access) {
  if (cell->read < all_synchronized()) {
    cell->read = access;
    return;
  }
  if (((cell->read ^ access) & (kWarp | kFlags)) == 0) {
    cell->read = joined(cell->read, access);
    return;
  }
  uint64_t* const reads = row(cell);
  if ((cell->read & kManyWarps) == 0) {
    std::memset(reads, 0, num_warps_ * sizeof(uint64_t));
    reads[warp_of(cell->read)] = cell->read;
  }
  uint64_t& own = reads[warp_of(access)];
  own = joined(own, access);
  cell->read = access | kManyWarps;
}

bool SharedMemory::load(size_t offset, size_t bytes, SharedAccess a) {
  if (bytes < 4 && shift_ != 0) split_granules();
  const uint64_t access = a.record, start = this->start(), all_synchronized = this->all_synchronized();
  const std::array<Time, kMaxWarps>& seen = clock_.seen(warp_of(access));
  Cell* cell = cells_at(offset);
  for (const Cell* const end = cell + (bytes >> shift_); cell != end; ++cell) {
    const uint64_t write = cell->write;
    const bool fine = write - start < all_synchronized - start ||
                      (write >= start && write >> 32 < seen[static_cast<size_t>(warp_of(write))]);
    if (!fine && !after_write(*cell, access)) return false;
    const uint64_t read = cell->read;
    if (read < all_synchronized) {
      cell->read = access;
    } else if (read != access) {
      add_read(cell, access);
    }
  }
  return true;
}

bool SharedMemory::store(size_t offset, size_t bytes, SharedAccess a) {
  if (bytes < 4 && shift_ != 0) split_granules();
  const uint64_t access = a.record, all_synchronized = this->all_synchronized();
  Cell* cell = cells_at(offset);
  for (const Cell* const end = cell + (bytes >> shift_); cell != end; ++cell) {
    if (cell->write >= all_synchronized && !after_write(*cell, access)) return false;
    if (cell->read >= all_synchronized && !after_reads(*cell, access)) return false;
    *cell = {access, 0};
  }
  if (!bulk_.barriers.empty()) {
    if (writers_.empty()) writers_.assign(bytes_ / 4 + 4, 0);
    const uint64_t thread = (access >> 11 & 31) * 32 + lane_of(access);
    for (size_t granule = offset / 4; granule <= (offset + bytes - 1) / 4; ++granule)
      writers_[granule] = (thread + 1) | uint64_t{bulk_.fences[thread]} << 16;
  }
  return true;
}

bool SharedMemory::atomic(size_t offset, size_t bytes, SharedAccess a) {
  const uint64_t access = a.record, all_synchronized = this->all_synchronized();
  Cell* cell = cells_at(offset);
  for (const Cell* const end = cell + (bytes >> shift_); cell != end; ++cell) {
    if (cell->read >= all_synchronized && !after_reads(*cell, access)) return false;
    if ((cell->write & kNever) != kNever || (cell->write & kAtomics) == 0) {
      if (!after_write(*cell, access)) return false;
      atomics_.push_back({static_cast<size_t>(cell - cells_.get()), cell->write, {}});
      cell->write = kNever | kAtomics | (atomics_.size() - 1) << 5;
    }
    Atomics& atomics = atomics_[index_of(cell->write)];
    if (atomics.write >= all_synchronized && !ordered(atomics.write, access)) return fail("wrote", atomics.write);
    uint64_t& last = atomics.last[static_cast<size_t>(warp_of(access))];
    last = joined(last, access);
  }
  return true;
}

bool SharedMemory::begin_copy(size_t offset, SharedAccess access) {
  if (!store(offset, 16, access)) return false;
  Cell* const cell = cells_at(offset);
  for (int i = 0; i < 16 >> shift_; ++i) cell[i].write = access.record | kNever | kCopying;
  return true;
}

bool SharedMemory::is_seen_by_warp(size_t offset, SharedAccess access) {
  const uint64_t write = cells_at(offset)->write;
  if ((write & kNever) != kNever || (write & kBulk) == 0) return true;
  const size_t warp = static_cast<size_t>(warp_of(access.record));
  const BulkPhase& phase = bulk_.phases[index_of(write)];
  return phase.lanes[warp] == ~0u || phase.is_seen_before(clock_.seen(static_cast<int>(warp))) || fail("copies", write);
}

bool SharedMemory::begin_bulk_copy(size_t offset, size_t bytes, size_t phase, SharedAccess access) {
  for (size_t granule = offset / 4; !writers_.empty() && granule < (offset + bytes) / 4; ++granule) {
    const uint64_t writer = writers_[granule], thread = (writer & 0xffff) - 1;
    if (writer != 0 && writer >> 16 == bulk_.fences[thread]) {
      conflict_ = "that thread " + std::to_string(thread) + " wrote, with no fence_proxy_async of that thread since";
      return false;
    }
  }
  for (size_t at = offset; at < offset + bytes; at += 16) {
    if (!store(at, 16, access)) return false;
    Cell* const cell = cells_at(at);
    for (int i = 0; i < 16 >> shift_; ++i) cell[i].write = kNever | kBulk | phase << 5;
  }
  if (!writers_.empty()) std::fill_n(writers_.begin() + static_cast<std::ptrdiff_t>(offset / 4), bytes / 4, 0);
  bulk_regions_.push_back({offset, bytes});
  return true;
}

void SharedMemory::end_copy(size_t offset, SharedAccess access) {
  Cell* const cell = cells_at(offset);
  for (int i = 0; i < 16 >> shift_; ++i) cell[i].write = access.record;
}

void SharedMemory::abandon_copy(size_t offset) {
  Cell* const cell = cells_at(offset);
  for (int i = 0; i < 16 >> shift_; ++i) cell[i].write = 0;
}

}  // namespace diffqkv::emulated
