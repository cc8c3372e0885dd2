// Device memory of the emulation for checks, filled from the host and read back.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "emulation/engine.h"

namespace diffqkv::check {

// Memory that kernels may access, with nothing after it that they may.
template <typename T>
class Memory {
 public:
  explicit Memory(size_t count) : count_(count), data_(new (std::align_val_t(256)) unsigned char[bytes() + 256]) {
    std::memset(data_, 0xff, bytes() + 256);
    emulated::add_memory(data_, bytes());
  }
  explicit Memory(const std::vector<T>& values) : Memory(values.size()) {
    if (!values.empty()) std::memcpy(data_, values.data(), bytes());
  }
  ~Memory() {
    emulated::remove_memory(data_);
    ::operator delete[](data_, std::align_val_t(256));
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  T* data() const { return reinterpret_cast<T*>(data_); }
  size_t size() const { return count_; }
  size_t bytes() const { return count_ * sizeof(T); }
  std::vector<T> values() const { return std::vector<T>(data(), data() + count_); }

 private:
  size_t count_;
  unsigned char* data_;
};

// Runs a kernel on the spot. Returns what went wrong.
template <typename... Parameters, typename... Arguments>
std::string run(const char* name, unsigned blocks, unsigned threads, size_t shared_bytes, void (*kernel)(Parameters...),
                const Arguments&... arguments) {
  return emulated::run_grid({name, {blocks, 1, 1}, threads, shared_bytes}, [&] { kernel(Parameters(arguments)...); });
}

}  // namespace diffqkv::check
