// How timings are taken, and the limits of the device that each stands beside.
#include "timing.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include <device/mma.h>

namespace diffqkv::cuda {
namespace {

using driver::Case;
using driver::Fields;
using driver::json_number;
using driver::Result;
using Clock = std::chrono::steady_clock;

#if !defined(__CUDACC__)
constexpr double kBatchUs = 0, kMaxUs = 0;  // emulated times mean nothing: one run a batch, on one copy of an input
constexpr int kMinBatches = 2;
constexpr size_t kL2Times = 0;
#else
constexpr double kBatchUs = 3000, kMaxUs = 200e3;
constexpr int kMinBatches = 5;
constexpr size_t kL2Times = 3;
#endif
constexpr int kMaxBatches = 20, kMaxRuns = 1000;

double us_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

class Stopwatch {
 public:
  explicit Stopwatch(cudaStream_t stream) : stream_(stream) {
    check_cuda(cudaEventCreate(&start_), "cudaEventCreate");
    check_cuda(cudaEventCreate(&stop_), "cudaEventCreate");
  }
  ~Stopwatch() {
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
  }
  // Microseconds on the device.
  double time(const std::function<void()>& work) {
    check_cuda(cudaEventRecord(start_, stream_), "cudaEventRecord");
    work();
    check_cuda(cudaEventRecord(stop_, stream_), "cudaEventRecord");
    check_cuda(cudaEventSynchronize(stop_), "cudaEventSynchronize");
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, start_, stop_), "cudaEventElapsedTime");
    return 1e3 * static_cast<double>(ms);
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

}  // namespace

TimingContext::TimingContext(const DeviceShape& shape) : found_(std::vector<Finding>(1, Finding{})) {
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  num_multiprocessors = shape.multiprocessors;
  max_shared_bytes = shape.shared_bytes;
  finding = found_.data();
}
TimingContext::~TimingContext() {
  cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
}

void* TimingContext::scratch(size_t bytes) {
  if (!scratch_ || scratch_->bytes() < bytes) {
    check_cuda(cudaStreamSynchronize(stream), "scratch");
    scratch_.reset();
    scratch_.emplace(bytes);
  }
  return scratch_->data();
}

uint32_t* TimingContext::zeroed_words(size_t count) {
  if (!words_ || words_->size() < count) {
    check_cuda(cudaStreamSynchronize(stream), "zeroed_words");
    words_.reset();
    words_.emplace(std::vector<uint32_t>(count, 0));
  }
  return words_->data();
}

void TimingContext::finish() {
  check_cuda(cudaStreamSynchronize(stream), "timing");
  if (found_.values()[0].kind != Finding::none) throw std::runtime_error("a kernel reports an argument");
}

Timing measure(Context& context, const std::function<void(int64_t i)>& run) {
  Stopwatch stopwatch(context.stream);
  int64_t next = 0;
  Timing timing;
  timing.runs = 1;
  std::vector<double> device, host;
  const auto batch = [&] {
    double host_us = 0;
    const double us = stopwatch.time([&] {
      const Clock::time_point start = Clock::now();
      for (int i = 0; i < timing.runs; ++i) run(next++);
      host_us = us_since(start);
    });
    device.push_back(us / timing.runs);
    host.push_back(host_us / timing.runs);
    return us;
  };
  batch();  // the first run also loads code and grows scratch memory
  const double once = batch();
  timing.runs = static_cast<int>(std::clamp(kBatchUs / std::max(once, 1.0), 1.0, double{kMaxRuns}));
  batch();
  device.clear();
  host.clear();
  double total = 0;
  while (timing.batches < kMinBatches || (timing.batches < kMaxBatches && total < kMaxUs)) {
    total += batch();
    ++timing.batches;
    if (total > 10 * kMaxUs && timing.batches >= 3) break;
  }
  timing.us = median(device);
  timing.min_us = *std::min_element(device.begin(), device.end());
  timing.enqueue_us = median(host);
  return timing;
}

namespace {

constexpr int kClearThreads = 256;

struct ClearParams {
  uint32_t* words;
  int64_t count;
};

__global__ void __launch_bounds__(kClearThreads, 4) clear_last_bits(ClearParams p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kClearThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kClearThreads + threadIdx.x; i < p.count; i += step)
    st_global(p.words + i, ld_global(p.words + i) & 0xfffefffeu);
}

}  // namespace

