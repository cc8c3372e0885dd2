// Quantized weights of public checkpoints: GPTQ, AWQ, compressed-tensors and FP8 with scales for
// blocks. A weight that is stored in several tensors is found as one, X.weight, with the values
// scale * (integer - zero) in f32, which are exact.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/quantization.h"

namespace diffqkv {

class PackedWeight {
 public:
  struct Parts {
    StoredTensor values, scales;
    StoredTensor zeros, group_index, shape;  // without a file if there are none
  };
  // Throws ERR_INVALID_CHECKPOINT if the shapes of the parts do not fit each other, and
  // ERR_UNSUPPORTED_MODEL for types that are not known.
  PackedWeight(const Quantization& quantization, Parts parts);

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  // The WeightView (ops.h) that holds the values unchanged: i4 or i8, whichever has all differences of
  // integers and zeros, with bf16 or f16 scales for neighboring columns. None for other weights. The
  // first call reads zeros and group indices.
  struct Format {
    DType dtype;
    int64_t group_size;
    DType scale_dtype;
    bool operator==(const Format&) const = default;
  };
  std::optional<Format> exact_format() const;
  // Row `row` in that form: integers, and scales [weight_row_groups].
  void read_exact(uint8_t* integers, uint16_t* scales, int64_t row) const;
  // out[i] = element first + i of the matrix in row-major order. The first call reads the parts.
  void read(float* out, int64_t first, int64_t count) const;
  // Frees what the first call has read.
  void release() const { data_.reset(); }

 private:
  // The parts in memory.
  struct Data {
    std::vector<uint8_t> values;
    std::vector<float> scales;    // [rows, groups of a row], or [blocks of rows, blocks of columns]
    std::vector<int16_t> zeros;   // the same shape; empty: 0
    std::vector<int32_t> groups;  // [columns]: the group of each
  };
  void check_shapes();
  int64_t stored_columns(int64_t fields, int64_t per_word) const;
  int64_t group_columns() const;  // neighboring columns of a row with one scale
  int64_t num_groups() const;
  const Data& data() const;
  void read_groups(Data& data) const;
  void read_scales(Data& data) const;
  void read_zeros(Data& data) const;
  bool has_integers() const { return parts_.values.dtype != "F8_E4M3"; }
  std::optional<Format> find_exact_format() const;
  // The index of the first scale of a row, and of its first zero.
  int64_t first_scale(const Data& data, int64_t row) const;
  // `count` whole rows from `row` on. store(i, column, value) gets each element of row row + i: its
  // integer less its zero.
  template <typename Store>
  void visit_integers(const Data& data, int64_t row, int64_t count, const Store& store) const;
  void decode(const Data& data, float* out, int64_t row, int64_t count) const;

  Quantization quantization_;
  Parts parts_;
  int64_t rows_ = 0, columns_ = 0;
  int64_t row_block_ = 1;  // rows with one scale
  int64_t words_ = 0;      // compressed: 32-bit words in a row
  mutable std::unique_ptr<Data> data_;
  mutable std::optional<std::optional<Format>> exact_format_;  // empty: not known yet
};

}  // namespace diffqkv
