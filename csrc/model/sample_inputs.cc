#include "model/sample_inputs.h"

#include <bit>
#include <utility>

namespace diffqkv {

void SampleInputs::add(SampleRow& row, std::span<const uint32_t> allowed, std::span<const LogitBias> biases) {
  if (allowed.empty() && biases.empty()) return;
  static_assert(sizeof(LogitBias) == 2 * sizeof(uint32_t) && alignof(LogitBias) == alignof(uint32_t));
  const size_t allowed_at = words_.size();
  const size_t biases_at = allowed_at + allowed.size();
  words_.insert(words_.end(), allowed.begin(), allowed.end());
  for (const LogitBias& bias : biases) {
    words_.push_back(static_cast<uint32_t>(bias.token));
    words_.push_back(std::bit_cast<uint32_t>(bias.bias));
  }
  entries_.push_back({&row, allowed_at, allowed.size(), biases_at, biases.size()});
}

void SampleInputs::upload(const std::shared_ptr<Backend>& backend, Buffer& buffer) {
  if (entries_.empty()) return;
  const size_t bytes = words_.size() * sizeof(uint32_t);
  if (buffer.bytes() < bytes) {
    Buffer larger(backend, 2 * bytes);
    backend->synchronize();  // a queued kernel may still read the old buffer
    buffer = std::move(larger);
  }
  backend->upload(buffer.data(), words_.data(), bytes);
  const uint32_t* words = buffer.as<uint32_t>();
  for (const Entry& entry : entries_) {
    SampleRow& row = *entry.row;
    if (entry.num_allowed > 0) row.allowed = words + entry.allowed_at;
    if (entry.num_biases > 0) row.biases = reinterpret_cast<const LogitBias*>(words + entry.biases_at);
    row.num_biases = static_cast<int64_t>(entry.num_biases);
  }
}

}  // namespace diffqkv
