// Streams are queues; what waits runs them, one thing at a time for the whole device.
#include "emulation/runtime.h"

#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "emulation/engine.h"

namespace diffqkv::emulated {

namespace {

constexpr size_t kMaxSharedBytes = 99 * 1024;  // of a block, the least that a supported GPU has

thread_local cudaError_t last_error = cudaSuccess;

uint64_t from_environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr && *text != '\0' ? std::strtoull(text, nullptr, 10) : otherwise;
}
uint64_t failing_launch() {
  static const uint64_t launch = from_environment("DIFFQKV_EMULATED_FAIL_LAUNCH", 0);
  return launch;
}

}  // namespace

// Never destroyed: threads may still stand in it as the process ends.
Device& device() {
  static Device* const instance = [] {
    settings().seed = from_environment("DIFFQKV_EMULATED_SEED", settings().seed);
    return new Device;
  }();
  return *instance;
}

cudaError_t answer(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

size_t memory_limit() {
  static const size_t limit = from_environment("DIFFQKV_EMULATED_MEMORY_MB", 4096) << 20;
  return limit;
}

cudaError_t sticky() {
  Device& d = device();
  std::lock_guard lock(d.mutex);
  return d.sticky;
}
void set_sticky(std::string text, cudaError_t error) {
  Device& d = device();
  std::lock_guard lock(d.mutex);
  if (d.sticky != cudaSuccess) return;
  d.sticky = error;
  d.sticky_text = std::move(text);
}

cudaError_t injected(const char* call) {
  Device& d = device();
  cudaError_t status;
  {
    std::lock_guard lock(d.mutex);
    if (d.fault.call != call) return cudaSuccess;
    const uint64_t number = ++d.fault_calls;
    if (number < d.fault.first || number - d.fault.first >= d.fault.times) return cudaSuccess;
    status = static_cast<cudaError_t>(d.fault.status);
  }
  if (status == cudaErrorIllegalAddress || status == cudaErrorLaunchFailure)
    set_sticky(std::string(call) + " fails, as a test has it", status);
  return status;
}

Stream* of(cudaStream_t stream) { return stream != nullptr ? stream : &device().default_stream; }

cudaError_t enqueue(cudaStream_t stream, std::function<void()> work, uint64_t* position) {
  Device& d = device();
  std::lock_guard lock(d.mutex);
  if (d.sticky != cudaSuccess) return answer(d.sticky);
  Stream* s = of(stream);
  if (!d.streams.count(s)) return answer(cudaErrorInvalidResourceHandle);
  s->queue.push_back(std::move(work));
  ++s->queued;
  if (position) *position = s->queued;
  return cudaSuccess;
}

void run_until(Stream* s, uint64_t position) {
  Device& d = device();
  std::lock_guard running(d.running);
  for (;;) {
    std::function<void()> work;
    {
      std::lock_guard lock(d.mutex);
      if (!d.streams.count(s) || s->done >= position || s->queue.empty()) return;
      work = std::move(s->queue.front());
      s->queue.pop_front();
    }
    work();
    std::lock_guard lock(d.mutex);
    ++s->done;
  }
}
cudaError_t finish(Stream* s) {
  uint64_t position;
  {
    std::lock_guard lock(device().mutex);
    if (!device().streams.count(s)) return answer(cudaErrorInvalidResourceHandle);
    position = s->queued;
  }
  run_until(s, position);
  return answer(sticky());
}
cudaError_t finish_all(bool with_non_blocking) {
  std::vector<Stream*> streams;
  {
    std::lock_guard lock(device().mutex);
    for (Stream* s : device().streams)
      if (s->blocking || with_non_blocking) streams.push_back(s);
  }
  for (Stream* s : streams) finish(s);
  return answer(sticky());
}

struct EventRecord {
  std::shared_ptr<Mark> mark;  // under Device::mutex
  bool timed = true;
};

// ---- The device.

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return answer(cudaErrorInvalidDevice);
  *properties = {};
  std::strcpy(properties->name, "emulated GPU");
  properties->totalGlobalMem = memory_limit();
  // Few multiprocessors: splits stay few.
  properties->sharedMemPerBlockOptin = kMaxSharedBytes;
  properties->major = 8;
  properties->minor = 6;
  properties->multiProcessorCount = 16;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp properties;
  const cudaError_t status = cudaGetDeviceProperties(&properties, device);
  if (status != cudaSuccess) return status;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = properties.multiProcessorCount; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = properties.major; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = properties.minor; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(properties.sharedMemPerBlockOptin);
      return cudaSuccess;
    case cudaDevAttrMemoryPoolsSupported: *value = 1; return cudaSuccess;
  }
  return answer(cudaErrorInvalidValue);
}
cudaError_t cudaSetDevice(int device) {
  if (const cudaError_t fault = injected("cudaSetDevice")) return answer(fault);
  return device == 0 ? answer(sticky()) : answer(cudaErrorInvalidDevice);
}
cudaError_t cudaDeviceSynchronize() { return finish_all(true); }
cudaError_t cudaDeviceReset() {
  Device& d = device();
  std::lock_guard running(d.running);
  std::lock_guard lock(d.mutex);
  for (Stream* s : d.streams) {
    s->done += s->queue.size();
    s->queue.clear();
  }
  for (const auto& [data, allocation] : d.memory) {
    remove_memory(data);
    std::free(const_cast<char*>(data));
  }
  d.memory.clear();
  d.used = 0;
  d.max_dynamic_shared.clear();
  d.sticky = cudaSuccess;
  d.sticky_text.clear();
  last_error = cudaSuccess;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  std::lock_guard lock(device().mutex);
  *total = memory_limit();
  *free = memory_limit() - device().used;
  return answer(device().sticky);
}

