// The mbarriers of a block, and the bulk copies that complete on them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/clock.h"

namespace diffqkv::emulated {

// A phase of a barrier: what was copied in it belongs to the phase until somebody has seen it complete.
struct BulkPhase {
  bool has_copies = false;
  uint16_t site = 0;                        // of the last copy
  std::array<uint32_t, kMaxWarps> lanes{};  // threads that have seen it complete
  std::array<Time, kMaxWarps> since{};      // when the first lane of each warp did, if one did
  // By a thread before the barrier that gave `seen`, the times of all warps that a warp knows.
  bool is_seen_before(const std::array<Time, kMaxWarps>& seen) const {
    for (size_t warp = 0; warp < lanes.size(); ++warp)
      if (lanes[warp] != 0 && since[warp] < seen[warp]) return true;
    return false;
  }
  bool is_seen() const {
    for (const uint32_t warp : lanes)
      if (warp != 0) return true;
    return false;
  }
};

// A copy that has not landed.
struct BulkCopy {
  size_t offset, bytes;  // in shared memory
  const void* global;
  size_t barrier;  // index
  size_t phase;    // index in BulkCopies::phases
  uint16_t site;
};

struct Mbarrier {
  size_t offset;             // in shared memory
  int arrivals;              // of a phase
  int pending;               // arrivals that are still to come in this phase
  int64_t bytes = 0;         // that are still to come
  uint32_t number = 0;       // of the phase; its lowest bit is the parity
  size_t phase, last_phase;  // indices of this one and of the one before
  int fiber;                 // that began it
  uint32_t fences;           // proxy fences of that thread until then
};

struct BulkCopies {
  std::vector<Mbarrier> barriers;
  std::vector<BulkPhase> phases;
  std::vector<BulkCopy> pending;
  std::vector<uint32_t> fences;  // of the proxies, of each thread
  int idle_waits = 0;            // one after the other, while nothing else happened

  void start_block(int num_fibers) {
    barriers.clear();
    phases.assign(1, BulkPhase{});  // the one before all others
    pending.clear();
    fences.assign(static_cast<size_t>(num_fibers), 0);
    idle_waits = 0;
  }
};

}  // namespace diffqkv::emulated