uint8_t* Arena::get(size_t bytes) {
  if (memory_ && memory_->bytes() >= bytes) return memory_->data();
  memory_.reset();
  size_t free_bytes = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free_bytes, &total), "cudaMemGetInfo");
  if (bytes > free_bytes - free_bytes / 32) {
    throw driver::Skipped("needs " + std::to_string(bytes) + " bytes of device memory, " + std::to_string(free_bytes) +
                          " are free");
  }
  memory_.emplace((bytes + 255) / 256 * 256);
  fill_random(memory_->data(), DType::bf16, memory_->bytes() / 2, 0.02f, 77);
  const ClearParams p = {reinterpret_cast<uint32_t*>(memory_->data()), static_cast<int64_t>(memory_->bytes() / 4)};
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>(std::min<int64_t>((p.count + kClearThreads - 1) / kClearThreads, 4096));
  shape.threads = kClearThreads;
  launch("clear_last_bits", clear_last_bits, shape, nullptr, p);
  check_cuda(cudaDeviceSynchronize(), "clear_last_bits");
  return memory_->data();
}

Arena& arena() {
  static Arena* const instance = new Arena;  // not destroyed: the device may be gone by then
  return *instance;
}

int64_t copies_past_l2(size_t bytes) {
  static const size_t l2_bytes = device_shape().l2_bytes;
  return std::max<int64_t>(1, static_cast<int64_t>((kL2Times * l2_bytes + bytes - 1) / bytes));
}

// ---- The limits.

namespace {

__global__ void __launch_bounds__(32, 1) empty_kernel() {}

struct ReadParams {
  const uint8_t* data;
  int64_t count;  // of 16 bytes
  uint32_t* out;
};

constexpr int kReadThreads = 512;

// Each thread has four loads in flight.
__global__ void __launch_bounds__(kReadThreads, 4) read_kernel(ReadParams p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kReadThreads;
  uint32_t all = 0;
  int64_t i = static_cast<int64_t>(blockIdx.x) * kReadThreads + threadIdx.x;
  for (; i + 3 * step < p.count; i += 4 * step) {
    Words4 words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) words[j] = ld_global_nc(p.data + 16 * (i + j * step));
#pragma unroll
    for (int j = 0; j < 4; ++j) all ^= words[j].w[0] ^ words[j].w[1] ^ words[j].w[2] ^ words[j].w[3];
  }
  if (all == 0x12345678u) st_global(p.out, all);  // never, in all likelihood, but the compiler cannot know
}

struct MmaParams {
  int rounds;
  float* out;
};

constexpr int kMmaThreads = 256, kMmaTiles = 8;

__global__ void __launch_bounds__(kMmaThreads, 2) mma_kernel(MmaParams p) {
  const uint32_t one = 0x3f803f80u * static_cast<uint32_t>(p.rounds > 0);
  const uint32_t a[4] = {one, one, one, one}, b[2] = {one, one};
  float sums[kMmaTiles][4] = {};
  for (int round = 0; round < p.rounds; ++round) {
#pragma unroll
    for (int tile = 0; tile < kMmaTiles; ++tile) mma_m16n8k16<bf16>(sums[tile], a, b);
  }
  float all = 0;
  for (int tile = 0; tile < kMmaTiles; ++tile) all += sums[tile][0] + sums[tile][1] + sums[tile][2] + sums[tile][3];
  if (all < 0) st_global(p.out, all);
}

struct LimitTiming {
  Timing timing;
  Work work;
};

LimitTiming time_launches() {
  TimingContext context(device_shape());
  return {measure(context, [&](int64_t) { launch("empty", empty_kernel, {}, context.stream); }), {}};
}

LimitTiming time_copy(size_t bytes) {
  TimingContext context(device_shape());
  uint8_t* const data = arena().get(2 * bytes);
  const auto copy = [&](int64_t) {
    check_cuda(cudaMemcpyAsync(data + bytes, data, bytes, cudaMemcpyDeviceToDevice, context.stream), "copy");
  };
  return {measure(context, copy), {.bytes = 2 * static_cast<double>(bytes)}};
}

