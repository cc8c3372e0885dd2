// Runs all cases, as C++ and from PTX, in several processes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace diffqkv::ptx {

struct Options {
  std::string folder;  // of the PTX files
  std::vector<std::string> architectures = {"sm_80", "sm_90a"};
  int seeds = 1;           // orders of threads for each case
  int jobs = 2;            // processes
  std::string only;        // part of the names of the cases to run
  std::string unexecuted;  // a file for the lines of PTX that no thread has executed
};

struct ArchitectureResult {
  std::string name;
  size_t kernels = 0, compared = 0;    // compared: that a case has run and found right
  size_t code = 0, code_executed = 0;  // instructions of the kernels, and how many of them some thread has executed
  uint64_t executed = 0;               // instructions that threads have executed
};

struct Result {
  size_t cases = 0;
  std::vector<ArchitectureResult> architectures;
  std::vector<std::string> failures;
  std::vector<std::string> times;  // of each case, in words
};

// Throws Fault on PTX that cannot be read.
Result run_cases(const Options& options);

}  // namespace diffqkv::ptx
