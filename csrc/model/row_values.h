// What an item of a batch gets of a pass with a RowOutput.
#pragma once

#include <cstdint>
#include <vector>

#include "model/model.h"

namespace diffqkv {

// Allocates the buffers of RowOutput::log_probs, if they are not there: ERR_OUT_OF_MEMORY.
void demand_row_buffers(Model& model);

// Adds the values of a pass of num_tokens tokens to those of earlier chunks. log_probs: one for each
// token, appended. last_hidden: the state [hidden_size]. all_hidden: the sum of the states
// [hidden_size]. Waits for the pass. Throws ERR_UNSUPPORTED_MODEL if a value is NaN, or a state is not
// finite.
void add_row_values(Model& model, RowOutput output, int64_t num_tokens, std::vector<double>& values);

}  // namespace diffqkv
