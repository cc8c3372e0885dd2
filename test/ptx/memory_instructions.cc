// ld, st, atom, red, and cp.async with its groups. The first operand is the address's row, then the elements' rows.
#include <bit>
#include <cstring>

#include "forms.h"
#include "machine.h"

namespace diffqkv::ptx {
namespace {

uint64_t address_of(const Warp& warp, const Instruction& in, const MemoryForm& form, uint32_t row, int lane) {
  const uint32_t* const base = warp.rows + row;
  const uint64_t value = form.address_is_64_bits ? reinterpret_cast<const uint64_t*>(base)[lane] : base[lane];
  return value + static_cast<uint64_t>(in.immediate);
}

// Calls f for each lane, first to last or, by chance, last to first: who writes last is not defined.
template <typename F>
void for_lanes(Warp& warp, uint32_t lanes, const F& f) {
  if (warp.block->descending()) {
    for (uint32_t left = lanes; left; left &= ~(uint32_t{1} << (31 - std::countl_zero(left))))
      f(31 - std::countl_zero(left));
  } else {
    for (uint32_t left = lanes; left; left &= left - 1) f(std::countr_zero(left));
  }
}

void load(Warp& warp, const Instruction& in, const uint32_t* o, uint32_t lanes) {
  const MemoryForm& form = warp.block->form(in);
  const uint32_t bytes = uint32_t{form.bytes} * form.count;
  for (uint32_t left = lanes; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    const unsigned char* const from = warp.block->read(warp, lane, form.space, address_of(warp, in, form, o[0], lane),
                                                       bytes, form.read_only, form.used);
    for (uint32_t i = 0; i < form.count; ++i) {
      uint64_t value = 0;
      std::memcpy(&value, from + i * form.bytes, form.bytes);
      if (form.is_signed) {
        const int shift = 64 - 8 * form.bytes;
        value = static_cast<uint64_t>(static_cast<int64_t>(value << shift) >> shift);
        if (form.register_bytes[i] < 8) value &= (uint64_t{1} << (8 * form.register_bytes[i])) - 1;
      }
      uint32_t* const row = warp.rows + o[1 + i];
      if (form.register_bytes[i] == 8) {
        reinterpret_cast<uint64_t*>(row)[lane] = value;
      } else {
        row[lane] = static_cast<uint32_t>(value);
      }
    }
  }
}

void store(Warp& warp, const Instruction& in, const uint32_t* o, uint32_t lanes) {
  const MemoryForm& form = warp.block->form(in);
  const uint32_t bytes = uint32_t{form.bytes} * form.count;
  for_lanes(warp, lanes, [&](int lane) {
    unsigned char values[16];
    for (uint32_t i = 0; i < form.count; ++i) {
      const uint32_t* const row = warp.rows + o[1 + i];
      const uint64_t value = form.register_bytes[i] == 8 ? reinterpret_cast<const uint64_t*>(row)[lane] : row[lane];
      std::memcpy(values + i * form.bytes, &value, form.bytes);
    }
    warp.block->write(warp, lane, form.space, address_of(warp, in, form, o[0], lane), bytes, values);
  });
}

// Operands: address, d, then one or two values.
template <typename Function, bool kReturns>
void atomic(Warp& warp, const Instruction& in, const uint32_t* o, uint32_t lanes) {
  const MemoryForm& form = warp.block->form(in);
  for_lanes(warp, lanes, [&](int lane) {
    unsigned char* const at = warp.block->update(warp, lane, form.space, address_of(warp, in, form, o[0], lane), 4);
    uint32_t before;
    std::memcpy(&before, at, 4);
    const uint32_t* const values = o + (kReturns ? 2 : 1);
    const uint32_t first = warp.rows[values[0] + static_cast<uint32_t>(lane)];
    const uint32_t second = warp.rows[values[1] + static_cast<uint32_t>(lane)];
    const uint32_t after = Function{}(before, first, second);
    std::memcpy(at, &after, 4);
    if (kReturns) warp.rows[o[1] + static_cast<uint32_t>(lane)] = before;
  });
}

void begin_copies(Warp& warp, const Instruction& in, const uint32_t* o, uint32_t lanes) {
  const MemoryForm& form = warp.block->form(in);
  for_lanes(warp, lanes, [&](int lane) {
    const uint32_t* const shared = warp.rows + o[0];
    const uint64_t to = form.address_is_64_bits ? reinterpret_cast<const uint64_t*>(shared)[lane] : shared[lane];
    const uint64_t from =
        reinterpret_cast<const uint64_t*>(warp.rows + o[1])[lane] + static_cast<uint64_t>(in.immediate);
    warp.block->begin_copy(warp, lane, to, from, warp.rows[o[2] + static_cast<uint32_t>(lane)],
                           warp.rows[o[3] + static_cast<uint32_t>(lane)]);
  });
}
void commit_copies(Warp& warp, const Instruction&, const uint32_t*, uint32_t lanes) {
  for_lanes(warp, lanes, [&](int lane) { warp.block->commit_copies(warp, lane); });
}
void wait_copies(Warp& warp, const Instruction&, const uint32_t* o, uint32_t lanes) {
  for_lanes(warp, lanes, [&](int lane) {
    warp.block->land_copies(warp, lane, static_cast<int>(warp.rows[o[0] + static_cast<uint32_t>(lane)]));
  });
}
void wait_all_copies(Warp& warp, const Instruction&, const uint32_t*, uint32_t lanes) {
  for_lanes(warp, lanes, [&](int lane) { warp.block->land_copies(warp, lane, -1); });
}

// ---- Names.

// The parts of a name between its dots, one after the other.
class Parts {
 public:
  explicit Parts(std::string_view name) : rest_(name) {}
  std::string_view next() {
    const size_t dot = rest_.find('.');
    const std::string_view part = rest_.substr(0, dot);
    rest_ = dot == std::string_view::npos ? std::string_view() : rest_.substr(dot + 1);
    return part;
  }
  bool ended() const { return rest_.empty(); }
  // Takes the next part if it is this one.
  bool take(std::string_view part) {
    Parts ahead = *this;
    if (ended() || ahead.next() != part) return false;
    *this = ahead;
    return true;
  }

