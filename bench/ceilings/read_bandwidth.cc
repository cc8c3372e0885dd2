// Read bandwidth: every thread streams through its share of a buffer several times larger than what caches can keep, and
// ORs what it reads. Which access pattern a machine likes best is not known beforehand (the number of streams decides how
// many hardware prefetchers work, software prefetch how many misses are in flight), so several are measured. And copying:
// memcpy, by all threads.
#include <omp.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "ceilings.h"

namespace ceilings {
namespace {

constexpr size_t kBufferBytes = size_t{1536} << 20;
constexpr size_t kHugePage = size_t{2} << 20;

typedef uint64_t Vector __attribute__((vector_size(64)));
constexpr size_t kVectors = kBufferBytes / sizeof(Vector);

// kStreams equal parts of [p, p + count) are read side by side, prefetched kPrefetchBytes ahead (0: not at all).
template <int kStreams, int kPrefetchBytes>
Vector read_all(const Vector* p, size_t count) {
  constexpr int kUnroll = 8 / kStreams;
  Vector sum[8] = {};
  const size_t part = count / kStreams;
  for (size_t i = 0; i + kUnroll <= part; i += kUnroll) {
    for (int s = 0; s < kStreams; ++s) {
      for (int u = 0; u < kUnroll; ++u) {
        const Vector* at = p + s * part + i + u;
        if (kPrefetchBytes > 0) __builtin_prefetch(reinterpret_cast<const char*>(at) + kPrefetchBytes, 0, 3);
        sum[s * kUnroll + u] |= *at;
      }
    }
  }
  Vector all{};
  for (const Vector& s : sum) all |= s;
  return all;
}

struct Pattern {
  const char* name;
  Vector (*read)(const Vector*, size_t);
};
constexpr Pattern kPatterns[] = {
    {"1 stream", read_all<1, 0>},
    {"2 streams, prefetch 1 KiB", read_all<2, 1024>},
    {"4 streams", read_all<4, 0>},
    {"4 streams, prefetch 512 B", read_all<4, 512>},
    {"4 streams, prefetch 1 KiB", read_all<4, 1024>},
};

Vector* buffer() {
  static Vector* data = [] {
    auto* made = static_cast<Vector*>(allocate(kBufferBytes));
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < kVectors; ++i) made[i] = Vector{} + i;
    return made;
  }();
  return data;
}

}  // namespace

void* allocate(size_t bytes) {
  bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* data = std::aligned_alloc(kHugePage, bytes);
  if (data == nullptr) {
    std::fprintf(stderr, "ceilings: cannot allocate %zu bytes\n", bytes);
    std::exit(1);
  }
#ifdef __linux__
  madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return data;
}

size_t bandwidth_buffer_bytes() { return kBufferBytes; }

std::vector<BandwidthSamples> read_bandwidth(int rounds, int only) {
  const Vector* data = buffer();
  std::vector<BandwidthSamples> samples;
  for (const Pattern& pattern : kPatterns) samples.push_back({pattern.name, {}});
  volatile uint64_t sink = 0;
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < samples.size(); ++i) {
      if (only >= 0 && i != static_cast<size_t>(only)) continue;
      uint64_t seen = 0;
      const double start = now_ms();
#pragma omp parallel reduction(| : seen)
      {
        const size_t share = kVectors / omp_get_num_threads();
        const Vector all = kPatterns[i].read(data + share * omp_get_thread_num(), share);
        seen |= all[0] | all[7];
      }
      const double ms = now_ms() - start;
      sink = sink | seen;
      samples[i].gb_per_s.push_back(kBufferBytes / ms / 1e6);
    }
  }
  return samples;
}

std::vector<double> copy_bandwidth(int rounds) {
  char* data = reinterpret_cast<char*>(buffer());
  const size_t half = kBufferBytes / 2;
  std::vector<double> samples;
  for (int round = -1; round < rounds; ++round) {
    const double start = now_ms();
#pragma omp parallel
    {
      const size_t share = half / omp_get_num_threads(), at = share * omp_get_thread_num();
      std::memcpy(data + half + at, data + at, share);
    }
    if (round >= 0) samples.push_back(2.0 * half / (now_ms() - start) / 1e6);
  }
  return samples;
}

}  // namespace ceilings
