// Hazards of bulk copies and their barriers, within a block.
#include <device/bulk.h>
#include <device/memory.h>
#include <device/mma.h>
#include "hazard.h"

namespace diffqkv::check {
namespace {

constexpr int kSteps = 6, kSlots = 2;
constexpr int kSlotWords = 64, kSlotBytes = kSlotWords * 4;

// What one kernel does wrong; by default nothing.
struct Ring {
  bool waits = true;  // for the slot's phase
  bool waits_for_own_slot = true;
  int first_parity = 0;
  int expected_bytes = kSlotBytes;
  bool inits_with_fence = true;
  bool syncs_after_init = true;
  bool syncs_before_refill = true;
  bool writes_into_slot = false;  // after it was read
  bool fences_what_it_wrote = true;
  bool waits_for_last = true;
  int arrivals = 1;
  int offset = 0, bytes = kSlotBytes;  // of each copy: bytes that the source is off, and its size
};

// A warp reads kSteps pieces through a ring of kSlots, as attention_decode does. out[i] = the sum over the pieces of word
// (i + 1) % 32 and of the word 32 after it.
__global__ void __launch_bounds__(32, 1) read_ring(HazardMemory memory, Ring ring) {
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(dynamic_shared());
  unsigned char* const slots = dynamic_shared() + 128;
  const int lane = lane_index();
  if (lane < kSlots) {
    mbarrier_init(barriers + lane, ring.arrivals);
    if (ring.inits_with_fence) fence_proxy_async();
  }
  if (ring.syncs_after_init) __syncwarp();
  const auto copy = [&](int step) {
    if (step >= kSteps || lane != 0) return;
    const int slot = step % kSlots;
    mbarrier_arrive_expect_tx(barriers + slot, ring.expected_bytes);
    cp_async_bulk(slots + slot * kSlotBytes,
                  reinterpret_cast<const unsigned char*>(memory.in + step * kSlotWords) + ring.offset, ring.bytes,
                  barriers + slot);
  };
  for (int step = 0; step < kSlots - 1; ++step) copy(step);
  uint32_t sum = 0;
  for (int step = 0; step < kSteps; ++step) {
    if (ring.syncs_before_refill) __syncwarp();
    copy(step + kSlots - 1);
    const int slot = step % kSlots, parity = (step / kSlots + ring.first_parity) % 2;
    const bool is_last = step == kSteps - 1;
    if (is_last && !ring.waits_for_last) break;
    if (ring.waits) {
      while (!mbarrier_try_wait_parity(barriers + (ring.waits_for_own_slot ? slot : 0), parity)) {}
    }
    uint32_t* const words = reinterpret_cast<uint32_t*>(slots + slot * kSlotBytes);
    sum += ld_shared(words + (lane + 1) % 32) + ld_shared(words + (lane + 1) % 32 + 32);
    if (ring.writes_into_slot) {
      __syncwarp();
      st_shared(words + lane, 0u);
      if (ring.fences_what_it_wrote) fence_proxy_async();
    }
  }
  st_global(memory.out + lane, sum);
}

// One warp copies, others read: each thread after a wait of its own, or after a barrier behind that of one thread.
enum class Order { own_wait, barrier, none };
__global__ void __launch_bounds__(64, 1) copy_for_all(HazardMemory memory, Order order) {
  uint64_t* const barrier = reinterpret_cast<uint64_t*>(dynamic_shared());
  uint32_t* const words = reinterpret_cast<uint32_t*>(dynamic_shared() + 128);
  const int thread = threadIdx.x;
  if (thread == 0) {
    mbarrier_init(barrier, 1);
    fence_proxy_async();
  }
  __syncthreads();
  if (thread == 0) {
    mbarrier_arrive_expect_tx(barrier, kSlotBytes);
    cp_async_bulk(words, memory.in, kSlotBytes, barrier);
  }
  __syncthreads();
  if (order == Order::own_wait || thread == 0) {
    while (!mbarrier_try_wait_parity(barrier, 0)) {}
  }
  if (order == Order::barrier) __syncthreads();
  st_global(memory.out + thread, ld_shared(words + thread));
}

// Lanes below `waiting` wait, and all take part in ldmatrix.
__global__ void __launch_bounds__(32, 1) ldmatrix_of_copy(HazardMemory memory, int waiting) {
  uint64_t* const barrier = reinterpret_cast<uint64_t*>(dynamic_shared());
  unsigned char* const rows = dynamic_shared() + 128;
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    fence_proxy_async();
    mbarrier_arrive_expect_tx(barrier, kSlotBytes);
    cp_async_bulk(rows, memory.in, kSlotBytes, barrier);
  }
  __syncwarp();
  if (lane_index() < waiting) {
    while (!mbarrier_try_wait_parity(barrier, 0)) {}
  }
  uint32_t r[2];
  ldmatrix_x2(r, rows + lane_index() % 16 * 16);
  st_global(memory.out + lane_index(), r[0]);
}

// Two bulk copies of one phase, the second issued after the first may have completed it.
__global__ void __launch_bounds__(32, 1) copy_too_much(HazardMemory memory, int expected_bytes) {
  uint64_t* const barrier = reinterpret_cast<uint64_t*>(dynamic_shared());
  uint32_t* const words = reinterpret_cast<uint32_t*>(dynamic_shared() + 128);
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    fence_proxy_async();
  }
  __syncwarp();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(barrier, expected_bytes);
    cp_async_bulk(words, memory.in, 128, barrier);
    cp_async_bulk(words + 32, memory.in + 32, 128, barrier);
  }
  while (!mbarrier_try_wait_parity(barrier, 0)) {}
  st_global(memory.out + threadIdx.x, ld_shared(words + threadIdx.x) + ld_shared(words + 32 + threadIdx.x));
}

