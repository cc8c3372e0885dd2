// The CPU device: memory, time stamps, and every operator by the kernels of the selected
// instruction set. Calls are synchronous, so there is nothing to wait for.
#include <omp.h>
#if __has_include(<sys/utsname.h>)  // not on Windows
#include <sys/utsname.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <mutex>
#include <thread>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/cpu_isa.h"
#include "backend/cpu/linear/linear.h"
#include "backend/cpu/sampling/log_probs.h"
#include "backend/cpu/sampling/sampler.h"
#include "backend/cpu/system/control_group.h"
#include "backend/cpu/system/memory.h"
#include "backend/cpu/system/threads.h"

namespace diffqkv {
namespace {

using Clock = std::chrono::steady_clock;

class CpuEvent : public Event {
 public:
  const Clock::time_point time = Clock::now();
};

// If OpenMP cannot start a thread, for lack of memory or because of a system limit, it ends the
// process. So the same number of threads is started here first, all at once. OpenMP then reuses
// their stacks, which glibc keeps.
void prestart_threads(int count) {
  std::vector<std::thread> threads;
  std::mutex all_there;
  try {
    threads.reserve(static_cast<size_t>(count));
    std::lock_guard lock(all_there);
    for (int i = 0; i < count; ++i) threads.emplace_back([&] { std::lock_guard wait(all_there); });
  } catch (const std::exception& error) {
    const size_t started = threads.size();
    for (std::thread& thread : threads) thread.join();
    fail(ErrorCode::out_of_memory,
         "cannot start the %d threads of the CPU device, only %zu (%s): raise the limit (ulimit -v, -u), or "
         "open the device with fewer threads",
         count + 1, started + 1, error.what());
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

// By default OpenMP has a thread for each CPU of the machine, and these wait actively for each
// other. In a container that is limited to the time of a few CPUs, the other threads would delay
// the few that run.
int default_cpu_threads() {
  static const int threads = std::min(omp_get_max_threads(), cpu::control_group_cpus());
  return threads;
}

namespace {

thread_local int threads_in_use = 0;

}  // namespace

// omp_set_num_threads applies to the calling thread: the executor of a device, which may change.
void cpu::use_threads(int count) {
  if (threads_in_use == count) return;
  prestart_threads(count - 1);
  omp_set_num_threads(count);
#pragma omp parallel
  std::atomic_signal_fence(std::memory_order_seq_cst);  // an empty region would be left out
  threads_in_use = count;
}

void cpu::use_threads() { use_threads(threads_in_use > 0 ? threads_in_use : default_cpu_threads()); }

namespace {

// One core does not saturate memory bandwidth. Pieces are large enough to be worth a thread.
void parallel_memcpy(void* dst, const void* src, size_t bytes) {
  constexpr size_t kPiece = size_t{1} << 20;
  if (bytes < 4 * kPiece) {
    if (bytes) std::memcpy(dst, src, bytes);
    return;
  }
  const int64_t pieces = static_cast<int64_t>((bytes + kPiece - 1) / kPiece);
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < pieces; ++i) {
    const size_t begin = static_cast<size_t>(i) * kPiece;
    std::memcpy(static_cast<char*>(dst) + begin, static_cast<const char*>(src) + begin,
                std::min(kPiece, bytes - begin));
  }
}

std::string cpu_name() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string line;
  while (std::getline(cpuinfo, line)) {
    if (line.compare(0, 10, "model name") != 0) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
#if __has_include(<sys/utsname.h>)
  utsname system;  // /proc/cpuinfo has no model name on ARM
  if (uname(&system) == 0) return system.machine;
#endif
  return "CPU";
}

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(int threads)
      : threads_(threads),
        isa_(cpu::cpu_isa()),
        kernels_(*isa_.kernels),
        info_(cpu_device_info(threads)),
        linear_(kernels_, arena_) {}

  const DeviceInfo& info() const override { return info_; }

  void* allocate(size_t bytes) override { return cpu::allocate_memory(bytes); }
  void free(void* data, size_t bytes) noexcept override { cpu::free_memory(data, bytes); }
  void upload(void* dst, const void* host_src, size_t bytes) override { copy(dst, host_src, bytes); }
  void download(void* host_dst, const void* src, size_t bytes) override { copy(host_dst, src, bytes); }
  void copy(void* dst, const void* src, size_t bytes) override {
    cpu::use_threads(threads_);
    parallel_memcpy(dst, src, bytes);
  }
  void synchronize() override {}
  uint64_t free_memory() override { return 0; }
  std::unique_ptr<Event> record_event() override { return std::make_unique<CpuEvent>(); }
  double elapsed_ms(const Event& start, const Event& stop) override {
    const Clock::duration elapsed = static_cast<const CpuEvent&>(stop).time - static_cast<const CpuEvent&>(start).time;
    return std::chrono::duration<double, std::milli>(elapsed).count();
  }

#define DIFFQKV_OVERRIDE(name, Params) \
  void name(const Params& p) override { kernels().name(p, arena_); }
  DIFFQKV_ISA_OPERATORS(DIFFQKV_OVERRIDE)
#undef DIFFQKV_OVERRIDE
  void matmul(const MatmulParams& p) override { linear().matmul(p); }
  void gated_mlp(const GatedMlpParams& p) override { linear().gated_mlp(p); }
  void sample(const SampleParams& p) override {
    cpu::use_threads(threads_);
    sampler_.sample(p);
  }
  void log_probs(const LogProbsParams& p) override {
    cpu::use_threads(threads_);
    cpu::log_probs(p);
  }

 private:
  const cpu::Kernels& kernels() {
    cpu::use_threads(threads_);
    return kernels_;
  }
  cpu::LinearLayers& linear() {
    cpu::use_threads(threads_);
    return linear_;
  }

  const int threads_;
  const cpu::CpuIsa& isa_;
  const cpu::Kernels& kernels_;
  const DeviceInfo info_;
  cpu::Arena arena_;
  cpu::LinearLayers linear_;
  cpu::Sampler sampler_;
};

}  // namespace

DeviceInfo cpu_device_info(int threads) {
  DeviceInfo info;
  info.id = "cpu";
  info.kind = "cpu";
  info.name = cpu_name();
  info.total_memory = cpu::total_memory();
  info.details.emplace_back("linear", cpu::linear_layer_library());
  info.details.emplace_back("threads", std::to_string(threads));
  try {
    info.details.emplace(info.details.begin(), "simd", cpu::cpu_isa().name);
  } catch (const Error& error) {
    info.usable = false;
    info.reason = error.what();
  }
  return info;
}

std::shared_ptr<Backend> make_cpu_backend(int threads) { return std::make_shared<CpuBackend>(threads); }

}  // namespace diffqkv
