// Every operator once more, as plainly as can be: one thread for one element of the output, or for one row where a row is
// one result; loops over float32; no shared memory, no tensor cores.
#pragma once

#include "calls/call.h"

namespace diffqkv::cuda {

// Writes what the operator should, and waits. Sampling runs on the host.
void reference(const OperatorParams& params, Context& context);

// What kv_append quantizes: the new K rows after RoPE, [num_tokens, num_k_heads, head_dim_qk].
std::vector<float> rotated_keys(const KvAppendParams& p, Context& context);

}  // namespace diffqkv::cuda
