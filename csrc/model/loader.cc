#include "model/loader.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "model/model.h"
#include "model/packed_weights.h"

namespace diffqkv {
namespace {

constexpr int64_t kChunkElements = int64_t{4} << 20;  // 8 to 16 MiB

// Rows of `width` elements in a chunk: at least one, and whole groups of those that have another order.
int64_t chunk_rows(const Rows& rows, int64_t width) {
  const int64_t group = rows.order ? static_cast<int64_t>(rows.order->size()) : 1;
  return std::max<int64_t>(1, kChunkElements / (width * group)) * group;
}

// The stored row at `row`, both counted from a whole group.
int64_t stored_row(const Rows& rows, int64_t row) {
  if (!rows.order) return row;
  const int64_t group = static_cast<int64_t>(rows.order->size());
  return row / group * group + (*rows.order)[row % group];
}

// Whether all values are finite. Infinities and NaN have all exponent bits set.
bool are_finite(DType dtype, const void* values, int64_t count) {
  const auto check = [&]<typename T>(const T* bits, T exponent) {
    return std::none_of(bits, bits + count, [=](T value) { return (value & exponent) == exponent; });
  };
  if (dtype == DType::f32) return check(static_cast<const uint32_t*>(values), uint32_t{0x7f800000});
  return check(static_cast<const uint16_t*>(values), static_cast<uint16_t>(dtype == DType::f16 ? 0x7c00 : 0x7f80));
}

// Whether the bits of a 16-bit float are an infinity.
bool is_infinity(DType dtype, uint16_t bits) { return (bits & 0x7fff) == (dtype == DType::f16 ? 0x7c00 : 0x7f80); }

// out[c - c0][r] = in[r][c] for c0 <= c < c1, in tiles that fit the L1 cache.
template <typename T>
void transpose(uint8_t* out, const uint8_t* in, int64_t rows, int64_t columns, int64_t c0, int64_t c1) {
  constexpr int64_t kTile = 64;
  for (int64_t r0 = 0; r0 < rows; r0 += kTile) {
    const int64_t r1 = std::min(rows, r0 + kTile);
    for (int64_t t0 = c0; t0 < c1; t0 += kTile) {
      const int64_t t1 = std::min(c1, t0 + kTile);
      for (int64_t c = t0; c < t1; c++) {
        for (int64_t r = r0; r < r1; r++) {
          memcpy(out + ((c - c0) * rows + r) * sizeof(T), in + (r * columns + c) * sizeof(T), sizeof(T));
        }
      }
    }
  }
}

uint64_t splitmix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// The medians of 4,096 slices of equal probability of the normal distribution, by bisection of its
// cumulative distribution function.
constexpr int kSlices = 4096;
std::vector<float> normal_quantiles() {
  std::vector<float> quantiles(kSlices);
  for (int i = 0; i < kSlices / 2; i++) {
    const double p = (i + 0.5) / kSlices;
    double low = -5;
    double high = 0;
    for (int step = 0; step < 50; step++) {
      const double middle = (low + high) / 2;
      (0.5 * std::erfc(-middle * M_SQRT1_2) < p ? low : high) = middle;
    }
    quantiles[i] = static_cast<float>(low);
    quantiles[kSlices - 1 - i] = static_cast<float>(-low);
  }
  return quantiles;
}

// One 64-bit hash makes five draws from the table, whose values have the final type: about 2 GB/s.
template <typename T>
void draw_elements(T* out, const T* table, int64_t first, int64_t count, uint64_t key) {
  constexpr int kPerHash = 5;  // `first` is a multiple of this
  uint64_t counter = first / kPerHash;
  int64_t i = 0;
  while (i < count) {
    uint64_t bits = splitmix64(key + counter++ * 0x9e3779b97f4a7c15u);
    const int64_t end = std::min<int64_t>(count, i + kPerHash);
    for (; i < end; i++, bits >>= 12) out[i] = table[bits & (kSlices - 1)];
  }
}

}  // namespace

Loader::Loader(std::shared_ptr<Backend> backend, const LoadOptions& options, uint64_t total_bytes)
    : backend_(std::move(backend)), options_(options), total_bytes_(total_bytes) {
  check_cancel();
  if (options_.on_progress) options_.on_progress(0, total_bytes_);
}

void Loader::check_cancel() const {
  if (options_.cancel && options_.cancel->load(std::memory_order_relaxed)) {
    throw Error(ErrorCode::aborted, "loading was aborted after " + std::to_string(loaded_bytes_) + " of " +
                                        std::to_string(total_bytes_) + " bytes");
  }
}

void Loader::advance(uint64_t bytes) {
  loaded_bytes_ += bytes;
  check_cancel();
  // At most 200 reports, because a model has many small tensors. finish() makes the last one.
  const uint64_t step = std::max<uint64_t>(uint64_t{1} << 20, total_bytes_ / 200);
  if (options_.on_progress && loaded_bytes_ < total_bytes_ && loaded_bytes_ - reported_bytes_ >= step) {
    reported_bytes_ = loaded_bytes_;
    options_.on_progress(loaded_bytes_, total_bytes_);
  }
}

void Loader::finish() {
  backend_->synchronize();
  check_cancel();
  if (options_.on_progress) options_.on_progress(total_bytes_, total_bytes_);
}

const void* Loader::convert(const StoredTensor& tensor, DType from, const void* values, int64_t count, DType to) {
  if (from == to) return values;
  floats_.resize(count);
  convert_to_f32(from, floats_.data(), values, count);
  if (to == DType::f32) return floats_.data();
  converted_.resize(count);
  convert_from_f32(to, converted_.data(), floats_.data(), count);
  for (int64_t i = 0; i < count; i++) {
    if (!is_infinity(to, converted_[i]) || !std::isfinite(floats_[i])) continue;
    char value[32];
    snprintf(value, sizeof value, "%g", floats_[i]);
    throw Error(ErrorCode::unsupported_model, tensor.place() + "has the value " + value + ", which overflows " +
                                                  dtype_name(to) + "; load the model with dtype \"" + dtype_name(from) +
                                                  "\"");
  }
  return converted_.data();
}

void Loader::read_rows(const StoredTensor& tensor, const Rows& rows, int64_t begin, int64_t count, size_t row_bytes) {
  stored_.resize(count * row_bytes);
  std::vector<uint8_t>& target = rows.order ? unordered_ : stored_;
  target.resize(stored_.size());
  tensor.read(target.data(), (rows.first + begin) * row_bytes, target.size());
  if (!rows.order) return;
  for (int64_t row = 0; row < count; row++) {
    const int64_t from = stored_row(rows, row);
    memcpy(stored_.data() + row * row_bytes, unordered_.data() + from * row_bytes, row_bytes);
  }
}

WeightBuffer Loader::load_rows(const StoredTensor& tensor, const Rows& rows, DType to) {
  const DType from = weight_dtype(tensor).value();
  const int64_t width = tensor.shape.size() > 1 ? tensor.shape[1] : 1;
  // Whole rows, and whole groups of them if they have another order. Without one, a tensor is read
  // as one row of elements, because a row may be larger than a chunk.
  const int64_t row = rows.order ? width : 1;
  const Rows part{rows.first * width / row, rows.count * width / row, rows.order};
  const int64_t step = chunk_rows(rows, row);
  Buffer buffer(backend_, rows.count * width * dtype_size(to));
  for (int64_t i = 0; i < part.count; i += step) {
    const int64_t count = std::min(step, part.count - i);
    read_rows(tensor, part, i, count, row * dtype_size(from));
    const void* values = convert(tensor, from, stored_.data(), count * row, to);
    backend_->upload(buffer.as<uint8_t>() + i * row * dtype_size(to), values, count * row * dtype_size(to));
    advance(stored_.size());
  }
  return {std::move(buffer), to};
}

WeightBuffer Loader::load_norm(const StoredTensor& tensor, const Rows& rows, float add, float scale) {
  if (add == 0 && scale == 1) return load_rows(tensor, rows, DType::f32);
  const DType from = weight_dtype(tensor).value();
  Buffer buffer(backend_, rows.count * sizeof(float));
  read_rows(tensor, rows, 0, rows.count, dtype_size(from));
  const auto* values = static_cast<const float*>(convert(tensor, from, stored_.data(), rows.count, DType::f32));
  std::vector<float> changed(values, values + rows.count);
  for (float& value : changed) value = (value + add) * scale;
  backend_->upload(buffer.data(), changed.data(), buffer.bytes());
  advance(stored_.size());
  return {std::move(buffer), DType::f32};
}

WeightBuffer Loader::load_transposed(const StoredTensor& tensor, DType to) {
  const DType from = weight_dtype(tensor).value();
  const int64_t rows = tensor.shape[0];
  const int64_t columns = tensor.shape[1];
  Buffer buffer(backend_, rows * columns * dtype_size(to));
  std::vector<uint8_t> matrix(tensor.bytes);
  tensor.read(matrix.data(), 0, matrix.size());
  const int64_t block = std::max<int64_t>(1, kChunkElements / rows);
  for (int64_t c0 = 0; c0 < columns; c0 += block) {
    const int64_t c1 = std::min(columns, c0 + block);
    const int64_t size = (c1 - c0) * rows;
    stored_.resize(size * dtype_size(from));
    if (dtype_size(from) == 2) {
      transpose<uint16_t>(stored_.data(), matrix.data(), rows, columns, c0, c1);
    } else {
      transpose<uint32_t>(stored_.data(), matrix.data(), rows, columns, c0, c1);
    }
    const void* values = convert(tensor, from, stored_.data(), size, to);
    backend_->upload(buffer.as<uint8_t>() + c0 * rows * dtype_size(to), values, size * dtype_size(to));
    advance(size * dtype_size(from));
  }
  return {std::move(buffer), to};
}

WeightBuffer Loader::make_quantized(int64_t out_features, int64_t in_features, const WeightFormat& format) {
  const size_t data_bytes = out_features * weight_row_bytes(format.dtype, in_features);
  const size_t scales_offset = (data_bytes + 255) / 256 * 256;
  const size_t scale_bytes = out_features * weight_row_groups(in_features, format.group_size) * sizeof(uint16_t);
  WeightBuffer buffer(Buffer(backend_, scales_offset + scale_bytes), format.dtype);
  // Nothing else writes what is between values and scales, and the fingerprint of a model has it.
  const uint8_t zeros[256] = {};
  backend_->upload(buffer.as<uint8_t>() + data_bytes, zeros, scales_offset - data_bytes);
  buffer.group_size = format.group_size;
  buffer.scales_offset = scales_offset;
  return buffer;
}

void Loader::quantize_rows(const void* from, DType from_dtype, int64_t row, int64_t count, int64_t in_features,
                           WeightBuffer& out) {
  const WeightView rows = weight_rows(out.view(), in_features, row);
  QuantizeWeightParams p;
  p.weight = from;
  p.data = const_cast<void*>(rows.data);
  p.scales = const_cast<void*>(rows.scales);
  p.weight_dtype = from_dtype;
  p.dtype = out.dtype;
  p.out_features = count;
  p.in_features = in_features;
  p.group_size = out.group_size;
  backend_->quantize_weight(p);
}

WeightBuffer Loader::load_quantized(const StoredTensor& tensor, const Rows& rows, const WeightFormat& format) {
  const DType from = weight_dtype(tensor).value();
  const int64_t width = tensor.shape[1];
  const int64_t step = chunk_rows(rows, width);
  WeightBuffer buffer = make_quantized(rows.count, width, format);
  for (int64_t row = 0; row < rows.count; row += step) {
    const int64_t count = std::min(step, rows.count - row);
    read_rows(tensor, rows, row, count, width * dtype_size(from));
    if (staged_.bytes() < stored_.size()) staged_ = Buffer(backend_, stored_.size());
    backend_->upload(staged_.data(), stored_.data(), stored_.size());
    quantize_rows(staged_.data(), from, row, count, width, buffer);
    advance(stored_.size());
  }
  return buffer;
}

WeightBuffer Loader::quantize(const WeightBuffer& matrix, int64_t in_features, const WeightFormat& format) {
  const int64_t row_bytes = weight_row_bytes(matrix.dtype, in_features);
  const int64_t rows = static_cast<int64_t>(matrix.bytes()) / row_bytes;
  WeightBuffer buffer = make_quantized(rows, in_features, format);
  const int64_t step = chunk_rows({}, in_features);  // between two checks of the cancel flag
  for (int64_t row = 0; row < rows; row += step) {
    check_cancel();
    quantize_rows(matrix.as<uint8_t>() + row * row_bytes, matrix.dtype, row, std::min(step, rows - row), in_features,
                  buffer);
  }
  backend_->synchronize();  // the matrix may be freed on return
  return buffer;
}

WeightBuffer Loader::load_exact(const StoredTensor& tensor, const Rows& rows) {
  const PackedWeight& packed = *tensor.packed;
  const auto [dtype, group_size, scale_dtype] = packed.exact_format().value();
  const int64_t width = packed.columns();
  const int64_t row_bytes = weight_row_bytes(dtype, width), groups = weight_row_groups(width, group_size);
  WeightBuffer buffer = make_quantized(rows.count, width, {dtype, group_size});
  buffer.scale_dtype = scale_dtype;
  const int64_t step = chunk_rows(rows, width);
  for (int64_t row = 0; row < rows.count; row += step) {
    const int64_t count = std::min(step, rows.count - row);
    stored_.resize(count * row_bytes);
    converted_.resize(count * groups);
    for (int64_t r = 0; r < count; r++) {
      const int64_t from = rows.first + row + stored_row(rows, r);
      packed.read_exact(stored_.data() + r * row_bytes, converted_.data() + r * groups, from);
    }
    const WeightView to = weight_rows(buffer.view(), width, row);
    backend_->upload(const_cast<void*>(to.data), stored_.data(), stored_.size());
    backend_->upload(const_cast<void*>(to.scales), converted_.data(), converted_.size() * sizeof(uint16_t));
    advance(count * width * sizeof(float));
  }
  return buffer;
}

bool Loader::is_finite(const StoredTensor& tensor) {
  const DType dtype = weight_dtype(tensor).value();
  const int64_t count = static_cast<int64_t>(tensor.bytes / dtype_size(dtype));
  for (int64_t i = 0; i < count; i += kChunkElements) {
    const int64_t size = std::min(kChunkElements, count - i);
    stored_.resize(size * dtype_size(dtype));
    tensor.read(stored_.data(), i * dtype_size(dtype), stored_.size());
    if (!are_finite(dtype, stored_.data(), size)) return false;
  }
  return true;
}

WeightBuffer Loader::multiply(const StoredTensor& matrix, const StoredTensor& q, const Buffer& q_transposed,
                              DType operand, DType to) {
  const int64_t aug_q_size = matrix.shape[0];
  const int64_t q_size = matrix.shape[1];
  const int64_t hidden_size = q.shape[1];
  const Buffer x = load(matrix, operand);
  Buffer out(backend_, aug_q_size * hidden_size * dtype_size(to));
  bool finite = true;
  constexpr int64_t kRows = 512;  // between two checks of the cancel flag
  for (int64_t row = 0; row < aug_q_size; row += kRows) {
    check_cancel();
    MatmulParams p;
    p.x = x.as<uint8_t>() + row * q_size * dtype_size(operand);
    p.weight = {q_transposed.data(), operand};
    p.out = out.as<uint8_t>() + row * hidden_size * dtype_size(to);
    p.x_dtype = operand;
    p.out_dtype = to;
    p.num_tokens = std::min(kRows, aug_q_size - row);
    p.in_features = q_size;
    p.out_features = hidden_size;
    backend_->matmul(p);
    stored_.resize(p.num_tokens * hidden_size * dtype_size(to));
    backend_->download(stored_.data(), p.out, stored_.size());  // waits, so no kernel reads x after the loop
    finite = finite && are_finite(to, stored_.data(), p.num_tokens * hidden_size);
  }
  // Infinities and NaN in the file are no overflow; they are loaded as they are.
  if (!finite && is_finite(matrix) && is_finite(q)) {
    throw Error(ErrorCode::unsupported_model,
                matrix.place() + "multiplied by '" + printable(q.name) + "' overflows " + dtype_name(to) +
                    (to == DType::f32 ? ", the widest type" : "; load the model with dtype \"f32\""));
  }
  return {std::move(out), to};
}

FoldedQ Loader::fold(const StoredTensor& q, const StoredTensor& gate, const StoredTensor& up, DType to) {
  // If the three have the same type, the product uses it. Otherwise all become f32, which
  // represents each of them exactly.
  const bool same = q.dtype == gate.dtype && q.dtype == up.dtype;
  const DType operand = same ? weight_dtype(q).value() : DType::f32;
  const Buffer q_transposed = load_transposed(q, operand);
  FoldedQ folded;
  folded.gate = multiply(gate, q, q_transposed, operand, to);
  folded.up = multiply(up, q, q_transposed, operand, to);
  return folded;
}

WeightBuffer Loader::draw(int64_t out_features, int64_t in_features, DType dtype, uint64_t seed, uint64_t stream) {
  static const std::vector<float> quantiles = normal_quantiles();
  std::vector<float> scaled(quantiles);
  const float deviation = 1.0f / std::sqrt(static_cast<float>(in_features));
  for (float& value : scaled) value *= deviation;
  std::vector<uint8_t> table(kSlices * dtype_size(dtype));
  convert_from_f32(dtype, table.data(), scaled.data(), kSlices);

  const uint64_t key = splitmix64(splitmix64(seed) + stream * 0x9e3779b97f4a7c15u);
  const int64_t count = out_features * in_features;
  constexpr int64_t kChunk = kChunkElements / 5 * 5;  // whole hashes
  Buffer buffer(backend_, count * dtype_size(dtype));
  for (int64_t i = 0; i < count; i += kChunk) {
    const int64_t size = std::min(kChunk, count - i);
    stored_.resize(size * dtype_size(dtype));
    if (dtype_size(dtype) == 2) {
      draw_elements(reinterpret_cast<uint16_t*>(stored_.data()), reinterpret_cast<const uint16_t*>(table.data()), i,
                    size, key);
    } else {
      draw_elements(reinterpret_cast<float*>(stored_.data()), reinterpret_cast<const float*>(table.data()), i, size,
                    key);
    }
    backend_->upload(buffer.as<uint8_t>() + i * dtype_size(dtype), stored_.data(), stored_.size());
    advance(stored_.size());
  }
  return {std::move(buffer), dtype};
}

WeightBuffer Loader::fill(int64_t count, float value) {
  const std::vector<float> values(count, value);
  Buffer buffer(backend_, count * sizeof(float));
  backend_->upload(buffer.data(), values.data(), buffer.bytes());
  advance(buffer.bytes());
  return {std::move(buffer), DType::f32};
}

}  // namespace diffqkv
