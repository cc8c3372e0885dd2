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

void check_sample(const SampleParams& p) {
  if (p.vocab_size <= 0) fail(ErrorCode::invalid_argument, "sample: the vocabulary is empty");
  if (!(p.temperature >= 0) || std::isinf(p.temperature)) {
    fail(ErrorCode::invalid_argument, "sample: temperature is %g; it must be finite and at least 0", p.temperature);
  }
  if (p.top_k < 0)
    fail(ErrorCode::invalid_argument, "sample: topK is %lld; it must be at least 0 (0 keeps all tokens)",
         static_cast<long long>(p.top_k));
  if (!(p.top_p >= 0 && p.top_p <= 1))
    fail(ErrorCode::invalid_argument, "sample: topP is %g; it must be from 0 to 1", p.top_p);
  if (!(p.min_p >= 0 && p.min_p <= 1))
    fail(ErrorCode::invalid_argument, "sample: minP is %g; it must be from 0 to 1", p.min_p);
  if (!(p.repetition_penalty > 0) || std::isinf(p.repetition_penalty)) {
    fail(ErrorCode::invalid_argument, "sample: repetitionPenalty is %g; it must be finite and more than 0 (1 is none)",
         p.repetition_penalty);
  }
}

}  // namespace diffqkv
