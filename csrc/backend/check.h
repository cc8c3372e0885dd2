// Checks and texts that several parts of the product share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/ops.h"

namespace diffqkv {

std::string shape_text(const std::vector<int64_t>& shape);  // "[2, 16, 64]"

// Checks the sampling options. Throws ERR_INVALID_ARGUMENT with value, limit and remedy. The device
// checks the history and the logits, which are in its memory.
void check_sample(const SampleParams& p);

}  // namespace diffqkv
