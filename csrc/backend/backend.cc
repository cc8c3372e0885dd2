#include "backend/backend.h"

#include <utility>

namespace diffqkv {

Buffer::Buffer(std::shared_ptr<Backend> backend, size_t bytes) : backend_(std::move(backend)), bytes_(bytes) {
  data_ = backend_->allocate(bytes);
}

Buffer::~Buffer() {
  if (backend_) backend_->free(data_, bytes_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : backend_(std::move(other.backend_)),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  Buffer incoming(std::move(other));  // frees the old memory when it goes out of scope; other may be *this
  std::swap(backend_, incoming.backend_);
  std::swap(data_, incoming.data_);
  std::swap(bytes_, incoming.bytes_);
  return *this;
}

}  // namespace diffqkv