// ---- Errors.

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = sticky();
  return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNoKernelImageForDevice: return "cudaErrorNoKernelImageForDevice";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
  }
  return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
  {
    thread_local std::string text;
    std::lock_guard lock(device().mutex);
    if (error != cudaSuccess && error == device().sticky) {
      text = device().sticky_text;
      return text.c_str();
    }
  }
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    default: return cudaGetErrorName(error);
  }
}

// ---- Streams and events.

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  if (const cudaError_t fault = injected("cudaStreamCreateWithFlags")) return answer(fault);
  Device& d = device();
  std::lock_guard lock(d.mutex);
  if (d.sticky != cudaSuccess) return answer(d.sticky);
  *stream = new Stream;
  (*stream)->blocking = (flags & cudaStreamNonBlocking) == 0;
  d.streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (stream == nullptr) return answer(cudaErrorInvalidResourceHandle);
  const cudaError_t status = finish(stream);
  if (status == cudaErrorInvalidResourceHandle) return status;
  Device& d = device();
  std::lock_guard running(d.running);
  std::lock_guard lock(d.mutex);
  d.streams.erase(stream);
  delete stream;
  return status;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (const cudaError_t fault = injected("cudaStreamSynchronize")) return answer(fault);
  return finish(of(stream));
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  std::lock_guard lock(device().mutex);
  if (device().sticky != cudaSuccess) return answer(device().sticky);
  return of(stream)->done == of(stream)->queued ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  std::shared_ptr<Mark> mark;
  {
    std::lock_guard lock(device().mutex);
    mark = event->mark;
  }
  if (!mark || mark->stream == of(stream)) return answer(sticky());
  return enqueue(stream, [mark] { run_until(mark->stream, mark->position); });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  if (const cudaError_t fault = injected("cudaEventCreateWithFlags")) return answer(fault);
  *event = new EventRecord{nullptr, (flags & cudaEventDisableTiming) == 0};
  return answer(sticky());
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return answer(sticky());
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (const cudaError_t fault = injected("cudaEventRecord")) return answer(fault);
  auto mark = std::make_shared<Mark>();
  mark->stream = of(stream);
  uint64_t position = 0;
  const cudaError_t status = enqueue(
      stream,
      [mark] {
        std::lock_guard lock(device().mutex);
        mark->time = Clock::now();
        mark->reached = true;
      },
      &position);
  if (status != cudaSuccess) return status;
  std::lock_guard lock(device().mutex);
  mark->position = position;
  event->mark = std::move(mark);
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (const cudaError_t fault = injected("cudaEventSynchronize")) return answer(fault);
  std::shared_ptr<Mark> mark;
  {
    std::lock_guard lock(device().mutex);
    mark = event->mark;
  }
  if (mark) run_until(mark->stream, mark->position);
  return answer(sticky());
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  std::lock_guard lock(device().mutex);
  if (device().sticky != cudaSuccess) return answer(device().sticky);
  return !event->mark || event->mark->reached ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t stop) {
  if (const cudaError_t fault = injected("cudaEventElapsedTime")) return answer(fault);
  std::lock_guard lock(device().mutex);
  if (device().sticky != cudaSuccess) return answer(device().sticky);
  if (!start->timed || !stop->timed || !start->mark || !stop->mark) return answer(cudaErrorInvalidResourceHandle);
  if (!start->mark->reached || !stop->mark->reached) return answer(cudaErrorNotReady);
  *ms = std::chrono::duration<float, std::milli>(stop->mark->time - start->mark->time).count();
  return cudaSuccess;
}

