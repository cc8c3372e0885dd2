// The comparison of test/support/compare.ts, for programs without Node: its rule and its table of limits.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/dtype.h"

namespace diffqkv::driver {

// An element is close if |actual - expected| <= abs, or <= rel * |scale|.
struct Tolerance {
  double abs, rel;
  bool of_row;    // rel refers to the largest expected magnitude of its row, else to the expected element
  double cosine;  // upper limit of 1 - 2 a.e / (a.a + e.e) over the whole tensor
};

// The row of the table for f32, f16 or bf16.
Tolerance tolerance_of(DType dtype);
constexpr Tolerance kF32Elementwise = {1e-36, 1e-5, false, 1e-10};
constexpr Tolerance kLse = {1e-6, 8.0 / 65536, false, 5e-6};

// The table as JSON, in the names of test/support/compare.ts.
std::string tolerances_json();

struct Difference {
  std::string wrong;  // empty if `actual` is close to `expected`
  double largest_error = 0;
  double cosine = 0;
};
Difference difference(const std::vector<float>& actual, const std::vector<float>& expected, const Tolerance& tolerance,
                      int64_t row_length);

// Empty if the bytes are equal, else how many differ and where.
std::string byte_difference(const std::vector<uint8_t>& actual, const std::vector<uint8_t>& expected);

}  // namespace diffqkv::driver
