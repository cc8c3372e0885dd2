// What ptx_check runs: the calls of all operators, and more, until every kernel has run.
#pragma once

#include <string>
#include <vector>

#include "calls/call.h"

namespace diffqkv::ptx {

// What launchers plan for.
struct Shape {
  int multiprocessors = 6;
  size_t shared_bytes = 99 * 1024;
};

struct Case {
  std::string name;
  std::function<emulated::Call()> make;
  Shape shape = {};
};

std::vector<Case> all_cases();

}  // namespace diffqkv::ptx
