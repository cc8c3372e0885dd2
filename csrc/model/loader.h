// Fills device memory with weights, a chunk of bounded size at a time: between two chunks it reports how far it is and
// looks whether to stop.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "model/checkpoint.h"

namespace diffqkv {

struct LoadOptions;

struct FoldedQ {
  Buffer gate, up;  // W_gate W_q and W_up W_q, [aug_q_size, hidden_size]
};

class Loader {
 public:
  // total_bytes: the sum over all calls to come, of what each says that it counts.
  Loader(std::shared_ptr<Backend> backend, const LoadOptions& options, uint64_t total_bytes);

  // Converts to `to` where the file has another type. Counts tensor.bytes.
  Buffer load(const StoredTensor& tensor, DType to);
  Buffer load_transposed(const StoredTensor& tensor, DType to);  // of a matrix
  // Products on the device: exact products of the stored values, summed in f32, rounded once. Counts the bytes of all
  // three.
  FoldedQ fold(const StoredTensor& q, const StoredTensor& gate, const StoredTensor& up, DType to);
  // Normal with deviation 1 / sqrt(in_features), the same for the same seed and stream. Counts the buffer's bytes.
  Buffer draw(int64_t out_features, int64_t in_features, DType dtype, uint64_t seed, uint64_t stream);
  Buffer ones(int64_t count);  // f32. Counts the buffer's bytes.
  // Waits for the device and reports the whole as loaded.
  void finish();

 private:
  void check_cancel() const;
  void advance(uint64_t bytes);
  Buffer multiply(const StoredTensor& matrix, const Buffer& q_transposed, int64_t hidden_size, DType operand, DType to);

  std::shared_ptr<Backend> backend_;
  const LoadOptions& options_;
  uint64_t total_bytes_, loaded_bytes_ = 0, reported_bytes_ = 0;
  std::vector<float> floats_;       // one chunk as f32, on its way from type to type
  std::vector<uint8_t> converted_;  // the same chunk in the type that is wanted
};

}  // namespace diffqkv
