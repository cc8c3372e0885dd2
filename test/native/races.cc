// Races within a block: two accesses of the same bytes that no barrier orders. The emulation must name them even if the
// values come out right.
#include <device/async.h>
#include <device/memory.h>
#include <device/mma.h>
#include "hazard.h"

namespace diffqkv::check {
namespace {

constexpr int kThreads = 128;

uint32_t* shared_words() { return reinterpret_cast<uint32_t*>(dynamic_shared()); }

// Threads below `writers` store the same value to the same word.
__global__ void __launch_bounds__(kThreads, 1) store_same_value(HazardMemory memory, int writers) {
  if (static_cast<int>(threadIdx.x) < writers) st_shared(shared_words(), 7u);
  __syncthreads();
  st_global(memory.out + threadIdx.x, ld_shared(shared_words()));
}
__global__ void __launch_bounds__(kThreads, 1) store_same_value_globally(HazardMemory memory, int writers) {
  if (static_cast<int>(threadIdx.x) < writers) st_global(memory.words, 7u);
  __syncthreads();
  st_global(memory.out + threadIdx.x, ld_global(memory.words));
}

// What stands between a store and the load of a neighbor's word.
enum class Order { none, warp, block, shuffle, vote, atomic };
template <Order kOrder>
__device__ __forceinline__ void order() {
  if constexpr (kOrder == Order::warp) __syncwarp();
  if constexpr (kOrder == Order::block) __syncthreads();
  if constexpr (kOrder == Order::shuffle) __shfl_xor_sync(kAllLanes, 1u, 1);
  if constexpr (kOrder == Order::vote) __ballot_sync(kAllLanes, true);
}
template <Order kOrder>
__global__ void __launch_bounds__(32, 1) hand_on(HazardMemory memory) {
  const int i = threadIdx.x;
  st_shared(shared_words() + i, ld_global(memory.in + i));
  order<kOrder>();
  st_global(memory.out + i, ld_shared(shared_words() + (i + 1) % 32));
}
// The same through global memory.
template <Order kOrder>
__global__ void __launch_bounds__(kThreads, 1) hand_on_globally(HazardMemory memory) {
  const int i = threadIdx.x;
  st_global(memory.words + i, ld_global(memory.in + i));
  order<kOrder>();
  const int neighbor = kOrder == Order::warp ? i / 32 * 32 + (i + 1) % 32 : (i + 1) % kThreads;
  st_global(memory.out + i, ld_global(memory.words + neighbor));
}

// Each lane stores a row. ldmatrix gives all lanes parts of it. Then the rows are stored again.
template <Order kBefore, Order kAfter>
__global__ void __launch_bounds__(32, 1) matrix_rows(HazardMemory memory) {
  Words4* const row = reinterpret_cast<Words4*>(dynamic_shared()) + lane_index();
  st_shared(row, Words4{{1u, 1u, 1u, 1u}});
  order<kBefore>();
  uint32_t r[4];
  ldmatrix_x4(r, row);
  order<kAfter>();
  st_shared(row, Words4{{2u, 2u, 2u, 2u}});
  st_global(memory.out + lane_index(), r[0]);
}

// Warp 0 hands its words to warp 1, and that to warp 2, by barriers of two warps each. Warp 1 comes to barrier `from` first.
__global__ void __launch_bounds__(96, 1) relay(HazardMemory memory, int from) {
  const int warp = threadIdx.x / 32, lane = lane_index();
  if (warp == 0) {
    st_shared(shared_words() + lane, ld_global(memory.in + lane));
    bar_sync(1, 64);
  } else if (warp == 1) {
    if (from == 1) bar_sync(1, 64);
    bar_sync(2, 64);
    if (from != 1) bar_sync(1, 64);
  } else {
    bar_sync(2, 64);
    st_global(memory.out + lane, ld_shared(shared_words() + lane));
  }
}

// A producer and a consumer, each a warp, with one slot: `full` and `empty` are named barriers.
template <bool kWaitsUntilEmpty>
__global__ void __launch_bounds__(64, 1) one_slot(HazardMemory memory) {
  const int lane = lane_index();
  uint32_t sum = 0;
  for (int round = 0; round < 4; ++round) {
    if (threadIdx.x < 32) {
      st_shared(shared_words() + lane, ld_global(memory.in + lane) + static_cast<uint32_t>(round));
      bar_sync(1, 64);
      if (kWaitsUntilEmpty) bar_sync(2, 64);
    } else {
      bar_sync(1, 64);
      sum += ld_shared(shared_words() + 31 - lane);
      if (kWaitsUntilEmpty) bar_sync(2, 64);
    }
  }
  if (threadIdx.x >= 32) st_global(memory.out + lane, sum);
}

// All warps read a word, then thread 0 writes it.
template <Order kOrder>
__global__ void __launch_bounds__(kThreads, 1) read_by_all(HazardMemory memory) {
  if (threadIdx.x == 0) st_shared(shared_words(), 5u);
  __syncthreads();
  const uint32_t x = ld_shared(shared_words());
  order<kOrder>();
  if (threadIdx.x == 0) st_shared(shared_words(), 6u);
  st_global(memory.out + threadIdx.x, x);
}

enum class Touch { nothing, read, write, copy };
// A cp.async, and an access of its bytes by the same thread before it has waited for it.
template <Touch kTouch>
__global__ void __launch_bounds__(32, 1) touch_copy(HazardMemory memory) {
  const int lane = lane_index();
  uint32_t* const word = shared_words() + 4 * lane;
  cp_async_cg(word, memory.in);
  cp_async_commit_group();
  if constexpr (kTouch == Touch::read) ld_shared(word);
  if constexpr (kTouch == Touch::write) st_shared(word, 1u);
  if constexpr (kTouch == Touch::copy) cp_async_cg(word, memory.in);
  cp_async_commit_group();
  cp_async_wait_group<0>();
  st_global(memory.out + lane, ld_shared(word));
}
// A cp.async, over what another lane has read.
template <Order kOrder>
__global__ void __launch_bounds__(32, 1) copy_over_read(HazardMemory memory) {
  const int lane = lane_index();
  uint32_t* const word = shared_words() + 4 * lane;
  st_shared(word, 3u);
  __syncwarp();
  const uint32_t x = ld_shared(shared_words() + 4 * (lane ^ 1));
  order<kOrder>();
  cp_async_cg(word, memory.in);
  cp_async_commit_group();
  cp_async_wait_group<0>();
  st_global(memory.out + lane, x);
}
// The source of a cp.async is written after a barrier, before its wait (kWaitsFirst: after it).
template <bool kWaitsFirst>
__global__ void __launch_bounds__(32, 1) write_source(HazardMemory memory) {
  const int lane = lane_index();
  cp_async_cg(shared_words() + 4 * lane, memory.words + 4 * lane);
  cp_async_commit_group();
  if (kWaitsFirst) cp_async_wait_group<0>();
  __syncwarp();
  st_global(memory.words + (4 * lane + 4) % 128, 1u);
  __syncwarp();
  if (!kWaitsFirst) cp_async_wait_group<0>();
  st_global(memory.out + lane, ld_shared(shared_words() + 4 * lane));
}

// A histogram in shared memory: `before` its bins are zeroed, `after` they are read.
template <Order kBefore, Order kAfter>
__global__ void __launch_bounds__(kThreads, 1) histogram(HazardMemory memory) {
  const int i = threadIdx.x;
  if (i < 8) st_shared(shared_words() + i, 0u);
  order<kBefore>();
  for (int j = 0; j < 2; ++j) atomicAdd(shared_words() + i % 8, 1u);
  order<kAfter>();
  if (i < 8) st_global(memory.out + i, ld_shared(shared_words() + i));
}
// A warp counts in global memory. All threads read the counter as a plain word.
template <Order kOrder>
__global__ void __launch_bounds__(kThreads, 1) count_globally(HazardMemory memory) {
  if (threadIdx.x < 32) atomicAdd(memory.words, 1u);
  order<kOrder>();
  st_global(memory.out + threadIdx.x, ld_global(memory.words));
}

// Elements of less than a word, `stride` bytes apart from thread to thread.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1) small_stores(HazardMemory memory, int stride) {
  constexpr int kBytes = static_cast<int>(sizeof(T));
  T* const own = reinterpret_cast<T*>(dynamic_shared()) + threadIdx.x * stride / kBytes;
  const T value = {};
  st_shared(own, value);
  const T back = ld_shared(own);
  T* const global = reinterpret_cast<T*>(memory.words) + threadIdx.x * stride / kBytes;
  st_global(global, back);
  __syncthreads();
  st_global(memory.out + threadIdx.x, ld_global(memory.words + threadIdx.x * kBytes / 4));
}
struct Half {
  uint16_t bits;
};
// Lane 0 stores a word of which lane 1 stores one byte.
__global__ void __launch_bounds__(32, 1) byte_of_word(HazardMemory memory, int byte) {
  if (lane_index() == 0) st_shared(shared_words(), 0u);
  if (lane_index() == 1) st_shared(dynamic_shared() + byte, static_cast<unsigned char>(0));
  st_global(memory.out + lane_index(), 1u);
}

// ld_global_nc of the first 64 bytes, and a store to word `index`.
enum class First { stream, store };
template <First kFirst>
__global__ void __launch_bounds__(32, 1) stream_and_store(HazardMemory memory, int index) {
  const auto store_word = [&] {
    if (lane_index() == 31) st_global(memory.words + index, 0u);
  };
  if (kFirst == First::store) store_word();
  __syncthreads();
  uint32_t x = 0;
  if (lane_index() < 4) x = ld_global_nc(memory.words + 4 * lane_index()).w[3];
  __syncthreads();
  if (kFirst == First::stream) store_word();
  st_global(memory.out + lane_index(), x);
}

constexpr int kMessageLine = __LINE__ + 3;
__global__ void __launch_bounds__(64, 1) message(HazardMemory memory) {
  if (blockIdx.x == 1) {
    if (threadIdx.x == 37) st_shared(shared_words() + 3, 1u);
    if (threadIdx.x == 5) st_global(memory.out, ld_shared(shared_words() + 3));
  }
}

std::string check_message() {
  settings().seed = 1;  // in which the store comes first
  Memory<uint32_t> out(1);
  std::string wrong;
  const std::string expected =
      "kernel: read of shared memory that thread 37 wrote (races.cc:" + std::to_string(kMessageLine) +
      ") with no barrier between them, 4 bytes at byte 12 (races.cc:" + std::to_string(kMessageLine + 1) +
      ", thread 5) in block (1, 0, 0)";
  for (uint64_t seed = 1; seed <= 50 && wrong != expected; ++seed) {
    settings().seed = seed;
    wrong = run("kernel", 2, 64, 64, message, HazardMemory{nullptr, out.data(), nullptr});
  }
  settings().seed = 0;
  return wrong == expected ? "" : "the message is: " + wrong;
}

}  // namespace

