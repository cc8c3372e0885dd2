// Launches with dynamic shared memory: the attribute that limits it, as CUDA has it, and two devices on one GPU.
#include <algorithm>
#include <atomic>
#include <thread>

#include <device/async.h>
#include <device/bulk.h>

#include "calls/call.h"
#include "check.h"
#include "cuda_devices.h"
#include "engine/runtime.h"

namespace diffqkv::check {
namespace {

using namespace emulated;

__global__ void __launch_bounds__(32, 1) use_shared(int bytes) {
  unsigned char* const last = dynamic_shared() + bytes - 4;
  if (lane_index() == 0) st_shared(reinterpret_cast<uint32_t*>(last), 1u);
}

std::string name_of(cudaError_t error) { return cudaGetErrorName(error); }

std::string expect(const char* what, cudaError_t found, cudaError_t expected) {
  cudaGetLastError();
  return found == expected ? "" : std::string(what) + ": " + name_of(found) + ", not " + name_of(expected) + "; ";
}

cudaError_t launch_with(size_t bytes) {
  cudaLaunchConfig_t config = {};
  config.blockDim.x = 32;
  config.dynamicSmemBytes = bytes;
  const cudaError_t status = cudaLaunchKernelEx(&config, use_shared, static_cast<int>(bytes));
  return status == cudaSuccess ? cudaDeviceSynchronize() : status;
}

cudaError_t allow(size_t bytes) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(use_shared), cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}

std::string check_attribute() {
  constexpr size_t kKiB = 1024;
  const size_t most = gpu_shape().max_shared_bytes;
  reset_gpu(0);
  std::string wrong = expect("48 KiB without the attribute", launch_with(48 * kKiB), cudaSuccess);
  wrong += expect("more without the attribute", launch_with(48 * kKiB + 16), cudaErrorInvalidValue);
  wrong += expect("the attribute, 64 KiB", allow(64 * kKiB), cudaSuccess);
  wrong += expect("as much as the attribute", launch_with(64 * kKiB), cudaSuccess);
  wrong += expect("more than the attribute", launch_with(64 * kKiB + 16), cudaErrorInvalidValue);
  wrong += expect("the attribute, more than the GPU has", allow(most + 1), cudaErrorInvalidValue);
  wrong += expect("the attribute as it was before", launch_with(64 * kKiB), cudaSuccess);
  wrong += expect("the attribute, all that the GPU has", allow(most), cudaSuccess);
  wrong += expect("all that the GPU has", launch_with(most), cudaSuccess);
  wrong += expect("the attribute, 16 KiB", allow(16 * kKiB), cudaSuccess);
  wrong += expect("32 KiB of 16 KiB", launch_with(32 * kKiB), cudaErrorInvalidValue);
  wrong += expect("the attribute, all that the GPU has", allow(most), cudaSuccess);
  reset_gpu(0);
  return wrong + expect("the attribute after a reset", launch_with(64 * kKiB), cudaErrorInvalidValue);
}

std::string check_launch_parameters() {
  struct Large {
    double x;
    char c[12];
  };
  const auto kernel = +[](const uint32_t*, Large, uint8_t) {};
  std::vector<KernelParameter> found;
  std::string wrong;
  executor() = [&](const KernelLaunch& launch) {
    found = launch.parameters;
    if (launch.function != reinterpret_cast<const void*>(kernel)) wrong += "another function; ";
    if (launch.name != std::string("parameters")) wrong += "another name; ";
    if (found.size() == 3 && *static_cast<const uint8_t*>(found[2].data) != 7) wrong += "another value; ";
    return "";
  };
  cudaStream_t stream;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  launch("parameters", kernel, {}, stream, static_cast<const uint32_t*>(nullptr), Large{}, 7);
  wrong += expect("the launch", cudaStreamSynchronize(stream), cudaSuccess);
  cudaStreamDestroy(stream);
  executor() = nullptr;
  const auto is = [&](size_t i, size_t size, size_t alignment) {
    return found[i].size == size && found[i].alignment == alignment;
  };
  if (found.size() != 3 || !is(0, 8, 8) || !is(1, 24, 8) || !is(2, 1, 1)) wrong += "other sizes; ";
  return wrong;
}

// Decode attention by one kernel, which needs more shared memory the larger its heads of K are.
struct Decode {
  explicit Decode(int64_t dim_qk) : call(decode_call({.heads = {8, 1, 2}, .dims = {dim_qk, 64}, .kv_len = 40})) {}

