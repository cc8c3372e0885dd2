// What counting needs: the accesses of a warp's lanes since they last stood together, matched to warp-wide accesses.
#pragma once

#include <bitset>
#include <unordered_map>
#include <vector>

#include "engine/engine.h"

namespace diffqkv::emulated {

void add_counters(Counters* to, const Counters& from);

class Traffic {
 public:
  struct Entry {
    uintptr_t address;
    uint32_t bytes;
    Access access;
    Site site;
  };

  explicit Traffic(int threads) : lanes_(static_cast<size_t>(threads)) {}
  void add(int thread, const Entry& entry) { lanes_[static_cast<size_t>(thread)].push_back(entry); }
  void add_mma() { ++counters_.mma; }
  void read_from(uintptr_t allocation, size_t bytes) {
    counters_.read_bytes_by_allocation[reinterpret_cast<const void*>(allocation)] += bytes;
  }
  // The lanes of a warp stand together: the n-th access of each lane at one line was one access of the warp.
  void flush(int warp);
  Counters& counters() { return counters_; }

 private:
  struct Part {
    uintptr_t address;
    uint32_t bytes, lane;
  };
  void count(Access access, Site site, std::vector<Part>& parts);
  void count_shared(Site site, const std::vector<Part>& parts);
  void note_read(uintptr_t sector);

  static constexpr uintptr_t kRegionSectors = 1024;
  std::unordered_map<uintptr_t, std::bitset<kRegionSectors>> read_;  // by the number of the region: its sectors
  std::vector<std::vector<Entry>> lanes_;
  Counters counters_;
};

}  // namespace diffqkv::emulated
