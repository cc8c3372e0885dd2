// Hazards within a block: missing barriers and waits, accesses outside of memory, operations that not all threads reach.
#include "device/async.h"
#include "device/mma.h"
#include "hazard.h"

namespace diffqkv::check {
namespace {

constexpr int kThreads = 128;

// out[i] = the sum over rounds of in[(i + 32 * round) % kThreads], handed on through shared memory. Two barriers a round:
// before reading what others wrote, and before writing over what others read.
template <bool kFirstBarrier, bool kSecondBarrier>
DIFFQKV_KERNEL(kThreads, 1)
pass_on(HazardMemory memory) {
  uint32_t* shared = reinterpret_cast<uint32_t*>(dynamic_shared());
  const int i = thread_index();
  const uint32_t own = load(memory.in + i);
  store_shared(shared + i, 0u);
  sync_block();
  uint32_t sum = 0;
  for (int round = 1; round <= 3; ++round) {
    store_shared(shared + i, own * static_cast<uint32_t>(round));
    if (kFirstBarrier) sync_block();
    sum += load_shared(shared + (i + 32 * round) % kThreads);
    if (kSecondBarrier) sync_block();
  }
  store(memory.out + i, sum);
}

// The same within a warp.
template <bool kSync>
DIFFQKV_KERNEL(32, 1)
pass_on_in_warp(HazardMemory memory) {
  uint32_t* shared = reinterpret_cast<uint32_t*>(dynamic_shared());
  const int i = thread_index();
  store_shared(shared + i, 0u);
  sync_warp();
  store_shared(shared + i, load(memory.in + i));
  if (kSync) sync_warp();
  store(memory.out + i, load_shared(shared + (i + 1) % 32));
}

// kNewest: 0 waits for both groups, 1 forgets the newer; -1 forgets to wait at all.
template <int kNewest, bool kBarrier>
DIFFQKV_KERNEL(kThreads, 1)
copy_async(HazardMemory memory) {
  unsigned char* shared = dynamic_shared();
  const int i = thread_index();
  cp_async_16(shared + 16 * i, memory.in + 4 * i);
  cp_async_commit();
  cp_async_16(shared + 16 * (kThreads + i), memory.in + 4 * (kThreads + i));
  cp_async_commit();
  if constexpr (kNewest >= 0) cp_async_wait<kNewest>();
  if (kBarrier) sync_block();
  for (int j = 0; j < 2; ++j) {
    const int from = 2 * kThreads - 1 - (j * kThreads + i);
    store(memory.out + from, load_shared(reinterpret_cast<uint32_t*>(shared + 16 * from)));
  }
}

// The stage that is being read is filled anew too early.
template <bool kBarrier>
DIFFQKV_KERNEL(kThreads, 1)
refill_stage(HazardMemory memory) {
  unsigned char* shared = dynamic_shared();
  const int i = thread_index();
  uint32_t sum = 0;
  for (int step = 0; step < 4; ++step) {
    cp_async_16(shared + 16 * i, memory.in + 4 * (step * kThreads + i));
    cp_async_commit();
    cp_async_wait<0>();
    sync_block();
    sum += load_shared(reinterpret_cast<uint32_t*>(shared + 16 * ((i + 64) % kThreads)));
    if (kBarrier) sync_block();
  }
  store(memory.out + i, sum);
}

DIFFQKV_KERNEL(32, 1) store_at(HazardMemory memory, int index) { store(memory.out + index + thread_index(), 1u); }
DIFFQKV_KERNEL(32, 1) load_at(HazardMemory memory, int index) {
  store(memory.out + thread_index(), load(memory.in + index + thread_index()));
}
DIFFQKV_KERNEL(32, 1) load_words_at(HazardMemory memory, int index) {
  store(memory.out + thread_index(), load(reinterpret_cast<const Words4*>(memory.in + index)).w[0]);
}
DIFFQKV_KERNEL(32, 1) copy_at(HazardMemory memory, int index, int valid_bytes) {
  cp_async_16(dynamic_shared() + 16 * thread_index(), memory.in + index, valid_bytes);
  cp_async_commit();
  cp_async_wait<0>();
  store(memory.out + thread_index(), load_shared(reinterpret_cast<uint32_t*>(dynamic_shared()) + 4 * thread_index()));
}
DIFFQKV_KERNEL(32, 1) shared_at(HazardMemory memory, int written, int read) {
  uint32_t* shared = reinterpret_cast<uint32_t*>(dynamic_shared());
  store_shared(shared + written + thread_index(), 7u);
  store(memory.out + thread_index(), load_shared(shared + read + thread_index()));
}
DIFFQKV_KERNEL(32, 1) ldmatrix_of(HazardMemory memory, int written_rows) {
  if (lane_index() < written_rows) store_shared(reinterpret_cast<Words4*>(dynamic_shared()) + lane_index(), Words4{});
  sync_warp();
  uint32_t r[4];
  ldmatrix_x4(r, dynamic_shared() + 16 * lane_index());
  store(memory.out + lane_index(), r[3]);
}
DIFFQKV_KERNEL(kThreads, 1) barrier_below(HazardMemory memory, int limit) {
  if (thread_index() < limit) sync_block();
  store(memory.out + thread_index(), 1u);
}
DIFFQKV_KERNEL(kThreads, 1) two_barriers(HazardMemory memory, int limit) {
  if (thread_index() < limit) {
    sync_block();
  } else {
    sync_block();
  }
  store(memory.out + thread_index(), 1u);
}
DIFFQKV_KERNEL(kThreads, 1) named_barrier(HazardMemory memory, int limit, int threads) {
  if (thread_index() < limit) sync_named(1, threads);
  store(memory.out + thread_index(), 1u);
}
DIFFQKV_KERNEL(kThreads, 1) half_warps_at_barrier(HazardMemory memory, int lanes) {
  if (thread_index() < 64 && lane_index() < lanes) sync_named(1, 32);
  store(memory.out + thread_index(), 1u);
}
DIFFQKV_KERNEL(32, 1) shuffle_below(HazardMemory memory, int limit) {
  uint32_t x = static_cast<uint32_t>(lane_index());
  if (lane_index() < limit) x = shuffle_xor(x, 1);
  store(memory.out + lane_index(), x);
}
DIFFQKV_KERNEL(32, 1) two_operations(HazardMemory memory, int limit) {
  uint32_t x = static_cast<uint32_t>(lane_index());
  if (lane_index() < limit) {
    x = shuffle_xor(x, 1);
  } else {
    x = ballot(true);
  }
  store(memory.out + lane_index(), x);
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
  c.clean("sync_warp where it belongs",
          [=] { return in_all_seeds(neighbors, warp_rows, pass_on_in_warp<true>, some); });
  c.found("no sync_warp", kUnordered, [=] { return in_all_seeds(neighbors, warp_rows, pass_on_in_warp<false>, some); });
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
  return checks;
}

}  // namespace diffqkv::check