 private:
  std::string_view rest_;
};

Space take_space(Parts* parts) {
  if (parts->take("global")) return Space::global;
  if (parts->take("shared")) return Space::shared;
  if (parts->take("local")) return Space::local;
  if (parts->take("param")) return Space::parameter;
  return Space::generic;
}

// "u32" and so on. False if it is no type that is known.
bool take_type(Parts* parts, MemoryForm* form) {
  const std::string_view type = parts->next();
  if (type.size() < 2 || std::string_view("bsuf").find(type[0]) == std::string_view::npos) return false;
  const std::string_view bits = type.substr(1);
  form->is_signed = type[0] == 's';
  form->bytes = bits == "8" ? 1 : bits == "16" ? 2 : bits == "32" ? 4 : bits == "64" ? 8 : 0;
  return form->bytes != 0 && parts->ended();
}

MemoryInstruction load_or_store(Parts parts, bool is_store) {
  MemoryInstruction instruction;
  instruction.is_store = is_store;
  MemoryForm& form = instruction.form;
  parts.take("weak");
  form.space = take_space(&parts);
  form.read_only = parts.take("nc");
  while (parts.take("L1::no_allocate") || parts.take("L2::256B") || parts.take("L2::128B") || parts.take("L2::64B")) {}
  form.count = parts.take("v2") ? 2 : parts.take("v4") ? 4 : 1;
  if (!take_type(&parts, &form) || (form.read_only && (is_store || form.space != Space::global))) return {};
  instruction.handler = is_store ? store : load;
  return instruction;
}

template <bool kReturns>
MemoryInstruction atomic_instruction(Parts parts) {
  MemoryInstruction instruction;
  MemoryForm& form = instruction.form;
  parts.take("relaxed");
  parts.take("gpu");
  form.space = take_space(&parts);
  const std::string_view operation = parts.next();
  const std::string_view type = parts.next();
  if (!parts.ended()) return {};
  instruction.operands = "w";
  const auto is = [&](std::string_view name, std::string_view types) {
    return operation == name && types.find(type) != std::string_view::npos;
  };
  const auto set = [&]<typename Function>(Function) { instruction.handler = atomic<Function, kReturns>; };
  if (is("add", "u32 s32")) set([](uint32_t x, uint32_t y, uint32_t) { return x + y; });
  if (is("exch", "b32")) set([](uint32_t, uint32_t y, uint32_t) { return y; });
  if (is("max", "u32")) set([](uint32_t x, uint32_t y, uint32_t) { return x > y ? x : y; });
  if (is("min", "u32")) set([](uint32_t x, uint32_t y, uint32_t) { return x < y ? x : y; });
  if (is("or", "b32")) set([](uint32_t x, uint32_t y, uint32_t) { return x | y; });
  if (is("and", "b32")) set([](uint32_t x, uint32_t y, uint32_t) { return x & y; });
  if (is("inc", "u32")) set([](uint32_t x, uint32_t y, uint32_t) { return x >= y ? 0 : x + 1; });
  if (is("cas", "b32")) {
    instruction.operands = "ww";
    set([](uint32_t x, uint32_t y, uint32_t z) { return x == y ? z : x; });
  }
  return instruction;
}

}  // namespace

MemoryInstruction memory_instruction(std::string_view name) {
  Parts parts(name);
  const std::string_view verb = parts.next();
  MemoryInstruction instruction;
  if (verb == "ld") return load_or_store(parts, false);
  if (verb == "st") return load_or_store(parts, true);
  if (verb == "atom") return atomic_instruction<true>(parts);
  if (verb == "red") return atomic_instruction<false>(parts);
  if (verb != "cp" || !parts.take("async")) return instruction;
  if (parts.take("commit_group") && parts.ended()) {
    instruction.handler = commit_copies;
  } else if (parts.take("wait_group") && parts.ended()) {
    instruction.handler = wait_copies;
    instruction.operands = "w";
  } else if (parts.take("wait_all") && parts.ended()) {
    instruction.handler = wait_all_copies;
  } else if ((parts.take("cg") || parts.take("ca")) && parts.take("shared") && parts.take("global")) {
    while (parts.take("L2::256B") || parts.take("L2::128B") || parts.take("L2::64B")) {}
    if (parts.ended()) instruction.handler = begin_copies;
  }
  return instruction;
}

}  // namespace diffqkv::ptx
