#include "engine/traffic.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <tuple>

namespace diffqkv::emulated {

void add_counters(Counters* to, const Counters& from) {
  to->launches += from.launches, to->mma += from.mma;
  to->read_bytes += from.read_bytes, to->written_bytes += from.written_bytes, to->atomics += from.atomics;
  to->read_sectors += from.read_sectors, to->written_sectors += from.written_sectors;
  to->distinct_read_bytes += from.distinct_read_bytes;
  to->shared_accesses += from.shared_accesses, to->bank_conflicts += from.bank_conflicts;
  for (const auto& [line, count] : from.conflicts_by_line) to->conflicts_by_line[line] += count;
  for (const auto& [allocation, bytes] : from.read_bytes_by_allocation)
    to->read_bytes_by_allocation[allocation] += bytes;
}

void Traffic::flush(int warp) {
  using Key = std::tuple<const char*, int, Access, uint32_t>;  // line, kind, how often the lane had been there
  std::map<Key, std::vector<Part>> groups;
  for (uint32_t lane = 0; lane < 32; ++lane) {
    std::vector<Entry>& entries = lanes_[static_cast<size_t>(warp) * 32 + lane];
    std::map<std::tuple<const char*, int, Access>, uint32_t> times;
    for (const Entry& entry : entries) {
      const uint32_t time = times[{entry.site.file, entry.site.line, entry.access}]++;
      groups[{entry.site.file, entry.site.line, entry.access, time}].push_back({entry.address, entry.bytes, lane});
    }
    entries.clear();
  }
  for (auto& [key, parts] : groups) count(std::get<2>(key), {std::get<0>(key), std::get<1>(key)}, parts);
}

void Traffic::count(Access access, Site site, std::vector<Part>& parts) {
  if (access >= Access::shared_load) return count_shared(site, parts);
  if (access == Access::global_atomic) {
    counters_.atomics += parts.size();
    return;
  }
  // Bytes that several lanes share are moved once.
  std::sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) { return a.address < b.address; });
  uint64_t bytes = 0, sectors = 0;
  uintptr_t end = 0, next_sector = 0;
  for (const Part& part : parts) {
    const uintptr_t part_end = part.address + part.bytes;
    bytes += part_end > end ? part_end - std::max(end, part.address) : 0;
    end = std::max(end, part_end);
    const uintptr_t first = std::max(part.address / 32, next_sector), last = (part_end - 1) / 32;
    if (access == Access::global_load) {
      for (uintptr_t sector = first; sector <= last; ++sector) note_read(sector);
    }
    if (last >= first) sectors += last - first + 1, next_sector = last + 1;
  }
  if (access == Access::global_load) {
    counters_.read_bytes += bytes, counters_.read_sectors += sectors;
  } else {
    counters_.written_bytes += bytes, counters_.written_sectors += sectors;
  }
}

void Traffic::note_read(uintptr_t sector) {
  auto bit = read_[sector / kRegionSectors][sector % kRegionSectors];
  if (bit) return;
  bit = true;
  counters_.distinct_read_bytes += 32;
}

// 32 banks of 4 bytes. A warp's access goes in phases of 128 bytes: all lanes at up to 4 bytes each, 16 lanes at 8, 8 lanes
// at 16. A phase takes as many passes as the most words that it wants of one bank.
void Traffic::count_shared(Site site, const std::vector<Part>& parts) {
  const uint32_t lanes_per_phase = parts[0].bytes <= 4 ? 32 : 128 / parts[0].bytes;
  uint64_t conflicts = 0;
  for (uint32_t first = 0; first < 32; first += lanes_per_phase) {
    std::array<std::vector<uintptr_t>, 32> words;
    for (const Part& part : parts) {
      if (part.lane < first || part.lane >= first + lanes_per_phase) continue;
      for (uintptr_t word = part.address / 4; word <= (part.address + part.bytes - 1) / 4; ++word) {
        std::vector<uintptr_t>& bank = words[word % 32];
        if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
      }
    }
    size_t passes = 1;
    for (const auto& bank : words) passes = std::max(passes, bank.size());
    conflicts += passes - 1;
  }
  ++counters_.shared_accesses;
  counters_.bank_conflicts += conflicts;
  if (conflicts > 0) {
    const char* slash = std::strrchr(site.file, '/');
    counters_.conflicts_by_line[std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line)] +=
        conflicts;
  }
}

}  // namespace diffqkv::emulated
