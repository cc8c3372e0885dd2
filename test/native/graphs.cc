// Recorded calls: what the emulated runtime lets into a graph, and what the CUDA device makes of graphs and downloads.
#include <thread>

#include "calls/call.h"
#include "check.h"
#include "cuda_devices.h"
#include "engine/runtime.h"

namespace diffqkv::check {
namespace {

using namespace emulated;

const std::vector<int32_t> kFive = {5};

__global__ void __launch_bounds__(32, 1) add_one(int32_t* value) {
  if (lane_index() == 0) st_global(value, ld_global(value) + 1);
}

std::string expect(const std::string& what, cudaError_t found, cudaError_t expected) {
  cudaGetLastError();
  return found == expected ? "" : what + ": " + cudaGetErrorName(found) + ", not " + cudaGetErrorName(expected) + "; ";
}

struct OwnStream {
  OwnStream() { cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking); }
  ~OwnStream() { cudaStreamDestroy(stream); }
  cudaStream_t stream;
};

int32_t value_of(const Memory<int32_t>& memory) { return memory.values()[0]; }

std::string check_forbidden_calls() {
  reset_gpu(0);
  OwnStream own;
  const cudaStream_t stream = own.stream;
  const Memory<int32_t> memory(kFive);
  cudaEvent_t event;
  cudaEventCreate(&event);
  int32_t host = 0;
  void* other = nullptr;
  void* freed = nullptr;
  cudaMallocAsync(&freed, 256, stream);
  cudaStreamSynchronize(stream);
  const std::vector<std::pair<std::string, std::function<cudaError_t()>>> calls = {
      {"cudaMalloc", [&] { return cudaMalloc(&other, 256); }},
      {"cudaMallocAsync", [&] { return cudaMallocAsync(&other, 256, stream); }},
      {"cudaFree", [&] { return cudaFree(freed); }},
      {"cudaFreeAsync", [&] { return cudaFreeAsync(freed, stream); }},
      {"cudaHostAlloc", [&] { return cudaHostAlloc(&other, 256, cudaHostAllocDefault); }},
      {"a copy from the host",
       [&] { return cudaMemcpyAsync(memory.data(), &host, 4, cudaMemcpyHostToDevice, stream); }},
      {"a copy to the host", [&] { return cudaMemcpyAsync(&host, memory.data(), 4, cudaMemcpyDeviceToHost, stream); }},
      {"cudaStreamSynchronize", [&] { return cudaStreamSynchronize(stream); }},
      {"cudaDeviceSynchronize", [&] { return cudaDeviceSynchronize(); }},
      {"cudaEventSynchronize", [&] { return cudaEventSynchronize(event); }},
  };
  std::string wrong;
  for (const auto& [name, call] : calls) {
    wrong += expect("begin", cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    wrong += expect(name, call(), cudaErrorStreamCaptureUnsupported);
    cudaGraph_t graph;
    wrong += expect("end after " + name, cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    if (graph != nullptr) wrong += "a graph after " + name + "; ";
  }
  cudaGraph_t graph;
  wrong += expect("begin", cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  wrong +=
      expect("a second begin", cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaErrorInvalidValue);
  wrong += expect("an event", cudaEventRecord(event, stream), cudaErrorStreamCaptureInvalidated);
  wrong += expect("end", cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
  wrong += expect("the default stream", cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeThreadLocal),
                  cudaErrorInvalidValue);
  wrong += expect("end without begin", cudaStreamEndCapture(stream, &graph), cudaErrorInvalidValue);
  cudaEventDestroy(event);
  launch("add_one", add_one, {}, stream, memory.data());
  wrong += expect("the stream afterwards", cudaStreamSynchronize(stream), cudaSuccess);
  return value_of(memory) == 6 ? wrong : wrong + "the stream does not go on; ";
}

std::string check_replay() {
  reset_gpu(0);
  OwnStream own;
  const Memory<int32_t> memory(kFive), copy(kFive);
  std::string wrong =
      expect("begin", cudaStreamBeginCapture(own.stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  launch("add_one", add_one, {}, own.stream, memory.data());
  wrong += expect("a copy", cudaMemcpyAsync(copy.data(), memory.data(), 4, cudaMemcpyDeviceToDevice, own.stream),
                  cudaSuccess);
  cudaGraph_t graph;
  wrong += expect("end", cudaStreamEndCapture(own.stream, &graph), cudaSuccess);
  cudaStreamSynchronize(own.stream);
  if (value_of(memory) != 5) wrong += "the capture has run; ";
  cudaGraphExec_t exec;
  wrong += expect("instantiate", cudaGraphInstantiate(&exec, graph), cudaSuccess);
  wrong += expect("destroy", cudaGraphDestroy(graph), cudaSuccess);
  wrong += expect("destroy again", cudaGraphDestroy(graph), cudaErrorInvalidValue);
  for (int i = 0; i < 3; ++i) wrong += expect("launch", cudaGraphLaunch(exec, own.stream), cudaSuccess);
  wrong += expect("destroy a queued one", cudaGraphExecDestroy(exec), cudaSuccess);
  wrong += expect("launch a destroyed one", cudaGraphLaunch(exec, own.stream), cudaErrorInvalidValue);
  cudaStreamSynchronize(own.stream);
  if (value_of(memory) != 8 || value_of(copy) != 8) wrong += "it has not run three times; ";
  return wrong;
}

// A graph knows addresses, not what lies there.
std::string check_freed_memory() {
  reset_gpu(0);
  OwnStream own;
  auto memory = std::make_unique<Memory<int32_t>>(kFive);
  cudaStreamBeginCapture(own.stream, cudaStreamCaptureModeThreadLocal);
  launch("add_one", add_one, {}, own.stream, memory->data());
  cudaGraph_t graph;
  cudaStreamEndCapture(own.stream, &graph);
  cudaGraphExec_t exec;
  cudaGraphInstantiate(&exec, graph);
  memory.reset();
  cudaGraphLaunch(exec, own.stream);
  const std::string wrong =
      expect("a graph on freed memory", cudaStreamSynchronize(own.stream), cudaErrorLaunchFailure);
  reset_gpu(0);
  return wrong;
}

// ---- The CUDA device.

struct Lookup {
  explicit Lookup(Backend& backend, int32_t token) : backend(backend), tokens(std::vector<int32_t>{token}) {}
  void enqueue() {
    EmbedParams p;
    p.table = table.data();
    p.tokens = tokens.data();
    p.out = out.data();
    p.table_dtype = p.out_dtype = DType::f32;
    p.num_tokens = 1;
    p.vocab_size = 2;
    p.hidden_size = 4;
    backend.embed(p);
  }

  Backend& backend;
  Memory<float> table{std::vector<float>{0, 1, 2, 3, 10, 11, 12, 13}}, out{4};
  Memory<int32_t> tokens;
};

std::shared_ptr<Backend> open_after_reset() {
  gpu(0).lost = true;
  return make_backend(0);
}

std::string check_recording() {
  const std::shared_ptr<Backend> backend = open_after_reset();
  Replayer& replayer = *backend->replayer();
  Lookup lookup(*backend, 1);
  std::string wrong;
  const std::unique_ptr<Recording> recording = replayer.record([&] { lookup.enqueue(); });
  backend->synchronize();
  if (lookup.out.values()[0] == 10) wrong += "recorded calls have run; ";
  if (!replayer.replay(*recording)) wrong += "not replayed; ";
  backend->synchronize();
  if (lookup.out.values() != std::vector<float>{10, 11, 12, 13}) wrong += "another result; ";
  lookup.tokens.upload(std::vector<int32_t>{0});
  replayer.replay(*recording);
  backend->synchronize();
  if (lookup.out.values()[3] != 3) wrong += "the replay does not read the token; ";
  try {
    replayer.record([&] {
      lookup.enqueue();
      fail(ErrorCode::aborted, "by the caller");
    });
    wrong += "no error of the calls; ";
  } catch (const Error& error) {
    if (error.code() != ErrorCode::aborted) wrong += error.what();
  }
  try {
    replayer.record([&] { backend->synchronize(); });
    wrong += "a wait is recorded; ";
  } catch (const Error&) {}
  lookup.tokens.upload(std::vector<int32_t>{1});
  lookup.enqueue();
  backend->synchronize();
  if (lookup.out.values()[3] != 13) wrong += "no calls after a failed recording; ";
  return wrong;
}

// Attention whose splits meet in scratch memory, of which a longer cache needs more.
std::string check_moved_scratch() {
  const std::shared_ptr<Backend> backend = open_after_reset();
  Replayer& replayer = *backend->replayer();
  Call small = decode_call({.heads = {8, 1, 2}, .dims = {64, 64}, .kv_len = 600});
  Call large = decode_call({.heads = {32, 4, 16}, .dims = {128, 128}, .kv_len = 4000});
  const auto enqueue = [&](Call& call) { backend->attention_decode(std::get<AttentionDecodeParams>(call.params)); };
  std::string wrong;
  try {
    replayer.record([&] { enqueue(small); });
    wrong += "memory is allocated while calls are recorded; ";
  } catch (const Error& error) {
    if (error.code() != ErrorCode::out_of_memory) wrong += error.what();
  }
  enqueue(small);
  backend->synchronize();
  const std::vector<uint8_t> expected = small.tensor("out").memory.values();
  std::unique_ptr<Recording> recording = replayer.record([&] { enqueue(small); });
  if (!replayer.replay(*recording)) wrong += "not replayed; ";
  enqueue(large);
  if (replayer.replay(*recording)) wrong += "replayed after its scratch memory was freed; ";
  recording = replayer.record([&] { enqueue(small); });
  if (!replayer.replay(*recording)) wrong += "not replayed again; ";
  backend->synchronize();
  if (small.tensor("out").memory.values() != expected) wrong += "other bits; ";
  return wrong;
}

// Another thread takes and frees memory of the device all the time.
std::string check_allocations_meanwhile() {
  const std::shared_ptr<Backend> backend = open_after_reset();
  Lookup lookup(*backend, 1);
  std::atomic<bool> done{false};
  std::string wrong;
  std::thread other([&] {
    while (!done) backend->free(backend->allocate(4096), 4096);
  });
  try {
    for (int i = 0; i < 200; ++i) {
      backend->replayer()->replay(*backend->replayer()->record([&] { lookup.enqueue(); }));
      backend->synchronize();
    }
  } catch (const std::exception& error) {
    wrong = error.what();
  }
  done = true;
  other.join();
  return wrong;
}

std::string check_downloads() {
  const std::shared_ptr<Backend> backend = open_after_reset();
  Replayer& replayer = *backend->replayer();
  Lookup first(*backend, 0), second(*backend, 1), invalid(*backend, 2);
  const auto start = [&](Lookup& lookup) {
    lookup.enqueue();
    return replayer.start_download(lookup.out.data(), 4 * sizeof(float));
  };
  const auto last_value = [](Download& download) { return static_cast<const float*>(download.wait())[3]; };
  std::string wrong;
  // Some are waited for in another order, some not at all; and their memory serves again.
  for (int times = 0; times < 3; ++times) {
    std::vector<std::unique_ptr<Download>> downloads;
    for (int i = 0; i < 5; ++i) downloads.push_back(start(i % 2 ? second : first));
    for (size_t i = 4; i >= 2; --i) {
      if (last_value(*downloads[i]) != (i % 2 ? 13 : 3)) wrong += "download " + std::to_string(i) + "; ";
    }
  }
  const std::unique_ptr<Download> found = start(invalid);
  try {
    found->wait();
    wrong += "what a kernel found is lost; ";
  } catch (const Error& error) {
    if (error.code() != ErrorCode::invalid_argument) wrong += error.what();
  }
  return last_value(*start(second)) == 13 ? wrong : wrong + "the next download; ";
}

}  // namespace

std::vector<Check> graph_checks() {
  return {
      {"what a graph cannot have ends the capture", check_forbidden_calls},
      {"a graph runs as often as it is launched", check_replay},
      {"a graph on freed memory is a fault", check_freed_memory},
      {"recorded calls run when they are replayed", check_recording},
      {"calls are recorded again after their scratch memory has moved", check_moved_scratch},
      {"other threads allocate while calls are recorded", check_allocations_meanwhile},
      {"downloads wait for what was enqueued before them", check_downloads},
  };
}

}  // namespace diffqkv::check
