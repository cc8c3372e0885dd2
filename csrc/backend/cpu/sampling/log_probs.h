// The log_probs operator.
#pragma once

#include "backend/ops.h"

namespace diffqkv::cpu {

void log_probs(const LogProbsParams& p);

}  // namespace diffqkv::cpu
