#include "backend/check.h"

#include <cmath>

#include "backend/error.h"

namespace diffqkv {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    if (axis > 0) text += ", ";
    text += std::to_string(shape[axis]);
  }
  return text + "]";
}

void check_sample_row(const SampleRow& row) {
  if (!(row.temperature >= 0) || std::isinf(row.temperature)) {
    fail(ErrorCode::invalid_argument, "sample: temperature is %g; it must be finite and at least 0", row.temperature);
  }
  if (row.top_k < 0)
    fail(ErrorCode::invalid_argument, "sample: topK is %lld; it must be at least 0 (0 keeps all tokens)",
         static_cast<long long>(row.top_k));
  if (!(row.top_p >= 0 && row.top_p <= 1))
    fail(ErrorCode::invalid_argument, "sample: topP is %g; it must be from 0 to 1", row.top_p);
  if (!(row.min_p >= 0 && row.min_p <= 1))
    fail(ErrorCode::invalid_argument, "sample: minP is %g; it must be from 0 to 1", row.min_p);
  if (!(row.repetition_penalty > 0) || std::isinf(row.repetition_penalty)) {
    fail(ErrorCode::invalid_argument, "sample: repetitionPenalty is %g; it must be finite and more than 0 (1 is none)",
         row.repetition_penalty);
  }
}

}  // namespace diffqkv
