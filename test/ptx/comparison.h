// Compares what an operator left in its tensors in two runs, by the rules of test/support/compare.ts.
#pragma once

#include <string>
#include <vector>

#include "calls/call.h"

namespace diffqkv::ptx {

// The bytes of each tensor of a call.
using Contents = std::vector<std::vector<uint8_t>>;
Contents contents_of(const emulated::Call& call);

// Nothing where they agree, else what differs. A tensor that is no output must have the same bits.
std::string difference(const emulated::Call& call, const Contents& actual, const Contents& expected);

}  // namespace diffqkv::ptx
