#include "comparison.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

namespace diffqkv::ptx {
namespace {

using emulated::Comparison;
using emulated::Output;

struct Tolerance {
  double abs, rel;
  bool of_row;
  double cosine;
};

Tolerance tolerance_of(const Output& output) {
  if (output.comparison == Comparison::lse) return {1e-6, 8.0 / 65536, false, 5e-6};
  switch (output.coarsest_dtype) {
    case DType::bf16: return {8e-4, 2.0 / 128, false, 5e-6};
    case DType::f16: return {1e-4, 2.0 / 1024, false, 5e-6 / 64};
    default: return {1e-36, 1e-5, true, 1e-10};
  }
}

std::string told(size_t i, double actual, double expected) {
  return "element " + std::to_string(i) + " is " + std::to_string(actual) + ", expected " + std::to_string(expected);
}

std::string value_difference(const std::vector<float>& actual, const std::vector<float>& expected,
                             const Tolerance& tolerance, size_t row_length) {
  double dot = 0, actual_squares = 0, expected_squares = 0;
  for (size_t row = 0; row < expected.size(); row += row_length) {
    const size_t end = std::min(row + row_length, expected.size());
    double largest = 0;
    for (size_t i = row; i < end; ++i)
      if (std::isfinite(expected[i])) largest = std::fmax(largest, std::fabs(expected[i]));
    for (size_t i = row; i < end; ++i) {
      const double a = actual[i], e = expected[i];
      if (!std::isfinite(e)) {
        if (!(a == e || (a != a && e != e))) return told(i, a, e);
        continue;
      }
      const double error = std::fabs(a - e);
      if (!(error <= tolerance.abs || error <= tolerance.rel * (tolerance.of_row ? largest : std::fabs(e))))
        return told(i, a, e);
      dot += a * e;
      actual_squares += a * a;
      expected_squares += e * e;
    }
  }
  const double squares = actual_squares + expected_squares;
  const double cosine = squares <= tolerance.abs * tolerance.abs ? 0 : 1 - 2 * dot / squares;
  return cosine <= tolerance.cosine ? "" : "cosine difference " + std::to_string(cosine);
}

// The same bits, but for which NaN a number of f32 is.
std::string bit_difference(DType dtype, const std::vector<uint8_t>& actual, const std::vector<uint8_t>& expected) {
  const size_t size = dtype == DType::f32 ? 4 : 1;
  for (size_t i = 0; i < expected.size(); i += size) {
    if (std::memcmp(&actual[i], &expected[i], size) == 0) continue;
    float a = 0, e = 0;
    if (size == 4) {
      std::memcpy(&a, &actual[i], 4);
      std::memcpy(&e, &expected[i], 4);
    }
    if (!(a != a && e != e))
      return "byte " + std::to_string(i) + " is " + std::to_string(actual[i]) + ", expected " +
             std::to_string(expected[i]);
  }
  return "";
}

// Codes may differ by one step in a hundredth of the bytes.
std::string pool_difference(const std::vector<uint8_t>& actual, const std::vector<uint8_t>& expected) {
  size_t different = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const int step = static_cast<int8_t>(actual[i] - expected[i]);
    if (std::abs(step) > 1) return told(i, actual[i], expected[i]);
    different += step != 0;
  }
  return different <= expected.size() / 100 ? "" : std::to_string(different) + " bytes differ by a step";
}

}  // namespace

Contents contents_of(const emulated::Call& call) {
  Contents contents;
  for (const emulated::Tensor& tensor : call.tensors) contents.push_back(tensor.memory.values());
  return contents;
}

std::string difference(const emulated::Call& call, const Contents& actual, const Contents& expected) {
  for (size_t t = 0; t < call.tensors.size(); ++t) {
    if (actual[t] == expected[t]) continue;
    const emulated::Tensor& tensor = call.tensors[t];
    const auto output = std::find_if(call.outputs.begin(), call.outputs.end(),
                                     [&](const Output& candidate) { return candidate.tensor == t; });
    if (output == call.outputs.end()) return tensor.name + ", an input, has changed";
    std::string wrong;
    if (output->comparison == Comparison::bits) {
      wrong = bit_difference(tensor.dtype, actual[t], expected[t]);
    } else if (output->comparison == Comparison::quantized_pool) {
      wrong = pool_difference(actual[t], expected[t]);
    } else {
      wrong = value_difference(emulated::floats_of_bytes(tensor.dtype, actual[t]),
                               emulated::floats_of_bytes(tensor.dtype, expected[t]), tolerance_of(*output),
                               static_cast<size_t>(output->row_length));
    }
    if (!wrong.empty()) return tensor.name + ": " + wrong;
  }
  return "";
}

}  // namespace diffqkv::ptx
