// What tells one model from another with the same shape.
#pragma once

#include <cstdint>
#include <vector>

#include "model/model.h"

namespace diffqkv {

// The bytes to hash for the model's fingerprint: a text of the settings that the weights do not show,
// then the size and samples of each weight and table of RoPE in device memory. The samples are all
// bytes up to 4 KiB, else 8 evenly spaced pieces of 512 bytes. Models that differ only in other bytes
// have the same fingerprint. Executor thread only.
std::vector<uint8_t> fingerprint_material(const Model& model);

}  // namespace diffqkv
