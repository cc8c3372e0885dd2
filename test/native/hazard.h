// What the checks of hazards share. For each hazard there is a small kernel that has it, and the same kernel without it:
// the emulation must find the first in one of the seeds, and nothing in the second in any of them.
#pragma once

#include <string>
#include <vector>

#include "calls/memory.h"
#include "check.h"

namespace diffqkv::check {

using namespace emulated;

struct Shape {
  unsigned blocks = 1, threads = 32;
  size_t shared_bytes = 0;
  size_t words = 0;  // of `words`, which start at 0
};

// The memory of one run. All is device memory; `out` starts with all bits set.
struct HazardMemory {
  const uint32_t* in;
  uint32_t *out, *words;
};

// Runs `kernel(memory, arguments ...)` with each of the seeds. Returns "" if the output is `expected` in all of them, else
// what is wrong in the first that differs.
template <typename... Parameters, typename... Arguments>
std::string in_all_seeds(const std::vector<uint32_t>& expected, const Shape& shape,
                         void (*kernel)(HazardMemory, Parameters...), const std::vector<uint32_t>& in,
                         const Arguments&... arguments) {
  constexpr int kSeeds = 50;
  std::string wrong;
  for (int seed = 0; seed <= kSeeds && wrong.empty(); ++seed) {
    settings().seed = static_cast<uint64_t>(seed);
    Memory<uint32_t> from(in), to(expected.size()), words(std::vector<uint32_t>(shape.words, 0));
    const HazardMemory memory = {from.data(), to.data(), words.data()};
    wrong = run("kernel", shape.blocks, shape.threads, shape.shared_bytes, kernel, memory, arguments...);
    if (wrong.empty() && to.values() != expected) wrong = "wrong output with seed " + std::to_string(seed);
  }
  settings().seed = 0;
  return wrong;
}

// Collects the checks of one file.
class HazardChecks {
 public:
  void clean(const char* name, std::function<std::string()> run) {
    checks.push_back({std::string("clean: ") + name, std::move(run)});
  }
  // `as`: a part of the message that names the hazard.
  void found(const char* name, const std::string& as, std::function<std::string()> run) {
    checks.push_back({std::string("found: ") + name, [as, run = std::move(run)] {
                        const std::string wrong = run();
                        if (wrong.empty()) return std::string("the hazard was not found");
                        return wrong.find(as) == std::string::npos ? "found, but as: " + wrong : "";
                      }});
  }
  std::vector<Check> checks;
};

// 1, 2, 5, 10, ...
inline std::vector<uint32_t> squares(size_t count) {
  std::vector<uint32_t> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<uint32_t>(i * i + 1);
  return values;
}

}  // namespace diffqkv::check
