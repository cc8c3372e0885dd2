#include "backend/cpu/system/memory.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <string>

#include "backend/cpu/system/control_group.h"
#include "backend/error.h"

namespace diffqkv::cpu {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kHugePage = size_t{2} << 20;

// Bytes that allocate_memory has mapped and that are not freed yet, whether accessed or not.
std::atomic<uint64_t> mapped_bytes{0};

bool is_mapped(size_t bytes) { return bytes >= kHugePage; }

uint64_t meminfo_bytes(const char* key) {
  std::ifstream file("/proc/meminfo");
  std::string name;
  uint64_t kibibytes = 0;
  while (file >> name >> kibibytes) {
    if (name == key) return kibibytes << 10;
    file.ignore(64, '\n');
  }
  return kNoLimit;
}

// The bytes that can be allocated now. Mapped memory that was never accessed is reserved, although
// the system still counts it as free. The private resident pages of this process are an upper bound
// for how much was accessed.
uint64_t available_memory() {
  const uint64_t free_bytes = std::min(meminfo_bytes("MemAvailable:"), control_group_memory().available);
  uint64_t size = 0;
  uint64_t resident = 0;
  uint64_t shared = 0;
  std::ifstream("/proc/self/statm") >> size >> resident >> shared;
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t touched = (resident - std::min(resident, shared)) * page;
  const uint64_t mapped = mapped_bytes.load();
  const uint64_t promised = mapped - std::min(mapped, touched);
  const uint64_t available = free_bytes - std::min(free_bytes, promised);
  rlimit address_space;
  if (getrlimit(RLIMIT_AS, &address_space) != 0 || address_space.rlim_cur == RLIM_INFINITY) return available;
  return std::min<uint64_t>(available,
                            address_space.rlim_cur - std::min<uint64_t>(address_space.rlim_cur, size * page));
}

[[noreturn]] void fail_out_of_memory(size_t bytes) {
  fail(
      ErrorCode::out_of_memory,
      "out of memory on cpu: asked for %zu bytes, %llu bytes are free; dispose tensors, sessions or models, or ask for "
      "less",
      bytes, static_cast<unsigned long long>(available_memory()));
}

// mmap aligns to a page only. So map one huge page more, and unmap both ends.
void* map_aligned(size_t bytes) {
  const size_t span = bytes + kHugePage;
  void* base = mmap(nullptr, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(base);
  const uintptr_t aligned = (begin + kHugePage - 1) & ~(kHugePage - 1);
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t end = (aligned + bytes + page - 1) & ~(page - 1);
  if (aligned > begin) munmap(base, aligned - begin);
  if (begin + span > end) munmap(reinterpret_cast<void*>(end), begin + span - end);
  return reinterpret_cast<void*>(aligned);
}

}  // namespace

uint64_t total_memory() { return std::min(meminfo_bytes("MemTotal:"), control_group_memory().total); }

void* allocate_memory(size_t bytes) {
  void* data = nullptr;
  if (is_mapped(bytes)) {
    if (bytes > SIZE_MAX / 2 || bytes > available_memory()) fail_out_of_memory(bytes);
    data = map_aligned(bytes);
    if (!data) fail_out_of_memory(bytes);
    // Weights and caches are read sequentially. With 4 KiB pages, TLB misses would limit the
    // bandwidth. This is advice, so its failure is not an error.
    madvise(data, bytes, MADV_HUGEPAGE);
    mapped_bytes += bytes;
    return data;
  }
  if (posix_memalign(&data, kAlignment, std::max<size_t>(bytes, 1)) != 0) fail_out_of_memory(bytes);
  return data;
}

void free_memory(void* data, size_t bytes) noexcept {
  if (!data) return;
  if (!is_mapped(bytes)) return std::free(data);
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  munmap(data, (bytes + page - 1) & ~(page - 1));
  mapped_bytes -= bytes;
}

}  // namespace diffqkv::cpu
