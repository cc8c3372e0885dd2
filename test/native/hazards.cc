// For each hazard a small kernel that has it, and the same kernel without it: the emulation must find the first in one of
// the seeds, and nothing in the second in any of them.
#include <tuple>
#include <type_traits>

#include "calls/memory.h"
#include "check.h"
#include "device/async.h"
#include "device/mma.h"

namespace diffqkv::check {
namespace {

using namespace emulated;

constexpr int kThreads = 128;
constexpr int kSeeds = 50;

// out[i] = the sum over rounds of in[(i + 32 * round) % kThreads], handed on through shared memory. Two barriers a round:
// before reading what others wrote, and before writing over what others read.
template <bool kFirstBarrier, bool kSecondBarrier>
DIFFQKV_KERNEL(kThreads, 1)
pass_on(const uint32_t* in, uint32_t* out) {
  uint32_t* shared = reinterpret_cast<uint32_t*>(dynamic_shared());
  const int i = thread_index();
  const uint32_t own = load(in + i);
  store_shared(shared + i, 0u);
  sync_block();
  uint32_t sum = 0;
  for (int round = 1; round <= 3; ++round) {
    store_shared(shared + i, own * static_cast<uint32_t>(round));
    if (kFirstBarrier) sync_block();
    sum += load_shared(shared + (i + 32 * round) % kThreads);
    if (kSecondBarrier) sync_block();
  }
  store(out + i, sum);
}

// The same within a warp.
template <bool kSync>
DIFFQKV_KERNEL(32, 1)
pass_on_in_warp(const uint32_t* in, uint32_t* out) {
  uint32_t* shared = reinterpret_cast<uint32_t*>(dynamic_shared());
  const int i = thread_index();
  store_shared(shared + i, 0u);
  sync_warp();
  store_shared(shared + i, load(in + i));
  if (kSync) sync_warp();
  store(out + i, load_shared(shared + (i + 1) % 32));
}

// kNewest: 0 waits for both groups, 1 forgets the newer; -1 forgets to wait at all.
template <int kNewest, bool kBarrier>
DIFFQKV_KERNEL(kThreads, 1)
copy_async(const uint32_t* in, uint32_t* out) {
  unsigned char* shared = dynamic_shared();
  const int i = thread_index();
  cp_async_16(shared + 16 * i, in + 4 * i);
  cp_async_commit();
  cp_async_16(shared + 16 * (kThreads + i), in + 4 * (kThreads + i));
  cp_async_commit();
  if constexpr (kNewest >= 0) cp_async_wait<kNewest>();
  if (kBarrier) sync_block();
  for (int j = 0; j < 2; ++j) {
    const int from = 2 * kThreads - 1 - (j * kThreads + i);
    store(out + from, load_shared(reinterpret_cast<uint32_t*>(shared + 16 * from)));
  }
}

// The stage that is being read is filled anew too early.
template <bool kBarrier>
DIFFQKV_KERNEL(kThreads, 1)
refill_stage(const uint32_t* in, uint32_t* out) {
  unsigned char* shared = dynamic_shared();
  const int i = thread_index();
  uint32_t sum = 0;
  for (int step = 0; step < 4; ++step) {
    cp_async_16(shared + 16 * i, in + 4 * (step * kThreads + i));
    cp_async_commit();
    cp_async_wait<0>();
    sync_block();
    sum += load_shared(reinterpret_cast<uint32_t*>(shared + 16 * ((i + 64) % kThreads)));
    if (kBarrier) sync_block();
  }
  store(out + i, sum);
}

DIFFQKV_KERNEL(32, 1) store_at(uint32_t* out, int index) { store(out + index + thread_index(), 1u); }
DIFFQKV_KERNEL(32, 1) load_at(const uint32_t* in, uint32_t* out, int index) {
  store(out + thread_index(), load(in + index + thread_index()));
}
DIFFQKV_KERNEL(32, 1) load_words_at(const uint32_t* in, uint32_t* out, int index) {
  store(out + thread_index(), load(reinterpret_cast<const Words4*>(in + index)).w[0]);
}
DIFFQKV_KERNEL(32, 1) copy_at(const uint32_t* in, uint32_t* out, int index, int valid_bytes) {
  cp_async_16(dynamic_shared() + 16 * thread_index(), in + index, valid_bytes);
  cp_async_commit();
  cp_async_wait<0>();
  store(out + thread_index(), load_shared(reinterpret_cast<uint32_t*>(dynamic_shared()) + 4 * thread_index()));
}
DIFFQKV_KERNEL(32, 1) shared_at(uint32_t* out, int written, int read) {
  uint32_t* shared = reinterpret_cast<uint32_t*>(dynamic_shared());
  store_shared(shared + written + thread_index(), 7u);
  store(out + thread_index(), load_shared(shared + read + thread_index()));
}
DIFFQKV_KERNEL(32, 1) ldmatrix_of(uint32_t* out, int written_rows) {
  if (lane_index() < written_rows) store_shared(reinterpret_cast<Words4*>(dynamic_shared()) + lane_index(), Words4{});
  sync_warp();
  uint32_t r[4];
  ldmatrix_x4(r, dynamic_shared() + 16 * lane_index());
  store(out + lane_index(), r[3]);
}
DIFFQKV_KERNEL(kThreads, 1) barrier_below(uint32_t* out, int limit) {
  if (thread_index() < limit) sync_block();
  store(out + thread_index(), 1u);
}
DIFFQKV_KERNEL(kThreads, 1) two_barriers(uint32_t* out, int limit) {
  if (thread_index() < limit) {
    sync_block();
  } else {
    sync_block();
  }
  store(out + thread_index(), 1u);
}
DIFFQKV_KERNEL(kThreads, 1) named_barrier(uint32_t* out, int threads) {
  if (thread_index() < 64) sync_named(1, threads);
  store(out + thread_index(), 1u);
}
DIFFQKV_KERNEL(32, 1) shuffle_below(uint32_t* out, int limit) {
  uint32_t x = static_cast<uint32_t>(lane_index());
  if (lane_index() < limit) x = shuffle_xor(x, 1);
  store(out + lane_index(), x);
}
DIFFQKV_KERNEL(32, 1) two_operations(uint32_t* out, int limit) {
  uint32_t x = static_cast<uint32_t>(lane_index());
  if (lane_index() < limit) {
    x = shuffle_xor(x, 1);
  } else {
    x = ballot(true);
  }
  store(out + lane_index(), x);
}

// What a kernel gives in each of the seeds: "" where the output is `expected` in all, else the first that is not.
template <typename... Parameters, typename... Arguments>
std::string in_all_seeds(const std::vector<uint32_t>& expected, size_t shared_bytes, unsigned threads,
                         void (*kernel)(Parameters...), const std::vector<uint32_t>& in,
                         const Arguments&... arguments) {
  std::string wrong;
  for (int seed = 0; seed <= kSeeds && wrong.empty(); ++seed) {
    settings().seed = static_cast<uint64_t>(seed);
    Memory<uint32_t> from(in), to(expected.size());
    if constexpr (std::is_same_v<std::tuple<Parameters...>, std::tuple<const uint32_t*, uint32_t*, Arguments...>>) {
      wrong = run("kernel", 1, threads, shared_bytes, kernel, from.data(), to.data(), arguments...);
    } else {
      wrong = run("kernel", 1, threads, shared_bytes, kernel, to.data(), arguments...);
    }
    if (wrong.empty() && to.values() != expected) wrong = "wrong output with seed " + std::to_string(seed);
  }
  settings().seed = 0;
  return wrong;
}

std::string must_be_found(const std::string& wrong, const std::string& words) {
  if (wrong.empty()) return "the hazard was not found";
  return wrong.find(words) == std::string::npos ? "found, but as: " + wrong : "";
}

std::vector<uint32_t> numbers(size_t count) {
  std::vector<uint32_t> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<uint32_t>(i * i + 1);
  return values;
}

std::vector<uint32_t> passed_on() {
  const std::vector<uint32_t> in = numbers(kThreads);
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
  const auto in = numbers(kThreads);
  const auto copies = numbers(8 * kThreads), stages = numbers(16 * kThreads);
  std::vector<uint32_t> refilled(kThreads), neighbours(32), sevens(32, 7), ones(kThreads, 1), swapped(32);
  for (uint32_t i = 0; i < kThreads; ++i) {
    for (uint32_t step = 0; step < 4; ++step) refilled[i] += stages[4 * (step * kThreads + (i + 64) % kThreads)];
  }
  for (uint32_t i = 0; i < 32; ++i) neighbours[i] = in[(i + 1) % 32], swapped[i] = i ^ 1;
  const std::vector<uint32_t> some(in.begin(), in.begin() + 32), zeros(32, 0), whole_ones(32, 1);
  const size_t words = 4 * kThreads, copied = 32 * kThreads;
  const char* kWrong = "wrong output with seed";
  const char* kUnwritten = "shared memory that nobody wrote";
  const char* kMissing = "not all threads arrive";
  std::vector<Check> checks;
  const auto clean = [&](const char* name, std::function<std::string()> run) {
    checks.push_back({std::string("clean: ") + name, std::move(run)});
  };
  const auto found = [&](const char* name, const char* as, std::function<std::string()> run) {
    checks.push_back({std::string("found: ") + name, [=] { return must_be_found(run(), as); }});
  };
  clean("barriers where they belong",
        [=] { return in_all_seeds(passed_on(), words, kThreads, pass_on<true, true>, in); });
  found("no barrier before reading what others wrote", kWrong,
        [=] { return in_all_seeds(passed_on(), words, kThreads, pass_on<false, true>, in); });
  found("no barrier before writing over what others read", kWrong,
        [=] { return in_all_seeds(passed_on(), words, kThreads, pass_on<true, false>, in); });
  clean("sync_warp where it belongs", [=] { return in_all_seeds(neighbours, 128, 32, pass_on_in_warp<true>, some); });
  found("no sync_warp", kWrong, [=] { return in_all_seeds(neighbours, 128, 32, pass_on_in_warp<false>, some); });
  clean("cp.async, waited for",
        [=] { return in_all_seeds(every_fourth(copies), copied, kThreads, copy_async<0, true>, copies); });
  found("cp.async, not waited for", kUnwritten,
        [=] { return in_all_seeds(every_fourth(copies), copied, kThreads, copy_async<-1, true>, copies); });
  found("cp.async, the newest group not waited for", kUnwritten,
        [=] { return in_all_seeds(every_fourth(copies), copied, kThreads, copy_async<1, true>, copies); });
  found("cp.async, no barrier after the wait", kUnwritten,
        [=] { return in_all_seeds(every_fourth(copies), copied, kThreads, copy_async<0, false>, copies); });
  clean("a stage filled anew after all have read it",
        [=] { return in_all_seeds(refilled, 16 * kThreads, kThreads, refill_stage<true>, stages); });
  found("a stage filled anew while it is read", kWrong,
        [=] { return in_all_seeds(refilled, 16 * kThreads, kThreads, refill_stage<false>, stages); });
  clean("a store inside", [=] { return in_all_seeds(whole_ones, 0, 32, store_at, {}, 0); });
  found("a store past the end", "write to global memory",
        [=] { return in_all_seeds(whole_ones, 0, 32, store_at, {}, 1); });
  found("a store before the beginning", "write to global memory",
        [=] { return in_all_seeds(whole_ones, 0, 32, store_at, {}, -1); });
  clean("a load inside", [=] { return in_all_seeds(some, 0, 32, load_at, some, 0); });
  found("a load past the end", "read of global memory", [=] { return in_all_seeds(some, 0, 32, load_at, some, 1); });
  found("16 bytes, not aligned to 16", "not aligned",
        [=] { return in_all_seeds(some, 0, 32, load_words_at, some, 2); });
  clean("cp.async of no bytes", [=] { return in_all_seeds(zeros, 512, 32, copy_at, some, 1000, 0); });
  found("cp.async past the end", "read by cp.async",
        [=] { return in_all_seeds(zeros, 512, 32, copy_at, some, 32, 4); });
  clean("shared memory, written first", [=] { return in_all_seeds(sevens, 256, 32, shared_at, {}, 32, 32); });
  found("shared memory that nobody wrote", kUnwritten,
        [=] { return in_all_seeds(sevens, 256, 32, shared_at, {}, 0, 16); });
  found("a store past the end of shared memory", "write to shared memory",
        [=] { return in_all_seeds(sevens, 128, 32, shared_at, {}, 1, 1); });
  clean("ldmatrix of 32 rows", [=] { return in_all_seeds(zeros, 512, 32, ldmatrix_of, {}, 32); });
  found("ldmatrix of a row that nobody wrote", kUnwritten,
        [=] { return in_all_seeds(zeros, 512, 32, ldmatrix_of, {}, 31); });
  clean("a barrier for all", [=] { return in_all_seeds(ones, 0, kThreads, barrier_below, {}, kThreads); });
  found("a barrier for some", kMissing, [=] { return in_all_seeds(ones, 0, kThreads, barrier_below, {}, 100); });
  clean("all at one of two barriers", [=] { return in_all_seeds(ones, 0, kThreads, two_barriers, {}, kThreads); });
  found("a barrier in each branch", "different barriers",
        [=] { return in_all_seeds(ones, 0, kThreads, two_barriers, {}, 64); });
  clean("a named barrier", [=] { return in_all_seeds(ones, 0, kThreads, named_barrier, {}, 64); });
  found("a named barrier that waits for too many", kMissing,
        [=] { return in_all_seeds(ones, 0, kThreads, named_barrier, {}, 96); });
  clean("a shuffle of all lanes", [=] { return in_all_seeds(swapped, 0, 32, shuffle_below, {}, 32); });
  found("a shuffle of some lanes", kMissing, [=] { return in_all_seeds(swapped, 0, 32, shuffle_below, {}, 16); });
  found("lanes at different operations", "different operations",
        [=] { return in_all_seeds(swapped, 0, 32, two_operations, {}, 16); });
  return checks;
}

}  // namespace diffqkv::check
