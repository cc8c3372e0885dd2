// What the checks of operators share: running a call in a chosen order of threads, with what is counted.
#pragma once

#include <cstdio>

#include "calls/call.h"
#include "check.h"
#include "engine/runtime.h"

namespace diffqkv::check {

using namespace emulated;

constexpr int kSeeds = 50;
constexpr int kFewMultiprocessors = 6;  // so that there are few blocks to run in many orders

// Returns what is wrong. `left`: the bytes of all tensors afterwards, inputs as well, unless something is wrong.
inline std::string run_call(Call& call, Counters* counters, uint64_t seed, std::vector<std::vector<uint8_t>>* left,
                            size_t* scratch_bytes = nullptr, int multiprocessors = kFewMultiprocessors,
                            size_t shared_bytes = gpu_shape().max_shared_bytes) {
  CallContext context(multiprocessors, shared_bytes);
  settings().seed = seed;
  settings().counters = counters;
  std::string wrong;
  try {
    call.enqueue(context);
    context.finish();
  } catch (const std::exception& error) {
    wrong = error.what();
  }
  settings().seed = 0;
  settings().counters = nullptr;
  if (left && wrong.empty()) {
    for (const Tensor& tensor : call.tensors) left->push_back(tensor.memory.values());
  }
  if (scratch_bytes) *scratch_bytes = context.scratch_bytes();
  return wrong;
}

// What a call does on all multiprocessors of the emulated GPU.
inline std::string count_traffic(Call& call, Counters* counters, size_t* scratch_bytes = nullptr) {
  return run_call(call, counters, 0, nullptr, scratch_bytes, gpu_shape().num_multiprocessors);
}

// The same bits with each of the seeds.
inline std::string same_in_all_seeds(const std::function<Call()>& make) {
  std::vector<std::vector<uint8_t>> first;
  for (int seed = 0; seed <= kSeeds; ++seed) {
    Call call = make();
    std::vector<std::vector<uint8_t>> left;
    const std::string wrong = run_call(call, nullptr, static_cast<uint64_t>(seed), &left);
    if (!wrong.empty()) return "seed " + std::to_string(seed) + ": " + wrong;
    if (seed == 0) first = left;
    if (left != first) return "seed " + std::to_string(seed) + " gives other bits than the threads in order";
  }
  return "";
}

inline std::string within(const char* what, double ratio, double low, double high) {
  if (ratio >= low && ratio <= high) return "";
  char text[200];
  std::snprintf(text, sizeof(text), "%s: %.4f, must lie in [%.4f, %.4f]; ", what, ratio, low, high);
  return text;
}

inline double bytes_of(const Tensor& tensor) { return static_cast<double>(tensor.memory.bytes()); }

inline double read_from(const Counters& c, const Tensor& tensor) {
  const auto found = c.read_bytes_by_allocation.find(tensor.memory.data());
  return found == c.read_bytes_by_allocation.end() ? 0 : static_cast<double>(found->second);
}

}  // namespace diffqkv::check
