// The GPU as a device: memory, copies, time stamps, and the launchers of kernels.h. Everything goes to one stream;
// nothing waits but download, synchronize and elapsed_ms.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>

#include "cuda_devices.h"
#include "kernels.h"

namespace diffqkv::cuda {
namespace {

constexpr size_t kChunk = size_t{4} << 20;
constexpr int kUploadSlots = 4, kDownloadSlots = 2;

// Is there code for this GPU in the module?
__global__ void __launch_bounds__(32, 1) probe() {}

// Page-locked host memory, which the GPU copies from and to while the host goes on; and an event for when it has.
struct Slot {
  unsigned char* data = nullptr;
  size_t used = 0;
  cudaEvent_t done = nullptr;
};

class CudaEvent : public Event {
 public:
  CudaEvent(Gpu& gpu, uint64_t generation) : gpu_(gpu), generation_(generation) {
    check_cuda(cudaEventCreate(&event), "cudaEventCreate");
  }
  ~CudaEvent() override {
    std::shared_lock lock(gpu_.mutex);
    if (gpu_.generation == generation_) cudaEventDestroy(event);
  }
  cudaEvent_t event = nullptr;

 private:
  Gpu& gpu_;
  const uint64_t generation_;
};

class CudaRecording : public Recording {
 public:
  CudaRecording(Gpu& gpu, uint64_t generation, uint64_t memory_moves)
      : memory_moves(memory_moves), gpu_(gpu), generation_(generation) {}
  // A graph that still runs is freed when it is done.
  ~CudaRecording() override {
    if (exec == nullptr) return;
    std::shared_lock lock(gpu_.mutex);
    if (gpu_.generation == generation_) cudaGraphExecDestroy(exec);
  }
  cudaGraphExec_t exec = nullptr;
  const uint64_t memory_moves;  // of the backend, when it was recorded

 private:
  Gpu& gpu_;
  const uint64_t generation_;
};

// Page-locked memory of a download.
struct Ticket {
  unsigned char* data = nullptr;
  cudaEvent_t done = nullptr;
  bool is_taken = false;
};

class CudaBackend : public Backend, public Replayer, private Context {
 public:
  CudaBackend(int ordinal, DeviceInfo info) : ordinal_(ordinal), info_(std::move(info)), gpu_(gpu(ordinal)) {
    reset_if_lost();
    generation_ = gpu_.generation;
    try {
      open();
    } catch (...) {
      close();
      throw;
    }
  }
  ~CudaBackend() override { close(); }

  const DeviceInfo& info() const override { return info_; }

  Replayer* replayer() override { return this; }
  std::unique_ptr<Recording> record(const std::function<void()>& calls) override;
  bool replay(const Recording& recording) override;
  std::unique_ptr<Download> start_download(const void* src, size_t bytes) override;

  void* allocate(size_t bytes) override {
    if (bytes == 0) return nullptr;
    std::shared_lock not_recording(recording_mutex_);
    Entered entered(*this);
    return allocate_or_fail(bytes);
  }
  void free(void* data, size_t) noexcept override {
    std::shared_lock not_recording(recording_mutex_);
    std::shared_lock lock(gpu_.mutex);
    if (data == nullptr || is_lost() || cudaSetDevice(ordinal_) != cudaSuccess) return;
    free_memory(data);
  }
  void upload(void* dst, const void* host_src, size_t bytes) override;
  void download(void* host_dst, const void* src, size_t bytes) override;
  void copy(void* dst, const void* src, size_t bytes) override {
    if (bytes == 0) return;
    Entered entered(*this);
    check_cuda(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, stream), "copy");
  }
  uint64_t free_memory() override {
    Entered entered(*this);
    // What the pool keeps counts as used.
    check_cuda(cudaStreamSynchronize(stream), "free_memory");
    if (pool_) check_cuda(cudaMemPoolTrimTo(pool_, 0), "free_memory");
    size_t free_bytes = 0, total = 0;
    check_cuda(cudaMemGetInfo(&free_bytes, &total), "free_memory");
    return free_bytes;
  }
  void synchronize() override {
    Entered entered(*this);
    wait("synchronize");
  }
  std::unique_ptr<Event> record_event() override {
    std::unique_ptr<CudaEvent> event;  // before the lock, which its destructor takes too
    Entered entered(*this);
    event = std::make_unique<CudaEvent>(gpu_, generation_);
    check_cuda(cudaEventRecord(event->event, stream), "cudaEventRecord");
    return event;
  }
  double elapsed_ms(const Event& start, const Event& stop) override {
    Entered entered(*this);
    const cudaEvent_t first = static_cast<const CudaEvent&>(start).event;
    const cudaEvent_t last = static_cast<const CudaEvent&>(stop).event;
    check_cuda(cudaEventSynchronize(last), "elapsed_ms");
    if (static_cast<volatile Finding*>(host_finding_)->kind != Finding::none) wait("elapsed_ms");
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, first, last), "elapsed_ms");
    return ms;
  }

