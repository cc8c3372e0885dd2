// Device memory of a test, filled from the host and read back, on a GPU and on the emulated device alike.
#pragma once

#include <utility>
#include <vector>

#include "device/launch.h"

namespace diffqkv::DIFFQKV_DEVICE_NS {

// cudaMalloc of exactly `count` elements, all bytes 0xff (NaN in every float type) until they are written.
template <typename T>
class Memory {
 public:
  explicit Memory(size_t count) : count_(count) {
    check_cuda(cudaMalloc(&data_, bytes()), "cudaMalloc");
    if (count_ == 0) return;
    check_cuda(cudaMemset(data_, 0xff, bytes()), "cudaMemset");
    check_cuda(cudaDeviceSynchronize(), "cudaMemset");
  }
  explicit Memory(const std::vector<T>& values) : Memory(values.size()) { upload(values); }
  ~Memory() {
    if (data_ != nullptr) cudaFree(data_);
  }
  Memory(Memory&& other) noexcept
      : count_(std::exchange(other.count_, 0)), data_(std::exchange(other.data_, nullptr)) {}
  Memory& operator=(Memory&&) = delete;

  T* data() const { return data_; }
  size_t size() const { return count_; }
  size_t bytes() const { return count_ * sizeof(T); }
  void upload(const std::vector<T>& values) {
    if (count_ > 0) check_cuda(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice), "upload");
  }
  std::vector<T> values() const {
    std::vector<T> values(count_);
    if (count_ > 0) check_cuda(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost), "download");
    return values;
  }

 private:
  size_t count_;
  T* data_ = nullptr;
};

}  // namespace diffqkv::DIFFQKV_DEVICE_NS
