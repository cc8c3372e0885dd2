// What ptx_check runs: the calls of all operators, and more, until every kernel has run and nearly all of its code.
#pragma once

#include <string>
#include <vector>

#include "calls/call.h"

namespace diffqkv::ptx {

// A GPU as launchers plan for it.
struct Shape {
  int multiprocessors = 6;
  size_t shared_bytes = 99 * 1024;
};

struct Case {
  std::string name;
  std::function<emulated::Call()> make;
  Shape shape = {};
  bool reports = false;  // the kernel must find an argument in device memory to be wrong
};

std::vector<Case> all_cases();

// Of those:
std::vector<Case> device_layer_cases();  // a kernel for each function of the device layer
std::vector<Case> attention_cases();
std::vector<Case> linear_cases();
std::vector<Case> other_cases();

}  // namespace diffqkv::ptx