#define DIFFQKV_OVERRIDE(name, Params) \
  void name(const Params& p) override { enqueue(cuda::name, p); }
  DIFFQKV_OPERATORS(DIFFQKV_OVERRIDE)
#undef DIFFQKV_OVERRIDE

 private:
  // Stands in every call: the calling thread works on this GPU, which is there, and stays so while the call lasts.
  class Entered {
   public:
    explicit Entered(CudaBackend& backend) : lock_(backend.gpu_.mutex) {
      if (backend.is_lost()) backend.fail_lost();
      use_gpu(backend.ordinal_);
    }

   private:
    std::shared_lock<std::shared_mutex> lock_;
  };

  class CudaDownload : public Download {
   public:
    CudaDownload(CudaBackend& backend, Ticket& ticket) : backend_(backend), ticket_(ticket) {}
    ~CudaDownload() override { ticket_.is_taken = false; }
    const void* wait() override {
      backend_.wait(ticket_);
      return ticket_.data;
    }

   private:
    CudaBackend& backend_;
    Ticket& ticket_;
  };

  template <typename Params>
  void enqueue(void (*launcher)(const Params&, Context&), const Params& p) {
    Entered entered(*this);
    launcher(p, *this);
  }

  bool is_lost() const { return gpu_.lost || gpu_.generation != generation_; }
  [[noreturn]] void fail_lost() {
    std::lock_guard lock(gpu_.reason_mutex);
    fail(ErrorCode::device_unavailable, "%s is lost, with all that was on it (%s): start the process again",
         info_.id.c_str(), gpu_.reason.c_str());
  }
  void reset_if_lost() {
    std::unique_lock lock(gpu_.mutex);
    if (!gpu_.lost) return;
    const cudaError_t status = reset_gpu(ordinal_);
    if (status != cudaSuccess) {
      fail(ErrorCode::device_unavailable,
           "%s was lost, and a reset does not bring it back (%s): start the process again", info_.id.c_str(),
           cudaGetErrorString(status));
    }
    gpu_.lost = false;
  }

  void open();
  void close() noexcept;

  void* try_allocate(size_t bytes) {
    void* data = nullptr;
    const cudaError_t status = pool_ ? cudaMallocAsync(&data, bytes, stream) : cudaMalloc(&data, bytes);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      return nullptr;
    }
    check_cuda(status, "allocate");
    return data;
  }
  void* allocate_or_fail(size_t bytes) {
    const bool possible = bytes <= info_.total_memory;
    if (void* data = possible ? try_allocate(bytes) : nullptr) return data;
    // What was freed may wait in the stream, or lie in the pool in pieces.
    check_cuda(cudaStreamSynchronize(stream), "allocate");
    if (pool_) cudaMemPoolTrimTo(pool_, 0);
    if (void* data = possible ? try_allocate(bytes) : nullptr) return data;
    size_t free_bytes = 0, total = 0;
    cudaMemGetInfo(&free_bytes, &total);
    fail(ErrorCode::out_of_memory,
         "out of memory on %s: asked for %zu bytes, %zu bytes are free; free tensors, sessions or models, or ask for "
         "less",
         info_.id.c_str(), bytes, free_bytes);
  }
  void free_memory(void* data) noexcept {
    if (data == nullptr) return;
    if (pool_) {
      cudaFreeAsync(data, stream);
    } else {
      cudaFree(data);
    }
  }

  void* scratch(size_t bytes) override {
    grow(scratch_, scratch_bytes_, bytes);
    return scratch_;
  }
  uint32_t* zeroed_words(size_t count) override {
    if (grow(words_, words_bytes_, count * sizeof(uint32_t)))
      check_cuda(cudaMemsetAsync(words_, 0, words_bytes_, stream), "zeroed_words");
    return static_cast<uint32_t*>(words_);
  }
  // Whether it took new memory. The old one goes when the stream has come here.
  bool grow(void*& data, size_t& has, size_t bytes) {
    if (bytes <= has) return false;
    if (is_recording_)
      fail(ErrorCode::out_of_memory, "calls that are recorded need %zu bytes of scratch memory, more than before",
           bytes);
    memory_moves_++;
    free_memory(data);
    data = nullptr;
    has = 0;
    const size_t wanted = std::max((bytes + 0xffff) & ~size_t{0xffff}, bytes);
    data = allocate_or_fail(wanted);
    has = wanted;
    return true;
  }

  void prepare(Slot& slot);
  // Waits for the stream; throws what its kernels found.
  void wait(const char* what);
  void check_finding();
  Ticket& take_ticket();
  void wait(Ticket& ticket);

  const int ordinal_;
  const DeviceInfo info_;
  Gpu& gpu_;
  uint64_t generation_ = 0;
  cudaMemPool_t pool_ = nullptr;  // or null, where the GPU has none
  void* scratch_ = nullptr;
  size_t scratch_bytes_ = 0;
  void* words_ = nullptr;
  size_t words_bytes_ = 0;
  Finding* host_finding_ = nullptr;
  std::deque<Ticket> tickets_;
  // Exclusive while calls are recorded: memory that another thread takes from the stream would become part of them.
  std::shared_mutex recording_mutex_;
  bool is_recording_ = false;
  uint64_t memory_moves_ = 0;  // how often scratch memory has
  Slot uploads_[kUploadSlots], downloads_[kDownloadSlots];
  int upload_slot_ = 0;
};

