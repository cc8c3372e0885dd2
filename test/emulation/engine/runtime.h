// What the files of the emulated runtime share: the device's state, and how its streams run.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <cuda_runtime.h>

namespace diffqkv::emulated {

// What a stream did while it was captured.
struct Graph {
  std::vector<std::function<void()>> works;
};
struct GraphExec {
  std::vector<std::function<void()>> works;
};

struct Stream {
  std::deque<std::function<void()>> queue;  // under Device::mutex
  std::unique_ptr<Graph> capture;           // while it is captured, gets what is put in
  std::thread::id capturing_thread;
  bool capture_is_invalid = false;
  uint64_t queued = 0, done = 0;  // how many were put in, how many have run
  bool blocking = true;
};
struct MemoryPool {};

using Clock = std::chrono::steady_clock;

// The state of an event's newest record; the queue holds it too, so that an event may be destroyed before it runs.
struct Mark {
  Stream* stream = nullptr;
  uint64_t position = 0;  // the stream's `done` once it has run
  bool reached = false;
  Clock::time_point time;
};

struct Allocation {
  size_t bytes;
  bool host;  // of cudaHostAlloc: not counted
};

// What a kernel may count on: DIFFQKV_EMULATED_GPU names one of a table.
struct GpuShape {
  const char* name;
  int num_multiprocessors;
  size_t max_shared_bytes;  // of a block, if a kernel's attribute allows it
  size_t l2_bytes;
  int major, minor;  // compute capability
};
// Throws if DIFFQKV_EMULATED_GPU is none of the table.
const GpuShape& gpu_shape();

// What a test makes go wrong.
struct Fault {
  std::string
      call;  // a function of the CUDA runtime; "*": any of them; "kernel": while a kernel runs, and whatever waits for it gets the error
  uint64_t first = 0, times = 0;  // the calls that fail, from now on: the first, counted from 1, and how many
  int status = 0;                 // the cudaError_t of these calls; after 700 and 719 the device is lost
};
// Replaces the fault before it. Returns how often that one's call has come since it was set. From any thread.
uint64_t set_fault(Fault fault);

struct Device {
  // Locked for moments; never while work runs, so that a thread which only puts work in does not wait for it.
  std::mutex mutex;
  // Held while work runs. A stream that waits for another runs that one inside.
  std::recursive_mutex running;

  std::map<const char*, Allocation> memory;
  size_t used = 0;
  Stream default_stream;
  std::set<Stream*> streams{&default_stream};
  std::set<Graph*> graphs;
  std::set<GraphExec*> graph_execs;
  MemoryPool pool;
  std::map<const void*, size_t> max_dynamic_shared;  // of kernels, by cudaFuncSetAttribute
  uint64_t launches = 0;
  // Of a test: called in each launch before its kernel's attribute is looked at. Set while nobody launches.
  std::function<void()> before_launch;
  Fault fault;
  uint64_t fault_calls = 0;  // of the fault's call since it was set
  cudaError_t sticky = cudaSuccess;
  std::string sticky_text;
};

Device& device();

// Leaves an error as the thread's last one, and gives it back.
cudaError_t answer(cudaError_t error);
cudaError_t sticky();
void set_sticky(std::string text, cudaError_t error = cudaErrorLaunchFailure);
// What the fault that a test has set makes of a call of the runtime; of most of them, cudaSuccess.
cudaError_t injected(const char* call);
size_t memory_limit();
uint64_t from_environment(const char* name, uint64_t otherwise);

Stream* of(cudaStream_t stream);  // null is the default stream
// Puts work into a stream's queue; `position` gets what the stream's `done` will be after it.
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work, uint64_t* position = nullptr);
// Ends the capture of the stream with an error if there is one; without a stream, those that this thread has begun. To be
// called by what a capture cannot take, which fails with what this returns if that is not cudaSuccess.
cudaError_t forbid_in_capture(const Stream* s);
// Runs a stream until `position` of its works are done.
void run_until(Stream* s, uint64_t position);
// Runs all that is in a stream; in all streams, or in those that the default stream waits for.
cudaError_t finish(Stream* s);
cudaError_t finish_all(bool with_non_blocking);

}  // namespace diffqkv::emulated
