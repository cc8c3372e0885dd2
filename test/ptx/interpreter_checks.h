// The checks of the interpreter, and how they run a few lines of PTX.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <string>
#include <vector>

#include "check.h"

namespace diffqkv::ptx {

// Instructions against their definition in the PTX ISA, written another way than in the interpreter: those of a lane, and
// those of a warp; and what must be a fault.
std::vector<check::Check> instruction_checks();
std::vector<check::Check> warp_checks();
std::vector<check::Check> fault_checks();

using Words = std::vector<uint32_t>;

struct Run {
  unsigned threads = 32, blocks = 1;
  size_t shared_bytes = 0;
  uint64_t seed = 0;
};

// Runs a body as an entry that has registers of all kinds (%p1, %rs1, %r1, %f1, %rd1, ...), dynamic shared memory `shared`
// and one parameter, the address of `memory`. When the body begins %rd1 is that address, %r1 the thread, and %rd2 the
// address of the thread's own words, which are `stride` bytes apart. Returns the fault, or nothing.
std::string execute(const std::string& body, Words* memory, const Run& how = {}, int stride = 4);

// The text with `value` for each `name`.
std::string with(std::string text, const std::string& name, const std::string& value);

inline float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }
// By the conversions of csrc/backend.
float f16_value(uint32_t bits);
float bf16_value(uint32_t bits);

}  // namespace diffqkv::ptx
