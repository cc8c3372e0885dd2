// A call of an operator as a check makes it: its tensors, what runs it in a chosen order of threads, and what is counted.
#pragma once

#include <cstdio>

#include "check.h"
#include "device_memory.h"
#include "kernels.h"

namespace diffqkv::check {

using namespace emulated;

constexpr int kSeeds = 50;

// Scratch that starts as NaN at each request, so that nothing can live on what an earlier call left.
class CheckContext : public Context {
 public:
  explicit CheckContext(int multiprocessors) {
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    num_multiprocessors = multiprocessors;
    finding = found_.data();
    std::memset(finding, 0, sizeof(Finding));
  }
  ~CheckContext() override { cudaStreamDestroy(stream); }
  void* scratch(size_t bytes) override {
    scratch_.push_back(std::make_unique<Memory<uint8_t>>(bytes));
    return scratch_.back()->data();
  }
  uint32_t* zeroed_words(size_t count) override {
    words_.push_back(std::make_unique<Memory<uint32_t>>(std::vector<uint32_t>(count, 0)));
    return words_.back()->data();
  }
  // Runs what was enqueued. Returns what is wrong, with the words that were to be left 0.
  std::string finish() {
    const cudaError_t status = cudaStreamSynchronize(stream);
    if (status != cudaSuccess) return cudaGetErrorString(status);
    for (const auto& words : words_) {
      for (const uint32_t word : words->values())
        if (word != 0) return "a zeroed word was left " + std::to_string(word);
    }
    return finding->kind == Finding::none ? "" : "a kernel reports an argument";
  }
  size_t scratch_bytes() const {
    size_t bytes = 0;
    for (const auto& memory : scratch_) bytes += memory->bytes();
    return bytes;
  }

 private:
  Memory<Finding> found_{1};
  std::vector<std::unique_ptr<Memory<uint8_t>>> scratch_;
  std::vector<std::unique_ptr<Memory<uint32_t>>> words_;
};

// Random numbers of a type, in device memory.
inline std::unique_ptr<Memory<uint8_t>> random_tensor(DType dtype, size_t count, float scale, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(count);
  for (float& x : values) x = random.normal(scale);
  std::vector<uint8_t> bytes(count * dtype_size(dtype));
  convert_from_f32(dtype, bytes.data(), values.data(), count);
  return std::make_unique<Memory<uint8_t>>(bytes);
}

// A call of an operator: its tensors, inputs and outputs alike, tables of pages, and how to make it.
struct Call {
  std::vector<std::unique_ptr<Memory<uint8_t>>> tensors;
  std::vector<std::unique_ptr<Memory<KvPage>>> pages;
  std::unique_ptr<Memory<const KvPage*>> tables;
  std::function<void(Context&)> enqueue;
};

inline std::string run_call(Call& call, Counters* counters, uint64_t seed, std::vector<std::vector<uint8_t>>* left,
                            size_t* scratch_bytes = nullptr, int multiprocessors = 6) {
  CheckContext context(multiprocessors);
  settings().seed = seed, settings().counters = counters;
  std::string wrong;
  try {
    call.enqueue(context);
    wrong = context.finish();
  } catch (const std::exception& error) {
    wrong = error.what();
  }
  settings().seed = 0, settings().counters = nullptr;
  if (left) {
    for (const auto& tensor : call.tensors) left->push_back(tensor->values());
  }
  if (scratch_bytes) *scratch_bytes = context.scratch_bytes();
  return wrong;
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

inline Check seeds_check(const std::string& name, std::function<Call()> make) {
  return {std::to_string(kSeeds) + " seeds: " + name, [make] { return same_in_all_seeds(make); }};
}

struct Heads {
  int64_t q, k, v;
};
struct Dims {
  int64_t qk, vo;
};

inline size_t words(int64_t a, int64_t b, int64_t c = 1, int64_t d = 1) { return static_cast<size_t>(a * b * c * d); }

inline const int32_t* add_lengths(Call& call, const std::vector<int32_t>& lengths) {
  std::vector<uint8_t> bytes(lengths.size() * 4);
  std::memcpy(bytes.data(), lengths.data(), bytes.size());
  call.tensors.push_back(std::make_unique<Memory<uint8_t>>(bytes));
  return reinterpret_cast<const int32_t*>(call.tensors.back()->data());
}

inline std::string within(const char* what, double ratio, double low, double high) {
  if (ratio >= low && ratio <= high) return "";
  char text[200];
  std::snprintf(text, sizeof(text), "%s: %.4f, must lie in [%.4f, %.4f]; ", what, ratio, low, high);
  return text;
}

inline double read_from(const Counters& c, const Memory<uint8_t>& tensor) {
  const auto found = c.read_bytes_by_allocation.find(tensor.data());
  return found == c.read_bytes_by_allocation.end() ? 0 : static_cast<double>(found->second);
}

}  // namespace diffqkv::check