void CudaBackend::open() {
  std::shared_lock lock(gpu_.mutex);
  use_gpu(ordinal_);
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  launch("probe", probe, {}, stream);
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, ordinal_), "cudaGetDeviceProperties");
  num_multiprocessors = properties.multiProcessorCount;
  max_shared_bytes = properties.sharedMemPerBlockOptin;
  int pools = 0;
  cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, ordinal_);
  if (pools != 0) {
    check_cuda(cudaDeviceGetDefaultMemPool(&pool_, ordinal_), "cudaDeviceGetDefaultMemPool");
    uint64_t keep = UINT64_MAX;  // freed memory is used again; without this every wait would give it back to the driver
    check_cuda(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &keep), "cudaMemPoolSetAttribute");
  }
  check_cuda(cudaHostAlloc(&host_finding_, sizeof(Finding), cudaHostAllocMapped), "cudaHostAlloc");
  *host_finding_ = {};
  check_cuda(cudaHostGetDevicePointer(&finding, host_finding_, 0), "cudaHostGetDevicePointer");
  check_cuda(cudaStreamSynchronize(stream), "openDevice");
}

void CudaBackend::close() noexcept {
  std::shared_lock lock(gpu_.mutex);
  if (is_lost() || cudaSetDevice(ordinal_) != cudaSuccess) return;
  if (stream != nullptr) cudaStreamSynchronize(stream);
  free_memory(scratch_);
  free_memory(words_);
  const auto drop = [](Slot& slot) {
    if (slot.data != nullptr) cudaFreeHost(slot.data);
    if (slot.done != nullptr) cudaEventDestroy(slot.done);
  };
  for (Slot& slot : uploads_) drop(slot);
  for (Slot& slot : downloads_) drop(slot);
  for (const Ticket& ticket : tickets_) {
    if (ticket.data != nullptr) cudaFreeHost(ticket.data);
    if (ticket.done != nullptr) cudaEventDestroy(ticket.done);
  }
  if (host_finding_ != nullptr) cudaFreeHost(host_finding_);
  if (stream != nullptr) {
    cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
  }
  if (pool_ != nullptr) cudaMemPoolTrimTo(pool_, 0);
  cudaGetLastError();
}

