#include "comparison.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "compare.h"

namespace diffqkv::ptx {
namespace {

using emulated::Comparison;
using emulated::Output;
using Bytes = std::vector<uint8_t>;

// The same bits, but for which NaN a number of f32 is: nobody defines that.
std::string bit_difference(DType dtype, Bytes actual, const Bytes& expected) {
  for (size_t i = 0; dtype == DType::f32 && i + 4 <= expected.size() && i + 4 <= actual.size(); i += 4) {
    float a, e;
    std::memcpy(&a, &actual[i], 4);
    std::memcpy(&e, &expected[i], 4);
    if (a != a && e != e) std::memcpy(&actual[i], &expected[i], 4);
  }
  return driver::byte_difference(actual, expected);
}

// Codes may differ by one step in a hundredth of the bytes that the call writes.
std::string pool_difference(const KvAppendParams& p, const Bytes& actual, const Bytes& expected) {
  const size_t written = static_cast<size_t>(p.num_tokens * p.k_cache.num_heads * p.k_cache.head_dim);
  size_t different = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const int step = static_cast<int8_t>(actual[i] - expected[i]);
    if (std::abs(step) > 1) {
      return "byte " + std::to_string(i) + " is " + std::to_string(actual[i]) + ", expected " +
             std::to_string(expected[i]);
    }
    different += step != 0;
  }
  return different <= written / 100 ? "" : std::to_string(different) + " bytes differ by a step";
}

driver::Tolerance tolerance_of(const emulated::Call& call, const Output& output) {
  if (output.comparison == Comparison::lse) return driver::kLse;
  const bool elementwise = std::holds_alternative<GatedActivationParams>(call.params);
  return elementwise && output.coarsest_dtype == DType::f32 ? driver::kF32Elementwise
                                                            : driver::tolerance_of(output.coarsest_dtype);
}

std::string output_difference(const emulated::Call& call, const Output& output, const Bytes& actual,
                              const Bytes& expected) {
  const DType dtype = call.tensors[output.tensor].dtype;
  if (output.comparison == Comparison::bits) return bit_difference(dtype, actual, expected);
  if (output.comparison == Comparison::quantized_pool) {
    return pool_difference(std::get<KvAppendParams>(call.params), actual, expected);
  }
  return driver::difference(emulated::floats_of_bytes(dtype, actual), emulated::floats_of_bytes(dtype, expected),
                            tolerance_of(call, output), output.row_length)
      .wrong;
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
    const std::string wrong = output_difference(call, *output, actual[t], expected[t]);
    if (!wrong.empty()) return tensor.name + ": " + wrong;
  }
  return "";
}

}  // namespace diffqkv::ptx
