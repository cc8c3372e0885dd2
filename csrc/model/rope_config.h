// RoPE as config.json gives it: the angular frequencies of the pairs, for each kind of layer.
#pragma once

#include "model/config.h"
#include "model/config_fields.h"

namespace diffqkv {

// Sets the fields of Config about RoPE, except LayerConfig::rope, and multiplies score_scale by the
// factor of MLA with scaled RoPE. Needs the head sizes, max_position_embeddings and score_scale. For
// dynamic RoPE, multiplies max_position_embeddings by its factor. ropes[0] is for layers without a window; layers with one have ropes[1],
// if there is one.
void read_rope(const Fields& fields, Config& config);

// The table of dynamic RoPE for a context of `length` tokens, longer than original_context: that of
// the base rope_theta * (factor * length / original_context - (factor - 1))^(d / (d - 2)), with d =
// rotary_dim. Source: modeling_rope_utils of transformers.
RopeTable dynamic_rope(const Config& config, int64_t length);

}  // namespace diffqkv