void CudaBackend::prepare(Slot& slot) {
  if (slot.data == nullptr) {
    const cudaError_t status = cudaHostAlloc(&slot.data, kChunk, cudaHostAllocDefault);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      fail(ErrorCode::out_of_memory, "out of page-locked host memory for copies: asked for %zu bytes", kChunk);
    }
    check_cuda(status, "cudaHostAlloc");
  }
  if (slot.done == nullptr) check_cuda(cudaEventCreateWithFlags(&slot.done, cudaEventDisableTiming), "cudaEventCreate");
}

// Through the slots, in turn: a slot is filled, by one copy or by many small ones, and left with its event; coming back
// to it waits for that event.
void CudaBackend::upload(void* dst, const void* host_src, size_t bytes) {
  if (bytes == 0) return;
  Entered entered(*this);
  for (size_t at = 0; at < bytes;) {
    Slot* slot = &uploads_[upload_slot_];
    if (slot->used >= kChunk) {
      check_cuda(cudaEventRecord(slot->done, stream), "upload");
      upload_slot_ = (upload_slot_ + 1) % kUploadSlots;
      slot = &uploads_[upload_slot_];
      if (slot->used > 0) check_cuda(cudaEventSynchronize(slot->done), "upload");
      slot->used = 0;
    }
    prepare(*slot);
    const size_t part = std::min(bytes - at, kChunk - slot->used);
    unsigned char* staged = slot->data + slot->used;
    std::memcpy(staged, static_cast<const char*>(host_src) + at, part);
    slot->used += (part + 255) & ~size_t{255};
    check_cuda(cudaMemcpyAsync(static_cast<char*>(dst) + at, staged, part, cudaMemcpyHostToDevice, stream), "upload");
    at += part;
  }
}

// A piece is on its way while the one before is copied out.
void CudaBackend::download(void* host_dst, const void* src, size_t bytes) {
  Entered entered(*this);
  if (bytes == 0) return wait("download");
  const size_t pieces = (bytes + kChunk - 1) / kChunk;
  const auto size = [&](size_t i) { return std::min(kChunk, bytes - i * kChunk); };
  for (size_t i = 0; i <= pieces; ++i) {
    if (i < pieces) {
      Slot& slot = downloads_[i % kDownloadSlots];
      prepare(slot);
      check_cuda(cudaMemcpyAsync(slot.data, static_cast<const char*>(src) + i * kChunk, size(i), cudaMemcpyDeviceToHost,
                                 stream),
                 "download");
      check_cuda(cudaEventRecord(slot.done, stream), "download");
    }
    if (i > 0) {
      Slot& slot = downloads_[(i - 1) % kDownloadSlots];
      check_cuda(cudaEventSynchronize(slot.done), "download");
      std::memcpy(static_cast<char*>(host_dst) + (i - 1) * kChunk, slot.data, size(i - 1));
    }
  }
  check_finding();
}

void CudaBackend::wait(const char* what) {
  check_cuda(cudaStreamSynchronize(stream), what);
  check_finding();
}

// The stream is empty: nobody writes it.
void CudaBackend::check_finding() {
  const Finding found = *host_finding_;
  if (found.kind == Finding::none) return;
  *host_finding_ = {};
  switch (found.kind) {
    case Finding::token:
      fail(ErrorCode::invalid_argument, "token %d at index %d is outside the vocabulary [0, %d)", found.value,
           found.index, found.limit);
    case Finding::position:
      if (found.value < 0)
        fail(ErrorCode::invalid_argument, "position %d of token %d is negative", found.value, found.index);
      fail(ErrorCode::invalid_argument, "position %d of token %d is outside the cache, [0, %d)", found.value,
           found.index, found.limit);
    case Finding::kv_len:
      fail(ErrorCode::invalid_argument, "kv_lens[%d] is %d, but it must lie in [0, %d], the kv_len of k and v",
           found.index, found.value, found.limit);
  }
  fail(ErrorCode::invalid_argument, "a kernel found %d at index %d of an argument, whose limit is %d", found.value,
       found.index, found.limit);
}