// ---- Kernels.

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (const cudaError_t fault = injected("cudaFuncSetAttribute")) return answer(fault);
  Device& d = device();
  std::lock_guard lock(d.mutex);
  if (d.sticky != cudaSuccess) return answer(d.sticky);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      static_cast<size_t>(value) > kMaxSharedBytes)
    return answer(cudaErrorInvalidValue);
  d.max_dynamic_shared[function] = static_cast<size_t>(value);
  return cudaSuccess;
}

namespace {

// How much dynamic shared memory a launch of the kernel may have.
size_t max_dynamic_shared(const void* function) {
  std::lock_guard lock(device().mutex);
  const auto found = device().max_dynamic_shared.find(function);
  return found != device().max_dynamic_shared.end() ? found->second : 48 * 1024;
}

std::string run_kernel(const KernelLaunch& launch) {
  if (executor()) return executor()(launch);
  const auto& [x, y, z] = launch.grid;
  return run_grid({launch.name, {x, y, z}, launch.threads, launch.shared_bytes}, launch.body);
}

}  // namespace

cudaError_t enqueue_kernel(cudaStream_t stream, KernelLaunch launch) {
  const auto& [x, y, z] = launch.grid;
  if (launch.threads < 1 || launch.threads > 1024 || launch.threads % 32 != 0 || x < 1 || x > 0x7fffffffu || y < 1 ||
      y > 65535 || z < 1 || z > 65535)
    return answer(cudaErrorInvalidConfiguration);
  if (launch.shared_bytes > max_dynamic_shared(launch.function)) return answer(cudaErrorInvalidValue);
  if (const cudaError_t fault = injected("cudaLaunchKernelEx")) return answer(fault);
  return enqueue(stream, [launch = std::move(launch)] {
    if (sticky() != cudaSuccess || injected("kernel") != cudaSuccess) return;
    uint64_t number;
    {
      std::lock_guard lock(device().mutex);
      number = ++device().launches;
    }
    if (number == failing_launch()) {
      set_sticky(std::string(launch.name) + ": launch " + std::to_string(number) +
                 " fails, as DIFFQKV_EMULATED_FAIL_LAUNCH has it");
      return;
    }
    const std::string problem = run_kernel(launch);
    if (!problem.empty()) set_sticky(problem);
  });
}

}  // namespace diffqkv::emulated

namespace diffqkv {

uint64_t set_emulated_fault(const EmulatedFault& fault) {
  emulated::Device& d = emulated::device();
  std::lock_guard lock(d.mutex);
  d.fault = fault;
  return std::exchange(d.fault_calls, 0);
}

}  // namespace diffqkv
