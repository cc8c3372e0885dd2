#include "model/packed_weights.h"

#include <algorithm>
#include <cstring>

#include "backend/check.h"
#include "backend/dtype.h"
#include "backend/ops.h"

namespace diffqkv {
namespace {

[[noreturn]] void fail_part(const StoredTensor& tensor, const std::string& what) {
  throw Error(ErrorCode::invalid_checkpoint, tensor.place() + what);
}

void check_part(const StoredTensor& tensor, const std::vector<std::string>& dtypes, const std::vector<int64_t>& shape) {
  if (std::find(dtypes.begin(), dtypes.end(), tensor.dtype) == dtypes.end())
    throw Error(ErrorCode::unsupported_model,
                tensor.place() + "has type " + tensor.dtype + "; it must be " + dtypes[0]);
  if (tensor.shape != shape)
    fail_part(tensor, "has shape " + shape_text(tensor.shape) + "; the other parts require " + shape_text(shape));
}

std::vector<uint8_t> read_all(const StoredTensor& tensor) {
  std::vector<uint8_t> bytes(tensor.bytes);
  tensor.file->read(bytes.data(), tensor.offset, bytes.size());
  return bytes;
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

const std::vector<std::string> kScaleTypes = {"F16", "BF16", "F32"};
const std::vector<std::string> kWordTypes = {"I32"};

// The nibble of a word of AWQ that has each of its 8 columns.
constexpr int kAwqNibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};

uint32_t word_at(const uint8_t* words, int64_t i) {
  uint32_t word;
  memcpy(&word, words + i * 4, sizeof word);
  return word;
}

// Field i of `bits` bits in a word, or in an array of words.
int field(uint32_t word, int64_t i, int bits) { return static_cast<int>(word >> (i * bits)) & ((1 << bits) - 1); }
int field_at(const uint8_t* words, int64_t i, int bits) {
  const int64_t per_word = 32 / bits;
  return field(word_at(words, i / per_word), i % per_word, bits);
}

}  // namespace

PackedWeight::PackedWeight(const Quantization& quantization, Parts parts)
    : quantization_(quantization), parts_(std::move(parts)) {
  check_shapes();
}

// The last word of a row may have fewer fields.
int64_t PackedWeight::stored_columns(int64_t fields, int64_t per_word) const {
  if (!parts_.shape.file) return fields;
  check_part(parts_.shape, {"I64"}, {2});
  int64_t shape[2];
  memcpy(shape, read_all(parts_.shape).data(), sizeof shape);
  if (shape[0] == rows_ && shape[1] <= fields && shape[1] > fields - per_word) return shape[1];
  fail_part(parts_.shape, "is " + shape_text({shape[0], shape[1]}) + ", but the packed weight has " +
                              std::to_string(rows_) + " rows of up to " + std::to_string(fields) + " elements");
}

int64_t PackedWeight::group_columns() const {
  const int64_t size = quantization_.block_columns > 0 ? quantization_.block_columns : quantization_.group_size;
  return size == 0 ? columns_ : size;
}

int64_t PackedWeight::num_groups() const { return divide_up(columns_, group_columns()); }

void PackedWeight::check_shapes() {
  const StoredTensor& values = parts_.values;
  if (values.shape.size() != 2 || values.shape[0] < 1 || values.shape[1] < 1)
    fail_part(values, "has shape " + shape_text(values.shape) + "; it must be a matrix");
  const int64_t first = values.shape[0], second = values.shape[1];
  const int64_t per_word = quantization_.bits > 0 ? 32 / quantization_.bits : 1;
  const auto check_groups = [&](std::vector<int64_t> scales, std::vector<int64_t> zeros,
                                const std::vector<std::string>& zero_types) {
    check_part(parts_.scales, kScaleTypes, scales);
    if (parts_.zeros.file) check_part(parts_.zeros, zero_types, zeros);
    if (parts_.group_index.file) check_part(parts_.group_index, kWordTypes, {columns_});
  };
  switch (quantization_.method) {
    case Quantization::none: break;
    case Quantization::gptq:
      check_part(values, kWordTypes, values.shape);
      rows_ = second;
      columns_ = first * per_word;
      check_groups({num_groups(), rows_}, {num_groups(), divide_up(rows_, per_word)}, kWordTypes);
      break;
    case Quantization::awq:
      check_part(values, kWordTypes, values.shape);
      rows_ = second * per_word;
      columns_ = first;
      check_groups({num_groups(), rows_}, {num_groups(), second}, kWordTypes);
      break;
    case Quantization::compressed: {
      rows_ = first;
      columns_ = second;
      const bool words = values.dtype == "I32";
      if (words) {
        words_ = second;
        columns_ = stored_columns(second * per_word, per_word);
      } else {
        check_part(values, {quantization_.bits == 8 && values.dtype == "I8" ? "I8" : "F8_E4M3"}, values.shape);
      }
      const auto& scales = parts_.scales.shape;
      if (scales.size() <= 1) {  // one for the tensor
        row_block_ = rows_;
        check_groups(scales.empty() ? scales : std::vector<int64_t>{1}, scales, {"I8"});
      } else if (quantization_.block_rows > 0) {
        row_block_ = quantization_.block_rows;
        check_groups({divide_up(rows_, row_block_), num_groups()}, {}, {"I8"});
      } else {
        const int64_t zero_rows = words ? divide_up(rows_, per_word) : rows_;
        check_groups({rows_, num_groups()}, {zero_rows, num_groups()}, {words ? "I32" : "I8"});
      }
      break;
    }
    case Quantization::fp8:
      check_part(values, {"F8_E4M3"}, values.shape);
      rows_ = first;
      columns_ = second;
      row_block_ = quantization_.block_rows;
      check_groups({divide_up(rows_, row_block_), num_groups()}, {}, {});
      break;
  }
}

void PackedWeight::read_groups(Data& data) const {
  data.groups.resize(columns_);
  const bool one = parts_.scales.shape.size() <= 1 || num_groups() == 1;
  for (int64_t c = 0; c < columns_; c++) data.groups[c] = one ? 0 : static_cast<int32_t>(c / group_columns());
  if (!parts_.group_index.file || one) return;
  memcpy(data.groups.data(), read_all(parts_.group_index).data(), columns_ * sizeof(int32_t));
  for (const int32_t group : data.groups) {
    if (group < 0 || group >= num_groups())
      fail_part(parts_.group_index,
                "has the group " + std::to_string(group) + "; there are " + std::to_string(num_groups()));
  }
}

void PackedWeight::read_scales(Data& data) const {
  const std::vector<uint8_t> stored = read_all(parts_.scales);
  const DType type = weight_dtype(parts_.scales).value();
  std::vector<float> scales(stored.size() / dtype_size(type));
  convert_to_f32(type, scales.data(), stored.data(), scales.size());
  const bool by_column = quantization_.method == Quantization::gptq || quantization_.method == Quantization::awq;
  if (!by_column) {
    data.scales = std::move(scales);
    return;
  }
  const int64_t groups = num_groups();
  data.scales.resize(scales.size());
  for (int64_t g = 0; g < groups; g++) {
    for (int64_t row = 0; row < rows_; row++) data.scales[row * groups + g] = scales[g * rows_ + row];
  }
}

void PackedWeight::read_zeros(Data& data) const {
  if (!parts_.zeros.file) return;
  const std::vector<uint8_t> stored = read_all(parts_.zeros);
  const int64_t groups = num_groups();
  const int bits = quantization_.bits;
  data.zeros.resize(data.scales.size());
  const bool words = parts_.zeros.dtype == "I32";
  const int64_t per_word = 32 / bits;
  for (int64_t row = 0; row < rows_; row++) {
    for (int64_t g = 0; g < groups; g++) {
      int zero = 0;
      switch (quantization_.method) {
        case Quantization::gptq:
          // Each group's zeros begin a word.
          zero = field_at(stored.data() + g * divide_up(rows_, per_word) * 4, row, bits);
          if (quantization_.adds_one) zero = (zero + 1) % (1 << bits);
          break;
        case Quantization::awq:
          zero = field(word_at(stored.data(), (g * rows_ + row) / 8), kAwqNibble[row % 8], bits);
          break;
        default:
          // Packed along the rows, with an offset, or plain.
          zero = words ? field(word_at(stored.data(), row / per_word * groups + g), row % per_word, bits) -
                             (1 << (bits - 1))
                       : static_cast<int8_t>(stored[row * groups + g]);
      }
      data.zeros[row * groups + g] = static_cast<int16_t>(zero);
    }
  }
}

const PackedWeight::Data& PackedWeight::data() const {
  if (data_) return *data_;
  auto data = std::make_unique<Data>();
  data->values = read_all(parts_.values);
  read_groups(*data);
  read_scales(*data);
  read_zeros(*data);
  data_ = std::move(data);
  return *data_;
}

int64_t PackedWeight::first_scale(const Data& data, int64_t row) const {
  return row / row_block_ * (static_cast<int64_t>(data.scales.size()) / divide_up(rows_, row_block_));
}

template <typename Store>
void PackedWeight::visit_integers(const Data& data, int64_t row, int64_t count, const Store& store) const {
  const int bits = quantization_.bits;
  const int64_t per_word = bits > 0 ? 32 / bits : 1;
  const auto visit = [&](int64_t i, int64_t column, int integer) {
    const int zero = data.zeros.empty() ? 0 : data.zeros[first_scale(data, row + i) + data.groups[column]];
    store(i, column, integer - zero);
  };
  const auto word = [&](int64_t i) { return word_at(data.values.data(), i); };
  if (quantization_.method == Quantization::gptq) {
    for (int64_t w = 0; w < columns_ / per_word; w++) {
      for (int64_t i = 0; i < count; i++) {
        const uint32_t fields = word(w * rows_ + row + i);
        for (int64_t k = 0; k < per_word; k++) visit(i, w * per_word + k, field(fields, k, bits));
      }
    }
  } else if (quantization_.method == Quantization::awq) {
    for (int64_t column = 0; column < columns_; column++) {
      for (int64_t i = 0; i < count; i++) {
        const uint32_t fields = word(column * (rows_ / 8) + (row + i) / 8);
        visit(i, column, field(fields, kAwqNibble[(row + i) % 8], bits));
      }
    }
  } else if (words_ > 0) {
    const int half = 1 << (bits - 1);
    for (int64_t i = 0; i < count; i++) {
      for (int64_t column = 0; column < columns_; column++) {
        const uint32_t fields = word((row + i) * words_ + column / per_word);
        visit(i, column, field(fields, column % per_word, bits) - half);
      }
    }
  } else {
    const auto* bytes = reinterpret_cast<const int8_t*>(data.values.data()) + row * columns_;
    for (int64_t i = 0; i < count * columns_; i++) visit(i / columns_, i % columns_, bytes[i]);
  }
}

void PackedWeight::decode(const Data& data, float* out, int64_t row, int64_t count) const {
  if (has_integers()) {
    visit_integers(data, row, count, [&](int64_t i, int64_t column, int value) {
      out[i * columns_ + column] = static_cast<float>(value);
    });
  } else {
    convert_to_f32(DType::f8e4m3, out, data.values.data() + row * columns_, count * columns_);
  }
  for (int64_t i = 0; i < count; i++) {
    const float* scales = data.scales.data() + first_scale(data, row + i);
    for (int64_t column = 0; column < columns_; column++) out[i * columns_ + column] *= scales[data.groups[column]];
  }
}

std::optional<PackedWeight::Format> PackedWeight::exact_format() const {
  if (!exact_format_) exact_format_ = find_exact_format();
  return *exact_format_;
}

std::optional<PackedWeight::Format> PackedWeight::find_exact_format() const {
  constexpr int64_t kLargest = 128;  // group size of WeightView
  const int64_t size = quantization_.group_size;
  if (!has_integers() || quantization_.block_rows > 0 || parts_.scales.shape.size() != 2) return std::nullopt;
  if (size != 0 && size != 32 && size != 64 && size != kLargest) return std::nullopt;
  if (parts_.scales.dtype != "BF16" && parts_.scales.dtype != "F16") return std::nullopt;

  Data data;
  read_groups(data);
  for (int64_t c = 0; c < columns_; c++) {
    if (data.groups[c] != (size == 0 ? 0 : c / size)) return std::nullopt;
  }
  data.scales.resize(rows_ * num_groups());  // read_zeros makes as many
  read_zeros(data);
  int least_zero = 0, largest_zero = 0;
  if (!data.zeros.empty()) {
    const auto [least, largest] = std::minmax_element(data.zeros.begin(), data.zeros.end());
    least_zero = *least;
    largest_zero = *largest;
  }
  const int count = 1 << quantization_.bits;
  const bool unsigned_fields = quantization_.method != Quantization::compressed;
  const int least = (unsigned_fields ? 0 : -count / 2) - largest_zero;
  const int largest = (unsigned_fields ? count - 1 : count / 2 - 1) - least_zero;
  if (least < -128 || largest > 127) return std::nullopt;
  const DType scale_dtype = parts_.scales.dtype == "F16" ? DType::f16 : DType::bf16;
  return Format{least >= -8 && largest <= 7 ? DType::i4 : DType::i8, size == 0 ? kLargest : size, scale_dtype};
}

void PackedWeight::read_exact(uint8_t* integers, uint16_t* scales, int64_t row) const {
  const Format format = exact_format().value();
  const int64_t row_bytes = weight_row_bytes(format.dtype, columns_);
  // Padding has the integer 0, which i4 stores as 8.
  memset(integers, format.dtype == DType::i4 ? 0x88 : 0, row_bytes);
  visit_integers(data(), row, 1, [&](int64_t, int64_t column, int value) {
    if (format.dtype == DType::i8) {
      integers[column] = static_cast<uint8_t>(value);
      return;
    }
    // Element 2 k + h of a word is at bit 16 h + 4 k.
    const int64_t bit = 16 * (column % 2) + 4 * (column % 8 / 2);
    uint8_t& byte = integers[column / 8 * 4 + bit / 8];
    byte = static_cast<uint8_t>((byte & ~(15 << bit % 8)) | (value + 8) << bit % 8);
  });
  const int64_t groups = weight_row_groups(columns_, format.group_size), stored_groups = num_groups();
  for (int64_t g = 0; g < groups; g++) {
    const float scale = data().scales[row * stored_groups + (stored_groups == 1 ? 0 : g)];
    convert_from_f32(format.scale_dtype, scales + g, &scale, 1);
  }
}

void PackedWeight::read(float* out, int64_t first, int64_t count) const {
  const int64_t row = first / columns_, end = divide_up(first + count, columns_);
  if (first % columns_ == 0 && count % columns_ == 0) return decode(data(), out, row, end - row);
  std::vector<float> rows((end - row) * columns_);
  decode(data(), rows.data(), row, end - row);
  std::copy_n(rows.data() + first % columns_, count, out);
}

}  // namespace diffqkv