// DIFFQKV_CUDA_GRAPHS=0: kernels are launched one by one, for example for a profiler.
bool records_calls() {
  const char* value = std::getenv("DIFFQKV_CUDA_GRAPHS");
  return value == nullptr || std::strcmp(value, "0") != 0;
}

std::unique_ptr<Recording> CudaBackend::record(const std::function<void()>& calls) {
  if (!records_calls()) fail(ErrorCode::device_unavailable, "DIFFQKV_CUDA_GRAPHS is 0");
  std::unique_lock alone(recording_mutex_);
  {
    Entered entered(*this);
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "record");
  }
  is_recording_ = true;
  std::exception_ptr error;
  try {
    calls();
  } catch (...) {
    error = std::current_exception();
  }
  is_recording_ = false;
  auto recording = std::make_unique<CudaRecording>(gpu_, generation_, memory_moves_);
  Entered entered(*this);
  cudaGraph_t graph = nullptr;
  cudaError_t status = cudaStreamEndCapture(stream, &graph);
  if (!error && status == cudaSuccess) status = cudaGraphInstantiate(&recording->exec, graph, 0);
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (error) {
    cudaGetLastError();
    std::rethrow_exception(error);
  }
  check_cuda(status, "record");
  return recording;
}

bool CudaBackend::replay(const Recording& recording) {
  const auto& calls = static_cast<const CudaRecording&>(recording);
  if (calls.memory_moves != memory_moves_) return false;
  Entered entered(*this);
  check_cuda(cudaGraphLaunch(calls.exec, stream), "replay");
  return true;
}

// One that is free. Its download may be under way, if nobody has waited for it.
Ticket& CudaBackend::take_ticket() {
  auto ticket = std::find_if(tickets_.begin(), tickets_.end(), [](const Ticket& each) { return !each.is_taken; });
  if (ticket == tickets_.end()) ticket = tickets_.emplace(tickets_.end());
  if (ticket->done == nullptr) {
    check_cuda(cudaEventCreateWithFlags(&ticket->done, cudaEventDisableTiming), "cudaEventCreate");
  } else {
    check_cuda(cudaEventSynchronize(ticket->done), "cudaEventSynchronize");
  }
  if (ticket->data == nullptr) {
    check_cuda(cudaHostAlloc(&ticket->data, kMostDownloadBytes, cudaHostAllocDefault), "cudaHostAlloc");
  }
  ticket->is_taken = true;
  return *ticket;
}

std::unique_ptr<Download> CudaBackend::start_download(const void* src, size_t bytes) {
  Entered entered(*this);
  Ticket& ticket = take_ticket();
  auto download = std::make_unique<CudaDownload>(*this, ticket);
  check_cuda(cudaMemcpyAsync(ticket.data, src, bytes, cudaMemcpyDeviceToHost, stream), "download");
  check_cuda(cudaEventRecord(ticket.done, stream), "download");
  return download;
}

void CudaBackend::wait(Ticket& ticket) {
  Entered entered(*this);
  check_cuda(cudaEventSynchronize(ticket.done), "download");
  if (static_cast<volatile Finding*>(host_finding_)->kind != Finding::none) wait("download");
}

}  // namespace

std::shared_ptr<Backend> open_gpu(int ordinal, const DeviceInfo& info) {
  return std::make_shared<CudaBackend>(ordinal, info);
}

std::shared_ptr<Backend> make_backend(int ordinal) {
  std::vector<DeviceInfo> infos = device_infos();
  if (infos[0].id == "cuda") fail(ErrorCode::device_unavailable, "cuda:%d: %s", ordinal, infos[0].reason.c_str());
  if (ordinal < 0 || ordinal >= static_cast<int>(infos.size())) {
    fail(ErrorCode::device_unavailable, "there is no cuda:%d: this machine has %zu GPUs, cuda:0 to cuda:%zu", ordinal,
         infos.size(), infos.size() - 1);
  }
  const DeviceInfo& info = infos[ordinal];
  if (!info.usable)
    fail(ErrorCode::device_unavailable, "cuda:%d (%s): %s", ordinal, info.name.c_str(), info.reason.c_str());
  return open_gpu(ordinal, info);
}

}  // namespace diffqkv::cuda
