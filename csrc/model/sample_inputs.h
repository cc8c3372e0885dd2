// Masks and biases of the rows of a `sample` call (SampleRow::allowed, SampleRow::biases), on their way
// to device memory.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"

namespace diffqkv {

class SampleInputs {
 public:
  // Empty ones are absent.
  void add(SampleRow& row, std::span<const uint32_t> allowed, std::span<const LogitBias> biases);
  // Copies all of them to `buffer`, which it enlarges if need be, and points the rows to them. Kernels
  // that are queued may still read what the buffer has.
  void upload(const std::shared_ptr<Backend>& backend, Buffer& buffer);

 private:
  struct Entry {
    SampleRow* row;
    size_t allowed_at, num_allowed;  // in words_
    size_t biases_at, num_biases;
  };
  std::vector<Entry> entries_;
  std::vector<uint32_t> words_;
};

}  // namespace diffqkv