// The source is written by the same launch, before or after the copy.
__global__ void __launch_bounds__(32, 1) write_source(HazardMemory memory, bool is_before) {
  uint64_t* const barrier = reinterpret_cast<uint64_t*>(dynamic_shared());
  uint32_t* const words = reinterpret_cast<uint32_t*>(dynamic_shared() + 128);
  if (is_before) st_global(memory.words + threadIdx.x, static_cast<uint32_t>(threadIdx.x));
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    fence_proxy_async();
  }
  __syncwarp();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(barrier, 128);
    cp_async_bulk(words, memory.words, 128, barrier);
  }
  while (!mbarrier_try_wait_parity(barrier, 0)) {}
  __syncwarp();
  if (!is_before) st_global(memory.words + threadIdx.x, 7u);
  st_global(memory.out + threadIdx.x, ld_shared(words + threadIdx.x));
}

__global__ void __launch_bounds__(32, 1) wait_unbegun(HazardMemory memory) {
  while (!mbarrier_try_wait_parity(reinterpret_cast<uint64_t*>(dynamic_shared()), 0)) {}
  st_global(memory.out + threadIdx.x, 1u);
}

}  // namespace

std::vector<Check> bulk_hazard_checks() {
  const std::vector<uint32_t> in = squares(kSteps * kSlotWords + 4);
  const std::vector<uint32_t> some(in.begin(), in.begin() + 32);
  std::vector<uint32_t> sums(32), first(in.begin(), in.begin() + 64), pairs(32), numbers(32);
  for (uint32_t i = 0; i < 32; ++i) {
    for (uint32_t step = 0; step < kSteps; ++step) {
      sums[i] += in[step * kSlotWords + (i + 1) % 32] + in[step * kSlotWords + (i + 1) % 32 + 32];
    }
    pairs[i] = in[i] + in[32 + i];
    numbers[i] = i;
  }
  const Shape warp = {.threads = 32, .shared_bytes = 128 + kSlots * kSlotBytes, .words = 32};
  const Shape block = {.threads = 64, .shared_bytes = 128 + kSlotBytes};
  const char* kMayWrite = "may still write";
  const char* kNever = "never completes";
  HazardChecks c;
  const auto ring = [=](const Ring& r) { return [=] { return in_all_seeds(sums, warp, read_ring, in, r); }; };
  c.clean("a ring of bulk copies", ring({}));
  c.clean("a ring of bulk copies, whose slots are written too", ring({.writes_into_slot = true}));
  c.found("a bulk copy, not waited for", kMayWrite, ring({.waits = false}));
  c.found("a bulk copy, another slot's phase waited for", kMayWrite, ring({.waits_for_own_slot = false}));
  c.found("a bulk copy, the other parity waited for", kMayWrite, ring({.first_parity = 1}));
  c.found("a bulk copy into a slot that is being read", "with no barrier between them",
          ring({.syncs_before_refill = false}));
  c.found("a bulk copy of more bytes than its phase expects", "more bytes than the phase",
          ring({.expected_bytes = kSlotBytes - 16}));
  c.found("a bulk copy of fewer bytes than its phase expects", kNever, ring({.expected_bytes = kSlotBytes + 16}));
  c.found("an mbarrier of more arrivals than there are", kNever, ring({.arrivals = 2}));
  c.found("an mbarrier without a fence after it was begun", "no fence_proxy_async since it was begun",
          ring({.inits_with_fence = false}));
  c.found("an mbarrier without a barrier after it was begun", "an mbarrier that nobody began",
          ring({.syncs_after_init = false, .syncs_before_refill = false}));
  c.found("a bulk copy over what a thread wrote, without a fence", "no fence_proxy_async of that thread since",
          ring({.writes_into_slot = true, .fences_what_it_wrote = false}));
  c.found("a bulk copy that nobody waits for", "that no thread waits for", ring({.waits_for_last = false}));
  c.found("a bulk copy that is not aligned", "not aligned to 16 bytes", ring({.offset = 8}));
  c.found("a bulk copy of 8 bytes more", "no multiple of 16", ring({.bytes = kSlotBytes + 8}));
  c.found("a bulk copy past the end of its source", "read by a bulk copy of", ring({.offset = 32}));
  c.clean("a bulk copy, each thread waits",
          [=] { return in_all_seeds(first, block, copy_for_all, in, Order::own_wait); });
  c.clean("a bulk copy, one thread waits, then a barrier",
          [=] { return in_all_seeds(first, block, copy_for_all, in, Order::barrier); });
  c.found("a bulk copy, one thread waits", kMayWrite,
          [=] { return in_all_seeds(first, block, copy_for_all, in, Order::none); });
  c.clean("ldmatrix of a bulk copy", [=] { return in_all_seeds(some, warp, ldmatrix_of_copy, in, 32); });
  c.found("ldmatrix of a bulk copy that a lane has not waited for", kMayWrite,
          [=] { return in_all_seeds(some, warp, ldmatrix_of_copy, in, 31); });
  c.clean("two bulk copies of a phase", [=] { return in_all_seeds(pairs, warp, copy_too_much, in, 256); });
  c.found("two bulk copies in a phase of one", "the phase of their mbarrier expects",
          [=] { return in_all_seeds(pairs, warp, copy_too_much, in, 240); });
  c.found("a bulk copy that ends after its phase", "after the phase of its mbarrier",
          [=] { return in_all_seeds(pairs, warp, copy_too_much, in, 128); });
  c.found("a bulk copy of what the launch wrote", "memory",
          [=] { return in_all_seeds(numbers, warp, write_source, {}, true); });
  c.found("a bulk copy of what the launch writes later", "memory",
          [=] { return in_all_seeds(numbers, warp, write_source, {}, false); });
  c.found("an mbarrier that nobody began", "an mbarrier that nobody began",
          [=] { return in_all_seeds(numbers, warp, wait_unbegun, {}); });
  return std::move(c.checks);
}

}  // namespace diffqkv::check