std::vector<Check> race_checks() {
  const auto in = squares(kThreads);
  const std::vector<uint32_t> some(in.begin(), in.begin() + 32);
  const std::vector<uint32_t> sevens(kThreads, 7), fives(kThreads, 5), zeros(kThreads, 0), bins(8, 32);
  const std::vector<uint32_t> counted(kThreads, 32), whole_zeros(32, 0), whole_ones(32, 1), threes(32, 3);
  std::vector<uint32_t> neighbors(32), block_neighbors(kThreads), warp_neighbors(kThreads), firsts(32, in[0]);
  std::vector<uint32_t> consumed(32);
  for (uint32_t i = 0; i < 32; ++i) {
    neighbors[i] = in[(i + 1) % 32];
    consumed[i] = 4 * in[31 - i] + 6;
  }
  for (uint32_t i = 0; i < kThreads; ++i) {
    block_neighbors[i] = in[(i + 1) % kThreads];
    warp_neighbors[i] = in[i / 32 * 32 + (i + 1) % 32];
  }
  const Shape warp = {.threads = 32, .shared_bytes = 512, .words = 128};
  const Shape two_warps = {.threads = 64, .shared_bytes = 512};
  const Shape three_warps = {.threads = 96, .shared_bytes = 512};
  const Shape block = {.threads = kThreads, .shared_bytes = 512, .words = kThreads};
  const char* kUnordered = "with no barrier between them";
  const char* kCopying = "may still write";
  const char* kStreamed = "by ld_global_nc";
  HazardChecks c;
  c.clean("one thread stores to a word", [=] { return in_all_seeds(sevens, block, store_same_value, {}, 1); });
  c.found("two threads store the same value", kUnordered,
          [=] { return in_all_seeds(sevens, block, store_same_value, {}, 2); });
  c.clean("one thread stores to a global word",
          [=] { return in_all_seeds(sevens, block, store_same_value_globally, {}, 1); });
  c.found("two threads store the same value to a global word", kUnordered,
          [=] { return in_all_seeds(sevens, block, store_same_value_globally, {}, 2); });
  c.clean("handed on after __syncwarp", [=] { return in_all_seeds(neighbors, warp, hand_on<Order::warp>, some); });
  c.clean("handed on after __syncthreads", [=] { return in_all_seeds(neighbors, warp, hand_on<Order::block>, some); });
  c.found("handed on after a shuffle", kUnordered,
          [=] { return in_all_seeds(neighbors, warp, hand_on<Order::shuffle>, some); });
  c.found("handed on after a vote", kUnordered,
          [=] { return in_all_seeds(neighbors, warp, hand_on<Order::vote>, some); });
  c.clean("handed on in global memory after __syncthreads",
          [=] { return in_all_seeds(block_neighbors, block, hand_on_globally<Order::block>, in); });
  c.clean("handed on in global memory after __syncwarp",
          [=] { return in_all_seeds(warp_neighbors, block, hand_on_globally<Order::warp>, in); });
  c.found("handed on in global memory without a barrier", "with no barrier between",
          [=] { return in_all_seeds(block_neighbors, block, hand_on_globally<Order::none>, in); });
  c.clean("ldmatrix between barriers",
          [=] { return in_all_seeds(whole_ones, warp, matrix_rows<Order::warp, Order::warp>, {}); });
  c.found("ldmatrix of rows without a barrier before it", kUnordered,
          [=] { return in_all_seeds(whole_ones, warp, matrix_rows<Order::none, Order::warp>, {}); });
  c.found("ldmatrix of rows without a barrier after it", kUnordered,
          [=] { return in_all_seeds(whole_ones, warp, matrix_rows<Order::warp, Order::none>, {}); });
  c.clean("a relay over named barriers", [=] { return in_all_seeds(some, three_warps, relay, some, 1); });
  c.found("a relay that starts too early", kUnordered, [=] { return in_all_seeds(some, three_warps, relay, some, 2); });
  c.clean("one slot, full and empty", [=] { return in_all_seeds(consumed, two_warps, one_slot<true>, some); });
  c.found("one slot that is filled too early", kUnordered,
          [=] { return in_all_seeds(consumed, two_warps, one_slot<false>, some); });
  c.clean("a write after all warps have read",
          [=] { return in_all_seeds(fives, block, read_by_all<Order::block>, {}); });
  c.found("a write after one warp has read", kUnordered,
          [=] { return in_all_seeds(fives, block, read_by_all<Order::warp>, {}); });
  c.clean("a copy that is waited for", [=] { return in_all_seeds(firsts, warp, touch_copy<Touch::nothing>, some); });
  c.found("a read before the wait", kCopying,
          [=] { return in_all_seeds(firsts, warp, touch_copy<Touch::read>, some); });
  c.found("a write before the wait", kCopying,
          [=] { return in_all_seeds(firsts, warp, touch_copy<Touch::write>, some); });
  c.found("two copies to the same place", kCopying,
          [=] { return in_all_seeds(firsts, warp, touch_copy<Touch::copy>, some); });
  c.clean("a copy after the last read", [=] { return in_all_seeds(threes, warp, copy_over_read<Order::warp>, some); });
  c.found("a copy before the last read", kUnordered,
          [=] { return in_all_seeds(threes, warp, copy_over_read<Order::none>, some); });
  c.clean("the source of a copy, written after it",
          [=] { return in_all_seeds(whole_zeros, warp, write_source<true>, {}); });
  c.found("the source of a copy, written before its end", "read by cp.async",
          [=] { return in_all_seeds(whole_zeros, warp, write_source<false>, {}); });
  c.clean("atomics on shared memory between barriers",
          [=] { return in_all_seeds(bins, block, histogram<Order::block, Order::block>, {}); });
  c.found("atomics on shared memory too early", kUnordered,
          [=] { return in_all_seeds(bins, block, histogram<Order::warp, Order::block>, {}); });
  c.found("a read of an atomic's word too early", "changed by an atomic",
          [=] { return in_all_seeds(bins, block, histogram<Order::block, Order::warp>, {}); });
  c.clean("a counter in global memory, read after a barrier",
          [=] { return in_all_seeds(counted, block, count_globally<Order::block>, {}); });
  c.found("a counter in global memory, read too early", "with no barrier between",
          [=] { return in_all_seeds(counted, block, count_globally<Order::warp>, {}); });
  c.clean("bytes beside each other", [=] { return in_all_seeds(zeros, block, small_stores<unsigned char>, {}, 1); });
  c.clean("halves beside each other", [=] { return in_all_seeds(zeros, block, small_stores<Half>, {}, 2); });
  c.found("halves that two threads have", kUnordered,
          [=] { return in_all_seeds(zeros, block, small_stores<Half>, {}, 1); });
  c.clean("a word and a byte beside it", [=] { return in_all_seeds(whole_ones, warp, byte_of_word, {}, 4); });
  c.found("a word and a byte of it", kUnordered, [=] { return in_all_seeds(whole_ones, warp, byte_of_word, {}, 3); });
  c.clean("ld_global_nc, and a store beside it",
          [=] { return in_all_seeds(whole_zeros, warp, stream_and_store<First::stream>, {}, 16); });
  c.found("ld_global_nc, then a store", kStreamed,
          [=] { return in_all_seeds(whole_zeros, warp, stream_and_store<First::stream>, {}, 15); });
  c.found("a store, then ld_global_nc", kStreamed,
          [=] { return in_all_seeds(whole_zeros, warp, stream_and_store<First::store>, {}, 15); });
  c.checks.push_back({"message: both threads, both lines, block and byte", check_message});
  return c.checks;
}

}  // namespace diffqkv::check
