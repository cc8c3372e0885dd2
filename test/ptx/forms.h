// The instructions that are known: for each full name, operand types and what executes it.
#pragma once

#include <string_view>

#include "program.h"

namespace diffqkv::ptx {

// Operands, in order, a letter each: p predicate, h 16 bits, w 32 bits, d 64 bits; a an address in shared memory, g one
// in global memory, m a mask of lanes. To the handler of a collective operation the mask comes first, all lanes if the text has none.
struct Form {
  const char* operands = nullptr;
  Handler handler = nullptr;
  Flow flow = Flow::next;
  size_t destinations = 1;  // the first of the operands
};

// Null if it is not known.
const Form* arithmetic_form(std::string_view name);
const Form* warp_form(std::string_view name);
const Form* bulk_form(std::string_view name);

// ld, st, atom, red, cp.async and their waits. `handler` stays null if the name is not known.
struct MemoryInstruction {
  Handler handler = nullptr;
  MemoryForm form;
  const char* operands = "";  // beside the address and the elements: letters as above
  bool is_store = false;
};
MemoryInstruction memory_instruction(std::string_view name);

}  // namespace diffqkv::ptx
