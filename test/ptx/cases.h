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

// Everything, and of that the functions of the device layer.
std::vector<Case> all_cases();
std::vector<Case> wrapper_cases();

}  // namespace diffqkv::ptx
