// The emulation's side of device_check.
#include <cstdio>
#include <cstdlib>

#include "calls/memory.h"
#include "check.h"
#include "wrappers.h"

namespace diffqkv::check {

std::vector<uint32_t> emulated_output(size_t wrapper, const std::vector<uint32_t>& in) {
  const emulated::Wrapper chosen = emulated::wrappers()[wrapper];
  emulated::Memory<uint32_t> from(in), to(in.size() / emulated::kIn * emulated::kOut);
  const std::string wrong = run(chosen.name, static_cast<unsigned>(in.size() / (32 * emulated::kIn)), 32, 512,
                                chosen.kernel, from.data(), to.data());
  if (!wrong.empty()) {
    std::fprintf(stderr, "device_check: the emulation says: %s\n", wrong.c_str());
    std::exit(2);
  }
  return to.values();
}

}  // namespace diffqkv::check
