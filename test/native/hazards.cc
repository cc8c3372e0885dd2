// Hazards within a block: missing barriers and waits, accesses outside of memory, operations that not all threads reach.
#include <device/async.h>
#include <device/memory.h>
#include <device/mma.h>
#include "hazard.h"

namespace diffqkv::check {
namespace {

constexpr int kThreads = 128;

// out[i] = the sum over rounds of in[(i + 32 * round) % kThreads], handed on through shared memory. Two barriers a round:
// before reading what others wrote, and before writing over what others read.
template <bool kFirstBarrier, bool kSecondBarrier>
__global__ void __launch_bounds__(kThreads, 1) pass_on(HazardMemory memory) {
  uint32_t* shared = reinterpret_cast<uint32_t*>(dynamic_shared());
  const int i = threadIdx.x;
  const uint32_t own = ld_global(memory.in + i);
  st_shared(shared + i, 0u);
  __syncthreads();
  uint32_t sum = 0;
  for (int round = 1; round <= 3; ++round) {
    st_shared(shared + i, own * static_cast<uint32_t>(round));
    if (kFirstBarrier) __syncthreads();
    sum += ld_shared(shared + (i + 32 * round) % kThreads);
    if (kSecondBarrier) __syncthreads();
  }
  st_global(memory.out + i, sum);
}

// The same within a warp.
template <bool kSync>
__global__ void __launch_bounds__(32, 1) pass_on_in_warp(HazardMemory memory) {
  uint32_t* shared = reinterpret_cast<uint32_t*>(dynamic_shared());
  const int i = threadIdx.x;
  st_shared(shared + i, 0u);
  __syncwarp();
  st_shared(shared + i, ld_global(memory.in + i));
  if (kSync) __syncwarp();
  st_global(memory.out + i, ld_shared(shared + (i + 1) % 32));
}

// kNewest: 0 waits for both groups, 1 forgets the newer; -1 forgets to wait at all.
template <int kNewest, bool kBarrier>
__global__ void __launch_bounds__(kThreads, 1) copy_async(HazardMemory memory) {
  unsigned char* shared = dynamic_shared();
  const int i = threadIdx.x;
  cp_async_cg(shared + 16 * i, memory.in + 4 * i);
  cp_async_commit_group();
  cp_async_cg(shared + 16 * (kThreads + i), memory.in + 4 * (kThreads + i));
  cp_async_commit_group();
  if constexpr (kNewest >= 0) cp_async_wait_group<kNewest>();
  if (kBarrier) __syncthreads();
  for (int j = 0; j < 2; ++j) {
    const int from = 2 * kThreads - 1 - (j * kThreads + i);
    st_global(memory.out + from, ld_shared(reinterpret_cast<uint32_t*>(shared + 16 * from)));
  }
}

// The stage that is being read is filled anew too early.
template <bool kBarrier>
__global__ void __launch_bounds__(kThreads, 1) refill_stage(HazardMemory memory) {
  unsigned char* shared = dynamic_shared();
  const int i = threadIdx.x;
  uint32_t sum = 0;
  for (int step = 0; step < 4; ++step) {
    cp_async_cg(shared + 16 * i, memory.in + 4 * (step * kThreads + i));
    cp_async_commit_group();
    cp_async_wait_group<0>();
    __syncthreads();
    sum += ld_shared(reinterpret_cast<uint32_t*>(shared + 16 * ((i + 64) % kThreads)));
    if (kBarrier) __syncthreads();
  }
  st_global(memory.out + i, sum);
}

__global__ void __launch_bounds__(32, 1) store_at(HazardMemory memory, int index) {
  st_global(memory.out + index + threadIdx.x, 1u);
}
__global__ void __launch_bounds__(32, 1) load_at(HazardMemory memory, int index) {
  st_global(memory.out + threadIdx.x, ld_global(memory.in + index + threadIdx.x));
}
__global__ void __launch_bounds__(32, 1) load_words_at(HazardMemory memory, int index) {
  st_global(memory.out + threadIdx.x, ld_global(reinterpret_cast<const Words4*>(memory.in + index)).w[0]);
}
__global__ void __launch_bounds__(32, 1) copy_at(HazardMemory memory, int index, int valid_bytes) {
  cp_async_cg(dynamic_shared() + 16 * threadIdx.x, memory.in + index, valid_bytes);
  cp_async_commit_group();
  cp_async_wait_group<0>();
  st_global(memory.out + threadIdx.x, ld_shared(reinterpret_cast<uint32_t*>(dynamic_shared()) + 4 * threadIdx.x));
}
__global__ void __launch_bounds__(32, 1) shared_at(HazardMemory memory, int written, int read) {
  uint32_t* shared = reinterpret_cast<uint32_t*>(dynamic_shared());
  st_shared(shared + written + threadIdx.x, 7u);
  st_global(memory.out + threadIdx.x, ld_shared(shared + read + threadIdx.x));
}
__global__ void __launch_bounds__(32, 1) ldmatrix_of(HazardMemory memory, int written_rows) {
  if (lane_index() < written_rows) st_shared(reinterpret_cast<Words4*>(dynamic_shared()) + lane_index(), Words4{});
  __syncwarp();
  uint32_t r[4];
  ldmatrix_x4(r, dynamic_shared() + 16 * lane_index());
  st_global(memory.out + lane_index(), r[3]);
}
__global__ void __launch_bounds__(kThreads, 1) barrier_below(HazardMemory memory, int limit) {
  if (static_cast<int>(threadIdx.x) < limit) __syncthreads();
  st_global(memory.out + threadIdx.x, 1u);
}
__global__ void __launch_bounds__(kThreads, 1) two_barriers(HazardMemory memory, int limit) {
  if (static_cast<int>(threadIdx.x) < limit) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  st_global(memory.out + threadIdx.x, 1u);
}
__global__ void __launch_bounds__(kThreads, 1) named_barrier(HazardMemory memory, int limit, int threads) {
  if (static_cast<int>(threadIdx.x) < limit) bar_sync(1, threads);
  st_global(memory.out + threadIdx.x, 1u);
}
__global__ void __launch_bounds__(kThreads, 1) half_warps_at_barrier(HazardMemory memory, int lanes) {
  if (threadIdx.x < 64 && lane_index() < lanes) bar_sync(1, 32);
  st_global(memory.out + threadIdx.x, 1u);
}
__global__ void __launch_bounds__(32, 1) shuffle_below(HazardMemory memory, int limit) {
  uint32_t x = static_cast<uint32_t>(lane_index());
  if (lane_index() < limit) x = __shfl_xor_sync(kAllLanes, x, 1);
  st_global(memory.out + lane_index(), x);
}
__global__ void __launch_bounds__(32, 1) two_operations(HazardMemory memory, int limit) {
  uint32_t x = static_cast<uint32_t>(lane_index());
  if (lane_index() < limit) {
    x = __shfl_xor_sync(kAllLanes, x, 1);
  } else {
    x = __ballot_sync(kAllLanes, true);
  }
  st_global(memory.out + lane_index(), x);
}

std::vector<uint32_t> passed_on() {
  const std::vector<uint32_t> in = squares(kThreads);
  std::vector<uint32_t> out(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    for (int round = 1; round <= 3; ++round) out[i] += in[(i + 32 * round) % kThreads] * static_cast<uint32_t>(round);
  }
  return out;
}

std::vector<uint32_t> every_fourth(const std::vector<uint32_t>& in) {
  std::vector<uint32_t> out(in.size() / 4);
  for (size_t i = 0; i < out.size(); ++i) out[i] = in[4 * i];
  return out;
}

}  // namespace

std::vector<Check> hazard_checks() {
  const auto in = squares(kThreads);
  const auto copies = squares(8 * kThreads), stages = squares(16 * kThreads);
  std::vector<uint32_t> refilled(kThreads), neighbors(32), sevens(32, 7), ones(kThreads, 1), swapped(32);
  for (uint32_t i = 0; i < kThreads; ++i) {
    for (uint32_t step = 0; step < 4; ++step) refilled[i] += stages[4 * (step * kThreads + (i + 64) % kThreads)];
  }
  for (uint32_t i = 0; i < 32; ++i) {
    neighbors[i] = in[(i + 1) % 32];
    swapped[i] = i ^ 1;
  }
  const std::vector<uint32_t> some(in.begin(), in.begin() + 32), zeros(32, 0), whole_ones(32, 1);
  const Shape warp = {.threads = 32}, warp_rows = {.threads = 32, .shared_bytes = 512};
  const Shape block = {.threads = kThreads}, block_words = {.threads = kThreads, .shared_bytes = 4 * kThreads};
  const Shape copied = {.threads = kThreads, .shared_bytes = 32 * kThreads};
  const Shape stage = {.threads = kThreads, .shared_bytes = 16 * kThreads};
  const char* kUnordered = "with no barrier between them";
  const char* kCopying = "may still write";
  const char* kUnwritten = "shared memory that nobody wrote";
  const char* kMissing = "not all threads arrive";
  HazardChecks c;
  c.clean("barriers where they belong",
          [=] { return in_all_seeds(passed_on(), block_words, pass_on<true, true>, in); });
  c.found("no barrier before reading what others wrote", kUnordered,
          [=] { return in_all_seeds(passed_on(), block_words, pass_on<false, true>, in); });
  c.found("no barrier before writing over what others read", kUnordered,
          [=] { return in_all_seeds(passed_on(), block_words, pass_on<true, false>, in); });
  c.clean("__syncwarp where it belongs",
          [=] { return in_all_seeds(neighbors, warp_rows, pass_on_in_warp<true>, some); });
  c.found("no __syncwarp", kUnordered,
          [=] { return in_all_seeds(neighbors, warp_rows, pass_on_in_warp<false>, some); });
  c.clean("cp.async, waited for",
          [=] { return in_all_seeds(every_fourth(copies), copied, copy_async<0, true>, copies); });
  c.found("cp.async, not waited for", kCopying,
          [=] { return in_all_seeds(every_fourth(copies), copied, copy_async<-1, true>, copies); });
  c.found("cp.async, the newest group not waited for", kCopying,
          [=] { return in_all_seeds(every_fourth(copies), copied, copy_async<1, true>, copies); });
  c.found("cp.async, no barrier after the wait", kUnwritten,
          [=] { return in_all_seeds(every_fourth(copies), copied, copy_async<0, false>, copies); });
  c.clean("a stage filled anew after all have read it",
          [=] { return in_all_seeds(refilled, stage, refill_stage<true>, stages); });
  c.found("a stage filled anew while it is read", kUnordered,
          [=] { return in_all_seeds(refilled, stage, refill_stage<false>, stages); });
  c.clean("a store inside", [=] { return in_all_seeds(whole_ones, warp, store_at, {}, 0); });
  c.found("a store past the end", "write to global memory",
          [=] { return in_all_seeds(whole_ones, warp, store_at, {}, 1); });
  c.found("a store before the beginning", "write to global memory",
          [=] { return in_all_seeds(whole_ones, warp, store_at, {}, -1); });
  c.clean("a load inside", [=] { return in_all_seeds(some, warp, load_at, some, 0); });
  c.found("a load past the end", "read of global memory", [=] { return in_all_seeds(some, warp, load_at, some, 1); });
  c.found("16 bytes, not aligned to 16", "not aligned",
          [=] { return in_all_seeds(some, warp, load_words_at, some, 2); });
  c.clean("cp.async of no bytes", [=] { return in_all_seeds(zeros, warp_rows, copy_at, some, 1000, 0); });
  c.found("cp.async past the end", "read by cp.async",
          [=] { return in_all_seeds(zeros, warp_rows, copy_at, some, 32, 4); });
  c.clean("shared memory, written first", [=] { return in_all_seeds(sevens, warp_rows, shared_at, {}, 32, 32); });
  c.found("shared memory that nobody wrote", kUnwritten,
          [=] { return in_all_seeds(sevens, warp_rows, shared_at, {}, 0, 16); });
  c.found("a store past the end of shared memory", "write to shared memory",
          [=] { return in_all_seeds(sevens, warp_rows, shared_at, {}, 97, 97); });
  c.clean("ldmatrix of 32 rows", [=] { return in_all_seeds(zeros, warp_rows, ldmatrix_of, {}, 32); });
  c.found("ldmatrix of a row that nobody wrote", kUnwritten,
          [=] { return in_all_seeds(zeros, warp_rows, ldmatrix_of, {}, 31); });
  c.clean("a barrier for all", [=] { return in_all_seeds(ones, block, barrier_below, {}, kThreads); });
  c.found("a barrier for some", kMissing, [=] { return in_all_seeds(ones, block, barrier_below, {}, 100); });
  c.clean("all at one of two barriers", [=] { return in_all_seeds(ones, block, two_barriers, {}, kThreads); });
  c.found("a barrier in each branch", "different barriers",
          [=] { return in_all_seeds(ones, block, two_barriers, {}, 64); });
  c.clean("a named barrier", [=] { return in_all_seeds(ones, block, named_barrier, {}, 64, 64); });
  c.found("a named barrier that waits for too many", kMissing,
          [=] { return in_all_seeds(ones, block, named_barrier, {}, 64, 96); });
  c.found("a named barrier for parts of warps", "not all threads of each warp",
          [=] { return in_all_seeds(ones, block, half_warps_at_barrier, {}, 16); });
  c.clean("a shuffle of all lanes", [=] { return in_all_seeds(swapped, warp, shuffle_below, {}, 32); });
  c.found("a shuffle of some lanes", kMissing, [=] { return in_all_seeds(swapped, warp, shuffle_below, {}, 16); });
  c.found("lanes at different operations", "different operations",
          [=] { return in_all_seeds(swapped, warp, two_operations, {}, 16); });
  std::vector<Check> checks = std::move(c.checks);
  for (Check& check : race_checks()) checks.push_back(std::move(check));
  for (Check& check : block_race_checks()) checks.push_back(std::move(check));
  for (Check& check : bulk_hazard_checks()) checks.push_back(std::move(check));
  return checks;
}

}  // namespace diffqkv::check
