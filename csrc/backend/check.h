// Checks and texts that several parts of the product share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/ops.h"

namespace diffqkv {

std::string shape_text(const std::vector<int64_t>& shape);  // "[2, 16, 64]"

// Checks the sampling options of a row before it is copied to a device. Throws ERR_INVALID_ARGUMENT
// with value, limit and remedy. The device checks the history and the logits.
void check_sample_row(const SampleRow& row);

}  // namespace diffqkv
