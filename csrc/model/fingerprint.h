// What tells one model from another with the same shape.
#pragma once

#include <cstdint>
#include <vector>

#include "model/model.h"

namespace diffqkv {

// The bytes that a saved session's model is recognized by, to be hashed. They are a text of what
// config.json determines beyond the shapes, the sizes of all weights in device memory, the tables of
// RoPE, and samples of each weight: all of it up to 4 KiB, else 8 evenly spaced pieces of 512 bytes.
// So a model whose other bytes alone differ is not told apart. Executor thread only.
std::vector<uint8_t> fingerprint_material(const Model& model);

}  // namespace diffqkv
