// Fills device memory with weights in chunks of bounded size. Reports progress and checks the
// cancel flag between chunks.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "model/checkpoint.h"
#include "model/weights.h"

namespace diffqkv {

struct LoadOptions;

struct FoldedQ {
  WeightBuffer gate;  // W_gate W_q, [aug_q_size, hidden_size]
  WeightBuffer up;    // W_up W_q, of the same shape
};

// The part of a stored tensor that becomes a buffer.
struct Rows {
  int64_t first = 0;
  int64_t count = 0;
  // The stored row at each row, within groups of order.size() rows; null: the same order.
  const std::vector<int32_t>* order = nullptr;
};

class Loader {
 public:
  // total_bytes: the sum of the bytes that all later calls count as progress.
  Loader(std::shared_ptr<Backend> backend, const LoadOptions& options, uint64_t total_bytes);

  // These need a tensor with a weight_dtype, and convert it to the type `to`. They throw
  // ERR_UNSUPPORTED_MODEL, with the name of the tensor, if a value overflows that type. They count
  // the bytes that they read.
  WeightBuffer load(const StoredTensor& tensor, DType to) { return load_rows(tensor, {0, tensor.shape[0]}, to); }
  WeightBuffer load_rows(const StoredTensor& tensor, const Rows& rows, DType to);
  // f32: (value + add) * scale.
  WeightBuffer load_norm(const StoredTensor& tensor, const Rows& rows, float add, float scale);
  WeightBuffer load_transposed(const StoredTensor& tensor, DType to);  // a matrix, which is read at once
  // A matrix, quantized from the stored values on the device. Counts the bytes that it reads.
  WeightBuffer load_quantized(const StoredTensor& tensor, const Rows& rows, const WeightFormat& format);
  // The same of a matrix in device memory. Counts no bytes.
  WeightBuffer quantize(const WeightBuffer& matrix, int64_t in_features, const WeightFormat& format);
  // A matrix with a PackedWeight::exact_format, as it is stored. Counts the bytes of its values.
  WeightBuffer load_exact(const StoredTensor& tensor, const Rows& rows);
  // Matrix products on the device: exact products of the stored values, summed in f32, rounded
  // once. Throws ERR_UNSUPPORTED_MODEL, with the names of the tensors, if a product overflows.
  // Counts the bytes of the three tensors.
  FoldedQ fold(const StoredTensor& q, const StoredTensor& gate, const StoredTensor& up, DType to);
  // Normal distribution with standard deviation 1 / sqrt(in_features), determined by seed and
  // stream. Counts the bytes of the buffer.
  WeightBuffer draw(int64_t out_features, int64_t in_features, DType dtype, uint64_t seed, uint64_t stream);
  WeightBuffer fill(int64_t count, float value);  // f32. Counts the bytes of the buffer.
  // Waits for the device and reports that all bytes are loaded.
  void finish();

 private:
  void check_cancel() const;
  WeightBuffer make_quantized(int64_t out_features, int64_t in_features, const WeightFormat& format);
  // Rows of `out` from `row` on = `count` rows at `from`.
  void quantize_rows(const void* from, DType from_dtype, int64_t row, int64_t count, int64_t in_features,
                     WeightBuffer& out);
  // Reads rows [begin, begin + count) of `rows` to stored_.
  void read_rows(const StoredTensor& tensor, const Rows& rows, int64_t begin, int64_t count, size_t row_bytes);
  void advance(uint64_t bytes);
  // The values of a chunk in the type `to`, valid until the next call.
  const void* convert(const StoredTensor& tensor, DType from, const void* values, int64_t count, DType to);
  // matrix q, from the transpose of q.
  WeightBuffer multiply(const StoredTensor& matrix, const StoredTensor& q, const Buffer& q_transposed, DType operand,
                        DType to);
  bool is_finite(const StoredTensor& tensor);  // whether all values are finite

  std::shared_ptr<Backend> backend_;
  const LoadOptions& options_;
  uint64_t total_bytes_;
  uint64_t loaded_bytes_ = 0;
  uint64_t reported_bytes_ = 0;
  // One chunk: as in the file, as f32, and in a 16-bit type.
  std::vector<uint8_t> stored_;
  std::vector<uint8_t> unordered_;  // the same, before Rows::order is applied
  std::vector<float> floats_;
  std::vector<uint16_t> converted_;
  Buffer staged_;  // the chunk in device memory, before it is quantized
};

}  // namespace diffqkv