  void enqueue(Backend& backend) { backend.attention_decode(std::get<AttentionDecodeParams>(call.params)); }
  std::vector<uint8_t> output() { return call.tensor("out").memory.values(); }

  Call call;
};
constexpr int64_t kSmallDim = 32, kLargeDim = 256;

std::shared_ptr<Backend> open_after_reset() {
  gpu(0).lost = true;
  return make_backend(0);
}

uint64_t attribute_calls_since_last() { return set_fault({"cudaFuncSetAttribute", 0, 0, 0}); }

// Another device launches the same kernel, with less shared memory, just before each launch.
std::string check_interrupted_launch() {
  const std::shared_ptr<Backend> one = open_after_reset(), other = make_backend(0);
  Decode large(kLargeDim), small(kSmallDim);
  std::atomic<bool> interrupting{false};
  int interruptions = 0;
  device().before_launch = [&] {
    if (interrupting.exchange(true)) return;
    std::thread([&] { small.enqueue(*other); }).join();
    ++interruptions;
    interrupting = false;
  };
  std::string wrong;
  try {
    for (int i = 0; i < 3; ++i) large.enqueue(*one);
    one->synchronize();
    other->synchronize();
  } catch (const std::exception& error) {
    wrong = error.what();
  }
  device().before_launch = nullptr;
  return interruptions == 3 || !wrong.empty() ? wrong : std::to_string(interruptions) + " interruptions";
}

// Four devices of one GPU, a thread each, two of which need more shared memory than the others.
std::string check_devices_at_once() {
  constexpr int kDevices = 4, kLaunches = 100;
  std::vector<std::shared_ptr<Backend>> backends = {open_after_reset()};
  std::vector<std::unique_ptr<Decode>> decodes;
  std::vector<std::vector<uint8_t>> alone;
  for (int i = 0; i < kDevices; ++i) {
    if (i > 0) backends.push_back(make_backend(0));
    decodes.push_back(std::make_unique<Decode>(i % 2 ? kLargeDim : kSmallDim));
    decodes[i]->enqueue(*backends[i]);
    backends[i]->synchronize();
    alone.push_back(decodes[i]->output());
  }
  decodes.clear();
  backends = {open_after_reset()};
  for (int i = 0; i < kDevices; ++i) {
    if (i > 0) backends.push_back(make_backend(0));
    decodes.push_back(std::make_unique<Decode>(i % 2 ? kLargeDim : kSmallDim));
  }
  attribute_calls_since_last();
  std::vector<std::string> wrong(kDevices);
  std::vector<std::thread> threads;
  for (int i = 0; i < kDevices; ++i) {
    threads.emplace_back([&, i] {
      try {
        for (int n = 0; n < kLaunches; ++n) decodes[i]->enqueue(*backends[i]);
        backends[i]->synchronize();
      } catch (const std::exception& error) {
        wrong[i] = "device " + std::to_string(i) + ": " + error.what() + "; ";
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::string all;
  for (int i = 0; i < kDevices; ++i) {
    all += wrong[i];
    if (wrong[i].empty() && decodes[i]->output() != alone[i]) all += "device " + std::to_string(i) + ": other bits; ";
  }
  const uint64_t calls = attribute_calls_since_last();
  if (calls != 1) all += std::to_string(calls) + " calls of cudaFuncSetAttribute for one kernel and one GPU";
  return all;
}

std::string check_launch_after_reset() {
  for (int times = 0; times < 2; ++times) {
    const std::shared_ptr<Backend> backend = open_after_reset();
    Decode decode(kLargeDim);
    decode.enqueue(*backend);
    backend->synchronize();
  }
  return "";
}

// ---- Dependent launches.

__global__ void __launch_bounds__(64, 1) write_values(uint32_t* values) {
  const uint32_t thread = threadIdx.x;
  st_global(values + thread, thread);
}

enum class Early {
  nothing,
  starts_next,
  reads_others,
  reads,
  reads_streaming,
  copies,
  copies_in_bulk,
  writes,
  updates,
  ends
};

// Word i + 1 of what write_values has written becomes word i of `out`; `constants` are of neither.
__global__ void __launch_bounds__(64, 1)
    shift_values(const uint32_t* values, const uint32_t* constants, uint32_t* out, Early early) {
  const uint32_t thread = threadIdx.x;
  if (early == Early::starts_next) start_next_kernel();
  if (early == Early::reads_others) ld_global(constants + thread);
  if (early == Early::reads) ld_global(values + thread);
  if (early == Early::reads_streaming) ld_global_nc(values + thread / 4 * 4);
  if (early == Early::copies) cp_async_cg(dynamic_shared() + thread * 16, values);
  if (early == Early::copies_in_bulk && thread == 0) {
    uint64_t* const barrier = reinterpret_cast<uint64_t*>(dynamic_shared());
    mbarrier_init(barrier, 1);
    fence_proxy_async();
    mbarrier_arrive_expect_tx(barrier, 64);
    cp_async_bulk(dynamic_shared() + 64, values, 64, barrier);
    while (!mbarrier_try_wait_parity(barrier, 0)) {}
  }
  if (early == Early::writes) st_global(out + thread, 0u);
  if (early == Early::updates) atomicAdd(out + thread, 1u);
  if (early == Early::ends && thread == 63) return;
  wait_for_previous_kernel();
  start_next_kernel();
  st_global(out + thread, ld_global(values + (thread + 1) % 64));
}

std::string check_dependent_launch(Early early, const char* expected) {
  reset_gpu(0);
  Memory<uint32_t> values(64), constants(std::vector<uint32_t>(64, 7)), out(64);
  cudaStream_t stream;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  LaunchShape shape;
  shape.threads = 64;
  // What a launch before the last one has written is there.
  launch("write_values", write_values, shape, stream, constants.data());
  launch("write_values", write_values, shape, stream, values.data());
  shape.shared_bytes = 1024;
  shape.waits = true;
  launch("shift_values", shift_values, shape, stream, values.data(), constants.data(), out.data(), early);
  const cudaError_t status = cudaStreamSynchronize(stream);
  const std::string found = status == cudaSuccess ? "" : cudaGetErrorString(status);
  if (status == cudaSuccess) cudaStreamDestroy(stream);
  if (status == cudaSuccess && out.values()[5] != 6) return "another result";
  reset_gpu(0);
  const bool is_expected = *expected ? found.find(expected) != std::string::npos : found.empty();
  return is_expected ? "" : "found: " + found;
}

}  // namespace

std::vector<Check> launch_checks() {
  const auto dependent = [](Early early, const char* expected) {
    return [=] { return check_dependent_launch(early, expected); };
  };
  return {
      {"a dependent launch that waits first", dependent(Early::nothing, "")},
      {"a dependent launch reads early what the launch before has not written", dependent(Early::reads_others, "")},
      {"a dependent launch reads early", dependent(Early::reads, "that the launch before has written")},
      {"a dependent launch reads early by ld_global_nc",
       dependent(Early::reads_streaming, "that the launch before has")},
      {"a dependent launch copies early", dependent(Early::copies, "that the launch before has written")},
      {"a dependent launch copies early in bulk",
       dependent(Early::copies_in_bulk, "that the launch before has written")},
      {"a dependent launch writes early", dependent(Early::writes, "without waiting for the launch before")},
      {"a dependent launch updates early", dependent(Early::updates, "without waiting for the launch before")},
      {"a dependent launch lets the next begin early", dependent(Early::starts_next, "lets the next launch begin")},
      {"a thread of a dependent launch ends early", dependent(Early::ends, "ends without waiting")},
      {"dynamic shared memory is limited as CUDA limits it", check_attribute},
      {"a launch tells its kernel's address and parameters", check_launch_parameters},
      {"a device launches with more shared memory than another allows itself meanwhile", check_interrupted_launch},
      {"devices of one GPU launch one kernel with different amounts of shared memory at once", check_devices_at_once},
      {"a kernel is allowed its shared memory again after a reset", check_launch_after_reset},
  };
}

}  // namespace diffqkv::check
