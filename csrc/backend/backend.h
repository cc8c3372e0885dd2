// The interface of a device: memory, and the operators of operators.h. Operators are pure
// virtual, so a backend that lacks one does not compile. Calls are enqueued in order and do
// not wait, except `download` and `synchronize`. Only one thread at a time uses a backend: the
// executor of its device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/error.h"
#include "backend/operators.h"
#include "backend/ops.h"

namespace diffqkv {

struct DeviceInfo {
  std::string id;    // "cpu", "cuda:0"
  std::string kind;  // "cpu", "cuda"
  std::string name;
  bool usable = true;
  std::string reason;  // why it is not usable
  uint64_t total_memory = 0;
  std::string compute_capability;  // "9.0"; empty on the CPU
  // What else `diffqkv info` prints: SIMD level, library of the linear layers, threads.
  std::vector<std::pair<std::string, std::string>> details;
};

// A point in time, by the device's clock.
class Event {
 public:
  virtual ~Event() = default;
};

// Calls that a device has recorded.
class Recording {
 public:
  virtual ~Recording() = default;
};

// A copy to the host that is under way. Its device must be there as long.
class Download {
 public:
  virtual ~Download() = default;
  // Waits for it and returns the bytes, which stay as long as this object. Throws what kernels have
  // found.
  virtual const void* wait() = 0;
};

// What a device can do whose kernels run while the host goes on.
class Replayer {
 public:
  virtual ~Replayer() = default;

  // Records `calls`, which call operators and copy() only, without running them. Pointers and sizes are
  // recorded too, so what changes from replay to replay must be read from device memory. Throws what
  // `calls` throw, and if the device cannot record them, for example if they need more scratch memory
  // than the device has. It has enough after it has run the same calls.
  virtual std::unique_ptr<Recording> record(const std::function<void()>& calls) = 0;
  // Enqueues the recorded calls. False if it cannot, because memory has moved since: then they must
  // be recorded again.
  virtual bool replay(const Recording& recording) = 0;
  // Enqueues a copy of `bytes` at src, at most kMostDownloadBytes, to the host.
  virtual std::unique_ptr<Download> start_download(const void* src, size_t bytes) = 0;
  static constexpr size_t kMostDownloadBytes = 4096;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // Null if the device runs each call at once.
  virtual Replayer* replayer() { return nullptr; }

  virtual const DeviceInfo& info() const = 0;

  // Memory. Allocations are aligned to 256 bytes. Zero bytes are allowed. Contents are undefined.
  // Throws ERR_OUT_OF_MEMORY.
  virtual void* allocate(size_t bytes) = 0;                                  // from any thread
  virtual void free(void* data, size_t bytes) noexcept = 0;                  // from any thread
  virtual void upload(void* dst, const void* host_src, size_t bytes) = 0;    // host_src may be reused on return
  virtual void download(void* host_dst, const void* src, size_t bytes) = 0;  // waits
  virtual void copy(void* dst, const void* src, size_t bytes) = 0;
  virtual void synchronize() = 0;
  virtual uint64_t free_memory() = 0;  // bytes of a GPU's memory that can be allocated; 0 on the CPU
  virtual std::unique_ptr<Event> record_event() = 0;
  virtual double elapsed_ms(const Event& start, const Event& stop) = 0;  // waits for stop

  // Operators: `virtual void embed(const EmbedParams& p) = 0;` and so on.
#define DIFFQKV_METHOD(name, Params) virtual void name(const Params& p) = 0;
  DIFFQKV_OPERATORS(DIFFQKV_METHOD)
#undef DIFFQKV_METHOD
};

// Owns device memory. Movable. Keeps its backend alive.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::shared_ptr<Backend> backend, size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<Backend> backend_;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Threads of the CPU device if a caller does not say: OMP_NUM_THREADS, or the CPUs of the affinity
// mask of this process; at most the CPUs of its control group.
int default_cpu_threads();
// Removes what this module has set in the environment for libgomp, which has read it. Called once
// the module is loaded.
void restore_environment();
DeviceInfo cpu_device_info(int threads);
std::shared_ptr<Backend> make_cpu_backend(int threads);

namespace cuda {

// One entry per GPU. Without any, one entry "cuda" that is not usable and has the reason (not built in, no driver, driver
// too old).
std::vector<DeviceInfo> device_infos();
// Throws ERR_DEVICE_UNAVAILABLE if that GPU cannot be used.
std::shared_ptr<Backend> make_backend(int ordinal);

}  // namespace cuda

}  // namespace diffqkv
