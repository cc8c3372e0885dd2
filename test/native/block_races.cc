// Races between blocks: a block sees what another stored in the same launch only through a fence and an atomic there, and
// an atomic and a fence here.
#include <set>

#include "device/finding.h"
#include "device/warp.h"
#include "hazard.h"

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

DIFFQKV_DEVICE void store_part(const HazardMemory& memory) {
  const int word = block_x() * num_threads() + thread_index();
  store(memory.words + 1 + word, load(memory.in + word));
}
template <Steps kSteps>
DIFFQKV_DEVICE bool arrive(const HazardMemory& memory) {
  if (kSteps.fence_before) fence_device();
  const uint32_t before = atomic_add(memory.words, 1u);
  if (kSteps.fence_after) fence_device();
  return before + 1 == static_cast<uint32_t>(grid_x());
}
// What another thread of each block has stored, added up.
DIFFQKV_DEVICE void add_parts(const HazardMemory& memory) {
  uint32_t sum = 0;
  for (int block = 0; block < grid_x(); ++block)
    sum += load(memory.words + 1 + block * num_threads() + (thread_index() + 1) % num_threads());
  store(memory.out + thread_index(), sum);
}

template <Steps kSteps>
DIFFQKV_KERNEL(kThreads, 1)
combine(HazardMemory memory) {
  store_part(memory);
  if (kSteps.fence_of_all_before) fence_device();
  if (kSteps.barrier_before) sync_block();
  uint32_t* const is_last = reinterpret_cast<uint32_t*>(dynamic_shared());
  if (thread_index() == 0) store_shared(is_last, arrive<kSteps>(memory) ? 1u : 0u);
  sync_block();
  if (load_shared(is_last) == 0) return;
  if (kSteps.fence_of_all_after) fence_device();
  add_parts(memory);
}
// Blocks of one warp, in which a shuffle says whether the block is the last.
template <Steps kSteps>
DIFFQKV_KERNEL(32, 1)
combine_in_warps(HazardMemory memory) {
  store_part(memory);
  if (kSteps.barrier_before) sync_warp();
  uint32_t last = 0;
  if (thread_index() == 0) last = arrive<kSteps>(memory) ? 1u : 0u;
  last = shuffle(last, 0);
  if (kSteps.barrier_after) sync_warp();
  if (last != 0) add_parts(memory);
}

// Three blocks that come one after the other: the first hands a word to the second, and that to the third, by an atomic
// each. Blocks that come at the same time do not wait for each other.
template <bool kFence>
DIFFQKV_KERNEL(32, 1)
relay(HazardMemory memory) {
  uint32_t *const ticket = memory.words, *const first = memory.words + 1, *const second = memory.words + 2;
  uint32_t* const word = memory.words + 3;
  if (lane_index() != 0) return;
  const uint32_t place = atomic_add(ticket, 1u);
  if (place == 0) {
    store(word, 1u);
    fence_device();
    atomic_add(first, 1u);
  } else if (place == 1 && atomic_add(first, 1u) == 1) {
    if (kFence) fence_device();
    atomic_add(second, 1u);
  } else if (place == 2 && atomic_add(second, 1u) == 1) {
    fence_device();
    load(word);
  }
  if (block_x() == 0) store(memory.out, 1u);
}

// Which block is the last to come.
DIFFQKV_KERNEL(32, 1) who_is_last(HazardMemory memory) {
  if (lane_index() == 0 && atomic_add(memory.words, 1u) + 1 == static_cast<uint32_t>(grid_x()))
    store(memory.out, static_cast<uint32_t>(block_x()));
}

// The first `writers` blocks store the same value to the same byte; the last block reads it, if it is to.
DIFFQKV_KERNEL(32, 1) store_byte(HazardMemory memory, int writers, bool reads) {
  unsigned char* const byte = reinterpret_cast<unsigned char*>(memory.words);
  if (lane_index() != 0) return;
  if (block_x() < writers) store(byte, static_cast<unsigned char>(7));
  if (reads && block_x() == grid_x() - 1) load(byte);
  if (block_x() == 0) store(memory.out, 1u);
}
DIFFQKV_KERNEL(32, 1) bytes_beside_each_other(HazardMemory memory) {
  if (lane_index() == 0)
    store(reinterpret_cast<unsigned char*>(memory.out) + block_x(), static_cast<unsigned char>(block_x()));
}
DIFFQKV_KERNEL(32, 1) count(HazardMemory memory, bool resets) {
  if (lane_index() != 0) return;
  if (block_x() == 0 && resets) store(memory.out, 0u);
  atomic_add(memory.words, 1u);
  if (block_x() == 0) store(memory.out, 1u);
  if (block_x() == 1 && resets) store(memory.words, 0u);
}
// All blocks report; one of them is heard. `twice`: the words beside `kind` are stored by all.
DIFFQKV_KERNEL(32, 1) report_all(HazardMemory memory, bool all) {
  if (lane_index() != 0) return;
  Finding* const finding = reinterpret_cast<Finding*>(memory.words);
  report(finding, Finding::kv_len, 3, 3, 3);
  if (all) store(&finding->index, 3);
  if (block_x() == 0) store(memory.out, 1u);
}
DIFFQKV_KERNEL(32, 1) stream_in_another_block(HazardMemory memory, int index) {
  if (block_x() == 0) {
    if (lane_index() == 0) store(memory.words + index, 0u);
  } else {
    store(memory.out + lane_index(), load_streaming(memory.words + 4 * lane_index()).w[0]);
  }
}

constexpr int kMessageLine = __LINE__ + 3;
DIFFQKV_KERNEL(32, 1) message(HazardMemory memory) {
  if (block_x() == 2) {
    if (lane_index() == 9) store(memory.words + 6, 1u);
  } else {
    if (lane_index() == 4) load(memory.words + 6);
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
  c.found("no sync_warp before the first fence", kNoChain,
          [=] { return in_all_seeds(combined_in_warps, warps, combine_in_warps<Steps{.barrier_before = false}>, in); });
  c.found("no sync_warp after the second fence", kNoChain,
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
  c.clean("load_streaming beside another block's store",
          [=] { return in_all_seeds(zeros, two, stream_in_another_block, {}, 128); });
  c.found("load_streaming of another block's store", "by load_streaming",
          [=] { return in_all_seeds(zeros, two, stream_in_another_block, {}, 127); });
  c.checks.push_back({"message: both blocks, threads and lines, and the byte", check_message});
  c.checks.push_back({"each block is the last to come in some seed", check_each_is_last});
  return c.checks;
}

}  // namespace diffqkv::check
