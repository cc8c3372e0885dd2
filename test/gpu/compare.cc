#include "compare.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace diffqkv::driver {
namespace {

std::string element_text(const std::vector<float>& actual, const std::vector<float>& expected, size_t i) {
  char text[100];
  std::snprintf(text, sizeof(text), "[%zu] = %.9g, expected %.9g", i, static_cast<double>(actual[i]),
                static_cast<double>(expected[i]));
  return text;
}

std::string tolerance_json(const char* name, const Tolerance& tolerance) {
  char text[200];
  std::snprintf(text, sizeof(text), "\"%s\": {\"abs\": %.17g, \"rel\": %.17g, \"of\": \"%s\", \"cosine\": %.17g}", name,
                tolerance.abs, tolerance.rel, tolerance.of_row ? "row" : "element", tolerance.cosine);
  return text;
}

// NaN for NaN, an infinity for the same infinity.
bool same_special(float a, float e) { return std::isnan(e) ? std::isnan(a) : a == e; }

}  // namespace

Tolerance tolerance_of(DType dtype) {
  switch (dtype) {
    case DType::bf16: return {8e-4, 2.0 / 128, false, 5e-6};
    case DType::f16: return {1e-4, 2.0 / 1024, false, 5e-6 / 64};
    default: return {1e-36, 1e-5, true, 1e-10};
  }
}

std::string tolerances_json() {
  std::string text = "{";
  text += tolerance_json("bf16", tolerance_of(DType::bf16)) + ", ";
  text += tolerance_json("f16", tolerance_of(DType::f16)) + ", ";
  text += tolerance_json("f32", tolerance_of(DType::f32)) + ", ";
  text += tolerance_json("f32Elementwise", kF32Elementwise) + ", ";
  text += tolerance_json("lse", kLse) + "}";
  return text;
}

Difference difference(const std::vector<float>& actual, const std::vector<float>& expected, const Tolerance& tolerance,
                      int64_t row_length) {
  Difference result;
  const size_t row_size = static_cast<size_t>(row_length);
  if (actual.size() != expected.size() || row_size == 0 || expected.size() % row_size != 0) {
    result.wrong = std::to_string(actual.size()) + " elements, expected " + std::to_string(expected.size()) +
                   " in rows of " + std::to_string(row_size);
    return result;
  }
  size_t num_wrong = 0, first = 0, worst = 0;
  double dot = 0, actual_squares = 0, expected_squares = 0;
  for (size_t row = 0; row < expected.size(); row += row_size) {
    double row_max = 0;
    for (size_t i = row; tolerance.of_row && i < row + row_size; ++i) {
      const double magnitude = std::fabs(static_cast<double>(expected[i]));
      if (std::isfinite(magnitude)) row_max = std::max(row_max, magnitude);
    }
    for (size_t i = row; i < row + row_size; ++i) {
      const double a = static_cast<double>(actual[i]), e = static_cast<double>(expected[i]);
      bool close;
      if (std::isfinite(e)) {
        const double error = std::fabs(a - e);  // NaN if a is NaN, which no limit admits
        close = error <= tolerance.abs || error <= tolerance.rel * (tolerance.of_row ? row_max : std::fabs(e));
        if (error > result.largest_error) {
          worst = i;
          result.largest_error = error;
        }
        dot += a * e;
        actual_squares += a * a;
        expected_squares += e * e;
      } else {
        close = same_special(actual[i], expected[i]);
      }
      if (!close && num_wrong++ == 0) first = i;
    }
  }
  const double squares = actual_squares + expected_squares;
  result.cosine = squares <= tolerance.abs * tolerance.abs ? 0 : 1 - 2 * dot / squares;
  if (num_wrong > 0) {
    result.wrong = std::to_string(num_wrong) + " of " + std::to_string(expected.size()) + " elements differ; first " +
                   element_text(actual, expected, first) + "; worst " + element_text(actual, expected, worst);
  } else if (!(result.cosine <= tolerance.cosine)) {
    char text[100];
    std::snprintf(text, sizeof(text), "cosine difference %.3g, limit %.3g; worst ", result.cosine, tolerance.cosine);
    result.wrong = text + element_text(actual, expected, worst);
  }
  return result;
}

std::string byte_difference(const std::vector<uint8_t>& actual, const std::vector<uint8_t>& expected) {
  if (actual.size() != expected.size())
    return std::to_string(actual.size()) + " bytes, expected " + std::to_string(expected.size());
  size_t num_wrong = 0, first = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    if (actual[i] != expected[i] && num_wrong++ == 0) first = i;
  }
  if (num_wrong == 0) return "";
  char text[120];
  std::snprintf(text, sizeof(text), "%zu of %zu bytes differ; first [%zu] = 0x%02x, expected 0x%02x", num_wrong,
                actual.size(), first, actual[first], expected[first]);
  return text;
}

}  // namespace diffqkv::driver
