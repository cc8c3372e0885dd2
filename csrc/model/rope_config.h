// RoPE as config.json gives it: the angular frequencies of the pairs, for each kind of layer.
#pragma once

#include "model/config.h"
#include "model/config_fields.h"

namespace diffqkv {

// Sets the fields of Config about RoPE, except LayerConfig::rope. Needs the head sizes and
// max_position_embeddings. ropes[0] is for layers without a window; layers with one have ropes[1],
// if there is one.
void read_rope(const Fields& fields, Config& config);

}  // namespace diffqkv
