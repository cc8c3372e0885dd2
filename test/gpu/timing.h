// Timings by CUDA events: what they share.
#pragma once

#include <functional>
#include <optional>

#include "device_cases.h"

namespace diffqkv::cuda {

// Reuses its scratch memory from call to call, as the device's own context does.
class TimingContext : public Context {
 public:
  explicit TimingContext(const DeviceShape& shape);
  ~TimingContext() override;
  void* scratch(size_t bytes) override;
  uint32_t* zeroed_words(size_t count) override;
  // Waits. Throws an error of the device, or if a kernel reports an argument.
  void finish();

 private:
  Memory<Finding> found_;
  std::optional<Memory<uint8_t>> scratch_;
  std::optional<Memory<uint32_t>> words_;
};

struct Timing {
  double us = 0, min_us = 0;  // of one run, on the device: the median and the least of `batches`
  double enqueue_us = 0;      // of one run, on the host: the median
  int batches = 0, runs = 0;  // runs in each batch
};

// Times run(i), i rising, which enqueues to the context's stream: one batch as a warm-up, then batches of several runs.
Timing measure(Context& context, const std::function<void(int64_t i)>& run);

// Random bf16 numbers of standard deviation 0.02 that serve as weights, caches and queries. Their last bit is 0, so that
// neither of their bytes is the NaN of f8e4m3. Grown as cases ask for more.
class Arena {
 public:
  // At least `bytes` of them. What was given out before is gone. Throws driver::Skipped if the device has not so many.
  uint8_t* get(size_t bytes);

 private:
  std::optional<Memory<uint8_t>> memory_;
};
Arena& arena();

// How many copies of an input of `bytes` exceed the L2 three times over, so that each run reads it from memory.
int64_t copies_past_l2(size_t bytes);

// The members that every timing has, with rates and what part of the device's limits they are, if they are not 0.
struct Work {
  double bytes = 0, flops = 0;
};
driver::Fields timing_fields(const Timing& timing, const Work& work);

std::vector<driver::Case> limit_cases(bool small);
std::vector<driver::Case> attention_timings(bool small);
std::vector<driver::Case> linear_timings(bool small);
std::vector<driver::Case> sample_timings(bool small);
std::vector<driver::Case> decode_step_timings(bool small);

}  // namespace diffqkv::cuda
