// A decode step that a GPU computes before anyone has asked for it: while JavaScript handles the
// tokens of one step, the next step runs on them. It writes rows that follow those in use of caches
// that have room for them, and nothing else depends on it, so it may be dropped at any time.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"

namespace diffqkv {

struct StepAhead {
  struct Row {
    uint64_t revision = 0;  // Session::revision after the step before
    size_t item = 0;        // of the step before, which has drawn the token
    int32_t token = -1;     // that it is computed on, once the host knows it
    SampleRow sampling;     // without the history
  };
  std::vector<Row> rows;
  int slot = 0;                       // of Workspace::sampled
  std::unique_ptr<Download> sampled;  // of that slot
};

}  // namespace diffqkv
