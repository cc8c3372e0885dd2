// Where device memory is: what global accesses must lie in.
#pragma once

#include <cstdint>
#include <string>

namespace diffqkv::emulated {

struct Range {
  uintptr_t begin, end;
};

// The allocation that [begin, end) lies in, or an empty one.
Range find_memory(uintptr_t begin, uintptr_t end);
// In words, where an address lies that is in none.
std::string describe_address(uintptr_t address);

}  // namespace diffqkv::emulated