LimitTiming time_read(size_t bytes) {
  const DeviceShape shape = device_shape();
  TimingContext context(shape);
  const Memory<uint32_t> out(1);
  const ReadParams p = {arena().get(bytes), static_cast<int64_t>(bytes / 16), out.data()};
  LaunchShape launch_shape;
  launch_shape.grid[0] = static_cast<unsigned>(4 * shape.multiprocessors);
  launch_shape.threads = kReadThreads;
  const auto read = [&](int64_t) { launch("read", read_kernel, launch_shape, context.stream, p); };
  return {measure(context, read), {.bytes = static_cast<double>(bytes)}};
}

LimitTiming time_mma(int rounds) {
  const DeviceShape shape = device_shape();
  TimingContext context(shape);
  const Memory<float> out(1);
  const MmaParams p = {rounds, out.data()};
  LaunchShape launch_shape;
  launch_shape.grid[0] = static_cast<unsigned>(2 * shape.multiprocessors);
  launch_shape.threads = kMmaThreads;
  const auto multiply = [&](int64_t) { launch("mma", mma_kernel, launch_shape, context.stream, p); };
  const double mmas = static_cast<double>(rounds) * kMmaTiles * (kMmaThreads / 32) * launch_shape.grid[0];
  return {measure(context, multiply), {.flops = mmas * 2 * 16 * 8 * 16}};
}

// Measured once a process, at the size of a GPU or of the emulated device.
double read_limit() {
#if !defined(__CUDACC__)
  constexpr size_t kBytes = size_t{1} << 18;
#else
  constexpr size_t kBytes = size_t{2} << 30;
#endif
  static const double limit = [] {
    const LimitTiming read = time_read(kBytes);
    return read.work.bytes / read.timing.us;
  }();
  return limit;
}

double mma_limit() {
#if !defined(__CUDACC__)
  constexpr int kRounds = 2;
#else
  constexpr int kRounds = 2048;
#endif
  static const double limit = [] {
    const LimitTiming mma = time_mma(kRounds);
    return mma.work.flops / mma.timing.us;
  }();
  return limit;
}

Fields fields_without_shares(const Timing& timing, const Work& work) {
  Fields fields = {{"us", json_number(timing.us)},
                   {"minUs", json_number(timing.min_us)},
                   {"enqueueUs", json_number(timing.enqueue_us)},
                   {"batches", std::to_string(timing.batches)},
                   {"runs", std::to_string(timing.runs)}};
  if (work.bytes > 0) {
    fields.push_back({"bytes", json_number(work.bytes)});
    fields.push_back({"gbPerS", json_number(work.bytes / timing.us / 1e3)});
  }
  if (work.flops > 0) {
    fields.push_back({"flops", json_number(work.flops)});
    fields.push_back({"tflopPerS", json_number(work.flops / timing.us / 1e6)});
  }
  return fields;
}

Case limit_case(const std::string& name, const std::function<LimitTiming()>& time) {
  return {"limit: " + name, [time]() -> Result {
            const LimitTiming limit = time();
            return {"", fields_without_shares(limit.timing, limit.work)};
          }};
}

}  // namespace

Fields timing_fields(const Timing& timing, const Work& work) {
  Fields fields = fields_without_shares(timing, work);
  if (work.bytes > 0) fields.push_back({"ofRead", json_number(work.bytes / timing.us / read_limit())});
  if (work.flops > 0) fields.push_back({"ofMma", json_number(work.flops / timing.us / mma_limit())});
  return fields;
}

std::vector<Case> limit_cases(bool small) {
  const size_t bytes = small ? size_t{1} << 18 : size_t{2} << 30;
  const int rounds = small ? 2 : 2048;
  return {limit_case("empty kernel", time_launches), limit_case("device copy", [=] { return time_copy(bytes); }),
          limit_case("device read", [=] { return time_read(bytes); }),
          limit_case("mma.sync, bf16", [=] { return time_mma(rounds); })};
}

std::vector<Case> timing_cases(const driver::Options& options) {
  std::vector<Case> cases;
  for (const bool small : {true, false}) {
    if (!(small ? options.small_shapes : options.sigma_shapes)) continue;
    for (const auto& part : {limit_cases, decode_step_timings, attention_timings, linear_timings, sample_timings}) {
      for (Case& c : part(small)) {
        if (small) c.name = "small: " + c.name;
        cases.push_back(std::move(c));
      }
    }
  }
  return cases;
}

}  // namespace diffqkv::cuda
