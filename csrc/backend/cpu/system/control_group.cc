#include "backend/cpu/system/control_group.h"

#include <algorithm>
#include <climits>
#include <fstream>
#include <sstream>
#include <string>

namespace diffqkv::cpu {
namespace {

// Reads a file with one number. "max" or a missing file means no limit.
uint64_t read_number(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value && value >= 0 ? static_cast<uint64_t>(value) : kNoLimit;
}

uint64_t read_field(const std::string& path, const char* key) {
  std::ifstream file(path);
  std::string name;
  uint64_t value = 0;
  while (file >> name >> value) {
    if (name == key) return value;
  }
  return 0;
}

// Whether a line of /proc/self/cgroup, such as "4:cpu,cpuacct:/path", names the controller.
bool names_controller(const std::string& line, const std::string& controller) {
  const size_t first = line.find(':');
  const size_t second = line.find(':', first + 1);
  if (second == std::string::npos) return false;
  std::istringstream names(line.substr(first + 1, second - first - 1));
  std::string name;
  while (std::getline(names, name, ',')) {
    if (name == controller) return true;
  }
  return false;
}

// Calls f(directory, is_v2) for each group of this process that `controller` may limit, from its
// own group to the root.
template <typename F>
void for_each_group(const std::string& root, const std::string& controller, const F& f) {
  std::ifstream groups(root + "/proc/self/cgroup");
  std::string line;
  while (std::getline(groups, line)) {
    const bool v2 = line.compare(0, 3, "0::") == 0;
    if (!v2 && !names_controller(line, controller)) continue;
    const std::string hierarchy = root + "/sys/fs/cgroup" + (v2 ? "" : "/" + controller);
    std::string path = line.substr(line.find(':', line.find(':') + 1) + 1);
    while (true) {
      f(hierarchy + (path == "/" ? "" : path) + "/", v2);
      const size_t slash = path.rfind('/');
      if (path.size() <= 1 || slash == std::string::npos) break;
      path.resize(std::max<size_t>(slash, 1));
    }
  }
}

}  // namespace

MemoryLimit control_group_memory(const std::string& root) {
  MemoryLimit limit;
  for_each_group(root, "memory", [&](const std::string& directory, bool v2) {
    const uint64_t total = read_number(directory + (v2 ? "memory.max" : "memory.limit_in_bytes"));
    const uint64_t used = read_number(directory + (v2 ? "memory.current" : "memory.usage_in_bytes"));
    if (total == kNoLimit || used == kNoLimit) return;
    // The page cache counts as used, but the kernel can reclaim it.
    const uint64_t cache = read_field(directory + "memory.stat", v2 ? "inactive_file" : "total_inactive_file");
    const uint64_t held = used - std::min(used, cache);
    limit.total = std::min(limit.total, total);
    limit.available = std::min(limit.available, total - std::min(total, held));
  });
  return limit;
}

int control_group_cpus(const std::string& root) {
  int cpus = INT_MAX;
  for_each_group(root, "cpu", [&](const std::string& directory, bool v2) {
    uint64_t quota = kNoLimit;   // microseconds of CPU time in each period
    uint64_t period = kNoLimit;  // microseconds
    if (v2) {
      std::ifstream file(directory + "cpu.max");
      if (!(file >> quota >> period)) return;  // "max 100000"
    } else {
      quota = read_number(directory + "cpu.cfs_quota_us");  // -1: no limit
      period = read_number(directory + "cpu.cfs_period_us");
    }
    if (quota == kNoLimit || period == kNoLimit || period == 0) return;
    cpus = static_cast<int>(std::clamp<uint64_t>((quota + period - 1) / period, 1, static_cast<uint64_t>(cpus)));
  });
  return cpus;
}

}  // namespace diffqkv::cpu
