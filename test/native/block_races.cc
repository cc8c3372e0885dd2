// Races between blocks: a block sees what another stored in the same launch only through a fence and an atomic there, and
// an atomic and a fence here.
#include <set>

#include "finding.h"
#include "hazard.h"
#include "reductions.h"

namespace diffqkv::check {
namespace {

constexpr int kThreads = 64;
constexpr int kBlocks = 5;

// The steps of "the last block combines". Thread 0 has an atomic in the middle.
struct Steps {
  bool fence_of_all_before = false;  // each thread's, before the barrier
  bool barrier_before = true;
  bool fence_before = true;  // thread 0's
  bool fence_after = true;   // thread 0's
  bool barrier_after = true;
  bool fence_of_all_after = false;  // each thread's, after the barrier
};

__device__ __forceinline__ void store_part(const HazardMemory& memory) {
  const int word = blockIdx.x * blockDim.x + threadIdx.x;
  st_global(memory.words + 1 + word, ld_global(memory.in + word));
}
template <Steps kSteps>
__device__ __forceinline__ bool arrive(const HazardMemory& memory) {
  if (kSteps.fence_before) __threadfence();
  const uint32_t before = atomicAdd(memory.words, 1u);
  if (kSteps.fence_after) __threadfence();
  return before + 1 == static_cast<uint32_t>(gridDim.x);
}
// What another thread of each block has stored, added up.
__device__ __forceinline__ void add_parts(const HazardMemory& memory) {
  uint32_t sum = 0;
  for (unsigned block = 0; block < gridDim.x; ++block)
    sum += ld_global(memory.words + 1 + block * blockDim.x + (threadIdx.x + 1) % blockDim.x);
  st_global(memory.out + threadIdx.x, sum);
}

template <Steps kSteps>
__global__ void __launch_bounds__(kThreads, 1) combine(HazardMemory memory) {
  store_part(memory);
  if (kSteps.fence_of_all_before) __threadfence();
  if (kSteps.barrier_before) __syncthreads();
  uint32_t* const is_last = reinterpret_cast<uint32_t*>(dynamic_shared());
  if (threadIdx.x == 0) st_shared(is_last, arrive<kSteps>(memory) ? 1u : 0u);
  __syncthreads();
  if (ld_shared(is_last) == 0) return;
  if (kSteps.fence_of_all_after) __threadfence();
  add_parts(memory);
}
// Blocks of one warp, in which a shuffle says whether the block is the last.
template <Steps kSteps>
__global__ void __launch_bounds__(32, 1) combine_in_warps(HazardMemory memory) {
  store_part(memory);
  if (kSteps.barrier_before) __syncwarp();
  uint32_t last = 0;
  if (threadIdx.x == 0) last = arrive<kSteps>(memory) ? 1u : 0u;
  last = __shfl_sync(kAllLanes, last, 0);
  if (kSteps.barrier_after) __syncwarp();
  if (last != 0) add_parts(memory);
}

// Three blocks that come one after the other: the first hands a word to the second, and that to the third, by an atomic
// each. Blocks that come at the same time do not wait for each other.
template <bool kFence>
__global__ void __launch_bounds__(32, 1) relay(HazardMemory memory) {
  uint32_t *const ticket = memory.words, *const first = memory.words + 1, *const second = memory.words + 2;
  uint32_t* const word = memory.words + 3;
  if (lane_index() != 0) return;
  const uint32_t place = atomicAdd(ticket, 1u);
  if (place == 0) {
    st_global(word, 1u);
    __threadfence();
    atomicAdd(first, 1u);
  } else if (place == 1 && atomicAdd(first, 1u) == 1) {
    if (kFence) __threadfence();
    atomicAdd(second, 1u);
  } else if (place == 2 && atomicAdd(second, 1u) == 1) {
    __threadfence();
    ld_global(word);
  }
  if (blockIdx.x == 0) st_global(memory.out, 1u);
}

// Which block is the last to come.
__global__ void __launch_bounds__(32, 1) who_is_last(HazardMemory memory) {
  if (lane_index() == 0 && atomicAdd(memory.words, 1u) + 1 == static_cast<uint32_t>(gridDim.x))
    st_global(memory.out, static_cast<uint32_t>(blockIdx.x));
}

// The first `writers` blocks store the same value to the same byte; the last block reads it, if it is to.
__global__ void __launch_bounds__(32, 1) store_byte(HazardMemory memory, int writers, bool reads) {
  unsigned char* const byte = reinterpret_cast<unsigned char*>(memory.words);
  if (lane_index() != 0) return;
  if (static_cast<int>(blockIdx.x) < writers) st_global(byte, static_cast<unsigned char>(7));
  if (reads && blockIdx.x == gridDim.x - 1) ld_global(byte);
  if (blockIdx.x == 0) st_global(memory.out, 1u);
}
__global__ void __launch_bounds__(32, 1) bytes_beside_each_other(HazardMemory memory) {
  if (lane_index() == 0)
    st_global(reinterpret_cast<unsigned char*>(memory.out) + blockIdx.x, static_cast<unsigned char>(blockIdx.x));
}
__global__ void __launch_bounds__(32, 1) count(HazardMemory memory, bool resets) {
  if (lane_index() != 0) return;
  if (blockIdx.x == 0 && resets) st_global(memory.out, 0u);
  atomicAdd(memory.words, 1u);
  if (blockIdx.x == 0) st_global(memory.out, 1u);
  if (blockIdx.x == 1 && resets) st_global(memory.words, 0u);
}
// All blocks report; one of them is heard. `twice`: the words beside `kind` are stored by all.
__global__ void __launch_bounds__(32, 1) report_all(HazardMemory memory, bool all) {
  if (lane_index() != 0) return;
  Finding* const finding = reinterpret_cast<Finding*>(memory.words);
  report(finding, Finding::kv_len, 3, 3, 3);
  if (all) st_global(&finding->index, 3);
  if (blockIdx.x == 0) st_global(memory.out, 1u);
}
__global__ void __launch_bounds__(32, 1) stream_in_another_block(HazardMemory memory, int index) {
  if (blockIdx.x == 0) {
    if (lane_index() == 0) st_global(memory.words + index, 0u);
  } else {
    st_global(memory.out + lane_index(), ld_global_nc(memory.words + 4 * lane_index()).w[0]);
  }
}

constexpr int kMessageLine = __LINE__ + 3;
__global__ void __launch_bounds__(32, 1) message(HazardMemory memory) {
  if (blockIdx.x == 2) {
    if (lane_index() == 9) st_global(memory.words + 6, 1u);
  } else {
    if (lane_index() == 4) ld_global(memory.words + 6);
  }
}

std::string check_message() {
  const std::string expected =
      "kernel: read of global memory that thread 9 of block (2, 0, 0) (block_races.cc:" + std::to_string(kMessageLine) +
      ") wrote, with no chain of fence, atomic, atomic and fence between them, 4 bytes at byte "
      "24 from the beginning of an allocation of 32 bytes (block_races.cc:" +
      std::to_string(kMessageLine + 2) + ", thread 4) in block (0, 0, 0)";
  Memory<uint32_t> words(8);
  std::string wrong;
  for (uint64_t seed = 1; seed <= 50 && wrong != expected;
       ++seed) {  // until block 2 comes before block 0 and that before 1
    settings().seed = seed;
    wrong = run("kernel", 3, 32, 0, message, HazardMemory{nullptr, nullptr, words.data()});
  }
  settings().seed = 0;
  return wrong == expected ? "" : "the message is: " + wrong;
}

std::string check_each_is_last() {
  std::set<uint32_t> last;
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    settings().seed = seed;
    Memory<uint32_t> out(1), words(std::vector<uint32_t>(1, 0));
    const std::string wrong =
        run("kernel", kBlocks, 32, 0, who_is_last, HazardMemory{nullptr, out.data(), words.data()});
    settings().seed = 0;
    if (!wrong.empty()) return wrong;
    last.insert(out.values()[0]);
  }
  return last.size() == kBlocks ? "" : std::to_string(last.size()) + " of 5 blocks are the last in some seed";
}

}  // namespace

