// PTX as it is executed: modules, their entries (kernels), and the decoded instructions of an entry.
//
// A register of a warp is a row: 32 words for types of up to 32 bits, 32 double words for 64 bits. 16-bit values are
// zero-extended. Constants and special registers are rows too, so that every operand of an instruction is a row, and an
// instruction is one loop over the lanes. A predicate is one word, a bit for each lane.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace diffqkv::ptx {

// What is wrong with the PTX or with what it does. The message says where.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Warp;
struct Instruction;

// Executes an instruction for the lanes whose bits are set.
using Handler = void (*)(Warp& warp, const Instruction& instruction, const uint32_t* operands, uint32_t lanes);

enum class Flow : uint8_t {
  next,        // goes on with the next instruction
  memory,      // as `next`; other threads may come between
  branch,      // to `immediate`
  exit,        // the thread ends
  collective,  // waits for the lanes of a mask; the handler then runs once, for all of them
  barrier,     // waits for other warps
};

enum class Space : uint8_t { generic, global, shared, local, parameter };

// What ld, st, atom and cp.async access. Elements: `count` of them, `bytes` each.
struct MemoryForm {
  Space space = Space::generic;
  uint8_t bytes = 4, count = 1;
  bool is_signed = false;          // a load extends the sign
  bool read_only = false;          // ld.global.nc
  bool address_is_64_bits = true;  // of the address's row
  uint8_t register_bytes[4] = {};  // of the elements
  uint32_t used = ~0u;             // ld: the bytes that are needed, a bit each; the others need not have been written
};

constexpr int32_t kNoGuard = -1;

struct Instruction {
  Handler handler = nullptr;
  uint32_t operands = 0;     // the first of them, in Program::operands
  int32_t guard = kNoGuard;  // a predicate, doubled, plus 1 if it is negated
  Flow flow = Flow::next;
  int32_t line = 0;       // of the file
  uint32_t form = 0;      // in Program::forms
  int64_t immediate = 0;  // branch: its target; memory: what is added to the address
};

// A row that holds the same value in all lanes.
struct Constant {
  uint32_t row;
  uint64_t value;
  bool is_64_bits;
};

enum class Special : uint8_t {
  tid_x,
  tid_y,
  tid_z,
  ntid_x,
  ntid_y,
  ntid_z,
  ctaid_x,
  ctaid_y,
  ctaid_z,
  nctaid_x,
  nctaid_y,
  nctaid_z,
  laneid
};
struct SpecialRow {
  Special special;
  uint32_t row;
};

// The decoded body of an entry. Operands that are rows are offsets in words.
struct Program {
  std::vector<Instruction> code;
  uint8_t* executed = nullptr;  // of each instruction, whether a thread has executed it; null: nobody asks
  std::vector<uint32_t> operands;
  std::vector<MemoryForm> forms;
  std::vector<Constant> constants;
  std::vector<std::pair<uint32_t, uint32_t>> constant_predicates;  // index, bits
  std::vector<SpecialRow> specials;
  uint32_t num_words = 0;  // of a warp's rows
  uint32_t num_predicates = 0;
  uint32_t local_bytes = 0;  // of a thread
  // It has griddepcontrol.wait: before that no thread may write global memory, or read of it but by ld.global.nc and
  // cp.async, and none may end.
  bool waits_for_previous = false;
};

struct Parameter {
  size_t offset, bytes, alignment;
};

struct Module;

struct Entry {
  std::string name;  // as it is in the file, mangled
  const Module* module = nullptr;
  std::vector<Parameter> parameters;
  std::map<std::string, size_t, std::less<>> parameter_offsets;
  int max_threads = 1024;
  std::string_view body;  // between its braces
  int line = 0;           // where the body begins
  std::unique_ptr<Program> program;

  // Decodes the body when it is first asked for. Throws Fault on what is not known.
  Program& decoded();
};

// One file. There are no functions other than entries, and no memory but parameters, dynamic shared memory and the
// threads' own stacks: what else is declared is a fault.
struct Module {
  std::string file, text;  // text: comments are blanks
  std::string target;      // "sm_90a"
  std::vector<Entry> entries;
  std::set<std::string, std::less<>> shared_symbols;  // names of the dynamic shared memory
};

// Reads a file. Throws Fault.
std::unique_ptr<Module> read_module(const std::string& file);
std::unique_ptr<Module> parse_module(const std::string& file, std::string text);

// Where things are in their state spaces. A generic address lies in a window, which its upper byte tells, or is global.
// The lower half of a generic address is none of a state space; the parameter and local spaces do not begin at 0; and
// dynamic shared memory is no better aligned than it asks for.
constexpr uint64_t kWindowMask = uint64_t{0xff} << 56;
constexpr uint64_t kSharedWindow = 0x01000000'5b000000, kLocalWindow = 0x02000000'5c000000,
                   kParameterWindow = 0x03000000'5d000000;
constexpr uint32_t kSharedBase = 1024 + 128, kLocalBase = 64, kParameterBase = 512;

}  // namespace diffqkv::ptx
