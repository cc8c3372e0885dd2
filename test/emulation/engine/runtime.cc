// Streams are queues; what waits runs them, one thing at a time for the whole device.
#include "engine/runtime.h"

#include <cstdlib>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/engine.h"

namespace diffqkv::emulated {

namespace {

thread_local cudaError_t last_error = cudaSuccess;

}  // namespace

uint64_t from_environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr && *text != '\0' ? std::strtoull(text, nullptr, 10) : otherwise;
}

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
    const bool is_any = d.fault.call == "*" && std::string_view(call) != "kernel";
    if (d.fault.call != call && !is_any) return cudaSuccess;
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
  if (s->capture) {
    if (position) s->capture_is_invalid = true;  // nobody can wait for what only a graph does
    if (s->capture_is_invalid) return answer(cudaErrorStreamCaptureInvalidated);
    s->capture->works.push_back(std::move(work));
    return cudaSuccess;
  }
  s->queue.push_back(std::move(work));
  ++s->queued;
  if (position) *position = s->queued;
  return cudaSuccess;
}

cudaError_t forbid_in_capture(const Stream* s) {
  Device& d = device();
  std::lock_guard lock(d.mutex);
  for (Stream* each : d.streams) {
    const bool concerned = s ? each == s : each->capturing_thread == std::this_thread::get_id();
    if (!each->capture || !concerned) continue;
    each->capture_is_invalid = true;
    return answer(cudaErrorStreamCaptureUnsupported);
  }
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
  if (const cudaError_t status = forbid_in_capture(s)) return status;
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
cudaError_t cudaSetDevice(int device) {
  if (const cudaError_t fault = injected("cudaSetDevice")) return answer(fault);
  return device == 0 ? answer(sticky()) : answer(cudaErrorInvalidDevice);
}
cudaError_t cudaDeviceSynchronize() {
  if (const cudaError_t status = forbid_in_capture(nullptr)) return status;
  return finish_all(true);
}
cudaError_t cudaDeviceReset() {
  if (const cudaError_t fault = injected("cudaDeviceReset")) return answer(fault);
  Device& d = device();
  std::lock_guard running(d.running);
  std::lock_guard lock(d.mutex);
  for (Stream* s : d.streams) {
    s->done += s->queue.size();
    s->queue.clear();
    s->capture.reset();
  }
  for (Graph* graph : d.graphs) delete graph;
  for (GraphExec* exec : d.graph_execs) delete exec;
  d.graphs.clear();
  d.graph_execs.clear();
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
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
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
  if (const cudaError_t status = forbid_in_capture(nullptr)) return status;
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

// ---- Graphs.

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (const cudaError_t fault = injected("cudaStreamBeginCapture")) return answer(fault);
  Device& d = device();
  std::lock_guard lock(d.mutex);
  if (d.sticky != cudaSuccess) return answer(d.sticky);
  // The default stream waits for others, which a graph cannot.
  if (stream == nullptr || !d.streams.count(stream) || stream->capture) return answer(cudaErrorInvalidValue);
  stream->capture = std::make_unique<Graph>();
  stream->capturing_thread = std::this_thread::get_id();
  stream->capture_is_invalid = false;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  Device& d = device();
  std::lock_guard lock(d.mutex);
  *graph = nullptr;
  if (stream == nullptr || !d.streams.count(stream) || !stream->capture) return answer(cudaErrorInvalidValue);
  std::unique_ptr<Graph> captured = std::move(stream->capture);
  if (stream->capture_is_invalid) return answer(cudaErrorStreamCaptureInvalidated);
  if (d.sticky != cudaSuccess) return answer(d.sticky);
  *graph = captured.release();
  d.graphs.insert(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = nullptr;
  if (const cudaError_t fault = injected("cudaGraphInstantiate")) return answer(fault);
  Device& d = device();
  std::lock_guard lock(d.mutex);
  if (d.sticky != cudaSuccess) return answer(d.sticky);
  if (!d.graphs.count(graph)) return answer(cudaErrorInvalidValue);
  *exec = new GraphExec{graph->works};
  d.graph_execs.insert(*exec);
  return cudaSuccess;
}
// The works are copied, so that the graph may be destroyed before it has run.
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (const cudaError_t fault = injected("cudaGraphLaunch")) return answer(fault);
  std::vector<std::function<void()>> works;
  {
    std::lock_guard lock(device().mutex);
    if (device().sticky != cudaSuccess) return answer(device().sticky);
    if (!device().graph_execs.count(exec)) return answer(cudaErrorInvalidValue);
    works = exec->works;
  }
  if (const cudaError_t status = forbid_in_capture(of(stream))) return status;
  return enqueue(stream, [works = std::move(works)] {
    for (const std::function<void()>& work : works) work();
  });
}
template <typename T>
cudaError_t destroy(std::set<T*> Device::*all, T* one) {
  Device& d = device();
  std::lock_guard lock(d.mutex);
  if ((d.*all).erase(one) == 0) return answer(cudaErrorInvalidValue);
  delete one;
  return answer(d.sticky);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return destroy(&Device::graphs, graph); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return destroy(&Device::graph_execs, exec); }

uint64_t set_fault(Fault fault) {
  Device& d = device();
  std::lock_guard lock(d.mutex);
  d.fault = std::move(fault);
  return std::exchange(d.fault_calls, 0);
}

}  // namespace diffqkv::emulated