std::vector<Check> block_race_checks() {
  const auto in = squares(kBlocks * kThreads);
  const auto sums = [&](uint32_t threads) {
    std::vector<uint32_t> sums(threads);
    for (uint32_t i = 0; i < threads; ++i) {
      for (uint32_t block = 0; block < kBlocks; ++block) sums[i] += in[block * threads + (i + 1) % threads];
    }
    return sums;
  };
  const std::vector<uint32_t> combined = sums(kThreads), combined_in_warps = sums(32);
  const std::vector<uint32_t> one(1, 1), zeros(32, 0), bytes(1, 0x03020100u);
  const Shape blocks = {.blocks = kBlocks, .threads = kThreads, .shared_bytes = 4, .words = 1 + kBlocks * kThreads};
  const Shape warps = {.blocks = kBlocks, .threads = 32, .words = 256};
  const Shape three = {.blocks = 3, .threads = 32, .words = 4};
  const Shape four = {.blocks = 4, .threads = 32, .words = 4};
  const Shape two = {.blocks = 2, .threads = 32, .words = 256};
  const char* kNoChain = "with no chain of fence, atomic, atomic and fence between them";
  HazardChecks c;
  c.clean("the last block combines", [=] { return in_all_seeds(combined, blocks, combine<Steps{}>, in); });
  c.found("no fence before the atomic", kNoChain,
          [=] { return in_all_seeds(combined, blocks, combine<Steps{.fence_before = false}>, in); });
  c.found("no fence after the atomic", kNoChain,
          [=] { return in_all_seeds(combined, blocks, combine<Steps{.fence_after = false}>, in); });
  c.found("no barrier before the first fence", kNoChain,
          [=] { return in_all_seeds(combined, blocks, combine<Steps{.barrier_before = false}>, in); });
  c.found("the first fence of each thread before the barrier", kNoChain, [=] {
    return in_all_seeds(combined, blocks, combine<Steps{.fence_of_all_before = true, .fence_before = false}>, in);
  });
  c.found("the second fence of each thread after the barrier", kNoChain, [=] {
    return in_all_seeds(combined, blocks, combine<Steps{.fence_after = false, .fence_of_all_after = true}>, in);
  });
  c.clean("the last block of one warp combines",
          [=] { return in_all_seeds(combined_in_warps, warps, combine_in_warps<Steps{}>, in); });
  c.found("no __syncwarp before the first fence", kNoChain,
          [=] { return in_all_seeds(combined_in_warps, warps, combine_in_warps<Steps{.barrier_before = false}>, in); });
  c.found("no __syncwarp after the second fence", kNoChain,
          [=] { return in_all_seeds(combined_in_warps, warps, combine_in_warps<Steps{.barrier_after = false}>, in); });
  c.clean("a relay over two atomics", [=] { return in_all_seeds(one, three, relay<true>, {}); });
  c.found("a relay without a fence in the middle", kNoChain,
          [=] { return in_all_seeds(one, three, relay<false>, {}); });
  c.clean("one block stores a byte", [=] { return in_all_seeds(one, two, store_byte, {}, 1, false); });
  c.found("two blocks store the same byte", kNoChain, [=] { return in_all_seeds(one, two, store_byte, {}, 2, false); });
  c.found("a block reads what another stores", kNoChain,
          [=] { return in_all_seeds(one, two, store_byte, {}, 1, true); });
  c.clean("blocks store bytes of one word", [=] { return in_all_seeds(bytes, four, bytes_beside_each_other, {}); });
  c.clean("blocks count by atomics", [=] { return in_all_seeds(one, two, count, {}, false); });
  c.found("a plain store to what blocks count", kNoChain, [=] { return in_all_seeds(one, two, count, {}, true); });
  c.clean("blocks report, one is heard", [=] { return in_all_seeds(one, two, report_all, {}, false); });
  c.found("blocks store over a report", kNoChain, [=] { return in_all_seeds(one, two, report_all, {}, true); });
  c.clean("ld_global_nc beside another block's store",
          [=] { return in_all_seeds(zeros, two, stream_in_another_block, {}, 128); });
  c.found("ld_global_nc of another block's store", "by ld_global_nc",
          [=] { return in_all_seeds(zeros, two, stream_in_another_block, {}, 127); });
  c.checks.push_back({"message: both blocks, threads and lines, and the byte", check_message});
  c.checks.push_back({"each block is the last to come in some seed", check_each_is_last});
  return c.checks;
}

}  // namespace diffqkv::check
