// The instructions that are known: for each full name, operand types and what executes it.
#pragma once

#include <string_view>

#include "program.h"

namespace diffqkv::ptx {

// Operands, in order, a letter each: p predicate, h 16 bits, w 32 bits, d 64 bits. For a collective operation the row of
// the mask of lanes comes first, and for a barrier its number and count, wherever the text has them.
struct Form {
  const char* operands = nullptr;
  Handler handler = nullptr;
  Flow flow = Flow::next;
  bool aligned = false;
};

// Null if it is not known.
const Form* arithmetic_form(std::string_view name);
const Form* warp_form(std::string_view name);

// ld, st, atom, red, cp.async and their waits. `handler` stays null if the name is not known.
struct MemoryInstruction {
  Handler handler = nullptr;
  MemoryForm form;
  const char* operands = "";  // beside the address and the elements: letters as above
  bool is_store = false;
};
MemoryInstruction memory_instruction(std::string_view name);

}  // namespace diffqkv::ptx
