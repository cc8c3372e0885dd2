// Device memory of a test, filled from the host and read back, on a GPU and on the emulated device alike.
#pragma once

#include <utility>
#include <vector>

#include "launch.h"

namespace diffqkv::cuda {

// Bytes that each Memory made from now on has behind its end, as a zone that no kernel may write. With 0, the default, a
// Memory is exactly its own size, so that whoever checks accesses, the emulated device or compute-sanitizer, sees one past
// its end.
inline size_t guard_bytes = 0;

// cudaMalloc of `count` elements, all bytes 0xff (NaN in every float type) until they are written.
template <typename T>
class Memory {
 public:
  explicit Memory(size_t count) : count_(count), guard_bytes_(count > 0 ? guard_bytes : 0) {
    if (count_ == 0) return;
    check_cuda(cudaMalloc(&data_, bytes() + guard_bytes_), "cudaMalloc");
    check_cuda(cudaMemset(data_, 0xff, bytes()), "cudaMemset");
    if (guard_bytes_ > 0) check_cuda(cudaMemset(guard(), kGuardByte, guard_bytes_), "cudaMemset");
    check_cuda(cudaDeviceSynchronize(), "cudaMemset");
  }
  explicit Memory(const std::vector<T>& values) : Memory(values.size()) { upload(values); }
  ~Memory() {
    if (data_ != nullptr) cudaFree(data_);
  }
  Memory(Memory&& other) noexcept
      : count_(std::exchange(other.count_, 0)),
        guard_bytes_(std::exchange(other.guard_bytes_, 0)),
        data_(std::exchange(other.data_, nullptr)) {}
  Memory& operator=(Memory&&) = delete;

  T* data() const { return data_; }
  size_t size() const { return count_; }
  size_t bytes() const { return count_ * sizeof(T); }
  void upload(const std::vector<T>& values) {
    if (count_ == 0) return;
    check_cuda(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice), "upload");
    // cudaMemcpy may return before the bytes have arrived, and streams made with cudaStreamNonBlocking do not wait.
    check_cuda(cudaDeviceSynchronize(), "upload");
  }
  std::vector<T> values() const {
    std::vector<T> values(count_);
    if (count_ > 0) check_cuda(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost), "download");
    return values;
  }
  bool guard_is_untouched() const {
    std::vector<unsigned char> bytes(guard_bytes_);
    if (guard_bytes_ > 0)
      check_cuda(cudaMemcpy(bytes.data(), guard(), guard_bytes_, cudaMemcpyDeviceToHost), "download");
    return bytes == std::vector<unsigned char>(guard_bytes_, kGuardByte);
  }

 private:
  static constexpr unsigned char kGuardByte = 0xa5;
  unsigned char* guard() const { return reinterpret_cast<unsigned char*>(data_) + bytes(); }

  size_t count_ = 0, guard_bytes_ = 0;
  T* data_ = nullptr;
};

}  // namespace diffqkv::cuda
