// Decodes an entry's body: registers become rows, names become handlers. What is not known is a fault that names it.
#include <cctype>
#include <cstring>
#include <optional>
#include <unordered_map>

#include "forms.h"
#include "machine.h"

namespace diffqkv::ptx {
namespace {

enum class Class : uint8_t { predicate, bits16, bits32, bits64 };

struct Register {
  Class type;
  uint32_t at;  // a row's offset in words, or a predicate's index
};

// One operand as it is written. sink: "_", which drops what is written to it.
enum class Kind : uint8_t { sink, reg, immediate, symbol, address };
struct Token {
  Kind kind = Kind::sink;
  Register reg = {};      // of an address: its base, if it has one
  bool has_base = false;  // address
  int64_t offset = 0;     // address
  std::string_view text;  // immediate, symbol
};

bool starts(std::string_view text, std::string_view with) { return text.substr(0, with.size()) == with; }
bool is_name(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
}

class Decoder {
 public:
  Decoder(const Entry& entry, Program* program) : entry_(entry), program_(*program), line_(entry.line) {}

  void decode() {
    std::string_view rest = entry_.body;
    for (;;) {
      skip(&rest);
      if (rest.empty()) break;
      if (rest[0] == '{') {
        scopes_.emplace_back();
        rest.remove_prefix(1);
      } else if (rest[0] == '}') {
        if (scopes_.size() == 1) fail("a scope that was not opened");
        scopes_.pop_back();
        rest.remove_prefix(1);
      } else if (const size_t colon = label_length(rest)) {
        labels_[std::string(rest.substr(0, colon))] = static_cast<uint32_t>(program_.code.size());
        rest.remove_prefix(colon + 1);
      } else {
        const size_t end = rest.find(';');
        if (end == std::string_view::npos) fail("a statement that does not end");
        statement(rest.substr(0, end));
        for (const char c : rest.substr(0, end)) line_ += c == '\n';
        rest.remove_prefix(end + 1);
      }
    }
    emit(Instruction{.handler = nullptr, .flow = Flow::exit, .line = line_}, {});
    for (const auto& [at, label] : branches_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) fail("a branch to " + label + ", which is not there");
      program_.code[at].immediate = found->second;
    }
  }

 private:
  [[noreturn]] void fail(const std::string& message) const {
    throw Fault(entry_.module->file + ":" + std::to_string(line_) + ": " + message);
  }
  void skip(std::string_view* rest) {
    while (!rest->empty() && std::isspace(static_cast<unsigned char>(rest->front()))) {
      line_ += rest->front() == '\n';
      rest->remove_prefix(1);
    }
  }
  static void trim(std::string_view* text) {
    while (!text->empty() && std::isspace(static_cast<unsigned char>(text->front()))) text->remove_prefix(1);
    while (!text->empty() && std::isspace(static_cast<unsigned char>(text->back()))) text->remove_suffix(1);
  }
  static std::string_view take_word(std::string_view* text) {
    trim(text);
    size_t n = 0;
    while (n < text->size() && !std::isspace(static_cast<unsigned char>((*text)[n]))) ++n;
    const std::string_view word = text->substr(0, n);
    text->remove_prefix(n);
    trim(text);
    return word;
  }
  static size_t label_length(std::string_view text) {
    size_t n = 0;
    while (n < text.size() && is_name(text[n]) && text[n] != '.') ++n;
    return n > 0 && n < text.size() && text[n] == ':' && text.substr(n, 2) != "::" ? n : 0;
  }

  // ---- Rows.

  uint32_t new_row(bool is_64_bits) {
    const uint32_t at = program_.num_words;
    program_.num_words += is_64_bits ? 2 * kLanes : kLanes;
    return at;
  }
  uint32_t constant(uint64_t value, bool is_64_bits) {
    const auto key = std::make_pair(value, is_64_bits);
    const auto found = constants_.find(key);
    if (found != constants_.end()) return found->second;
    const uint32_t row = new_row(is_64_bits);
    program_.constants.push_back({row, value, is_64_bits});
    return constants_[key] = row;
  }
  uint32_t constant_predicate(bool value) {
    uint32_t& at = value ? true_ : false_;
    if (at == ~0u) {
      at = program_.num_predicates++;
      program_.constant_predicates.emplace_back(at, value ? kAllLanes : 0);
    }
    return at;
  }
  Register new_register(Class type) {
    if (type == Class::predicate) return {type, program_.num_predicates++};
    return {type, new_row(type == Class::bits64)};
  }

  // ".reg .b32 %r<10>" or ".reg .b16 a, b"; ".local .align 4 .b8 name[16]".
  void declare(std::string_view text) {
    std::string_view type = take_word(&text);
    Class kind;
    if (type == ".pred") {
      kind = Class::predicate;
    } else if (type.size() >= 4 && type.substr(2) == "16") {
      kind = Class::bits16;
    } else if (type.size() >= 4 && type.substr(2) == "32") {
      kind = Class::bits32;
    } else if (type.size() >= 4 && type.substr(2) == "64") {
      kind = Class::bits64;
    } else {
      fail("registers of a type that is not known: " + std::string(type));
    }
    while (!text.empty()) {
      const size_t comma = text.find(',');
      std::string_view name = text.substr(0, comma);
      text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
      trim(&name);
      const size_t bracket = name.find('<');
      if (bracket == std::string_view::npos) {
        scopes_.back()[std::string(name)] = new_register(kind);
        continue;
      }
      const std::string prefix(name.substr(0, bracket));
      const int count = std::atoi(std::string(name.substr(bracket + 1)).c_str());
      for (int i = 0; i < count; ++i) scopes_.back()[prefix + std::to_string(i)] = new_register(kind);
    }
  }
  void declare_local(std::string_view text) {
    uint32_t alignment = 1;
    if (starts(text, ".align")) {
      take_word(&text);
      alignment = static_cast<uint32_t>(std::atoi(std::string(take_word(&text)).c_str()));
    }
    const size_t bracket = text.find('[');
    if (take_word(&text) != ".b8" || bracket == std::string_view::npos || alignment > kLocalBase)
      fail("local memory of a kind that is not known");
    const std::string name(text.substr(0, text.find('[')));
    const uint32_t bytes = static_cast<uint32_t>(std::atoi(std::string(text.substr(text.find('[') + 1)).c_str()));
    const uint32_t at = (program_.local_bytes + alignment - 1) / alignment * alignment;
    locals_[name] = kLocalBase + at;
    program_.local_bytes = (at + bytes + 15) / 16 * 16;
  }

  // ---- Operands.

  std::optional<Register> find_register(std::string_view name) {
    for (size_t i = scopes_.size(); i-- > 0;) {
      const auto found = scopes_[i].find(std::string(name));
      if (found != scopes_[i].end()) return found->second;
    }
    static const std::map<std::string_view, Special> specials = {
        {"%tid.x", Special::tid_x},       {"%tid.y", Special::tid_y},       {"%tid.z", Special::tid_z},
        {"%ntid.x", Special::ntid_x},     {"%ntid.y", Special::ntid_y},     {"%ntid.z", Special::ntid_z},
        {"%ctaid.x", Special::ctaid_x},   {"%ctaid.y", Special::ctaid_y},   {"%ctaid.z", Special::ctaid_z},
        {"%nctaid.x", Special::nctaid_x}, {"%nctaid.y", Special::nctaid_y}, {"%nctaid.z", Special::nctaid_z},
        {"%laneid", Special::laneid}};
    const auto special = specials.find(name);
    if (special == specials.end()) return std::nullopt;
    const uint32_t row = new_row(false);
    program_.specials.push_back({special->second, row});
    return scopes_[0][std::string(name)] = Register{Class::bits32, row};
  }

  std::optional<uint64_t> symbol(std::string_view name) const {
    const auto parameter = entry_.parameter_offsets.find(name);
    if (parameter != entry_.parameter_offsets.end()) return kParameterBase + parameter->second;
    const auto local = locals_.find(name);
    if (local != locals_.end()) return local->second;
    if (entry_.module->shared_symbols.find(name) != entry_.module->shared_symbols.end()) return kSharedBase;
    return std::nullopt;
  }

  static int64_t integer(std::string_view text) {
    const bool negative = starts(text, "-");
    const std::string digits(negative ? text.substr(1) : text);
    const uint64_t value = std::stoull(digits, nullptr, 0);
    return static_cast<int64_t>(negative ? 0 - value : value);
  }

  Token token(std::string_view text) {
    trim(&text);
    Token t;
    t.text = text;
    if (text == "_") return t;
    if (starts(text, "[")) {
      t.kind = Kind::address;
      text = text.substr(1, text.size() - 2);
      trim(&text);
      size_t n = 0;
      while (n < text.size() && is_name(text[n])) ++n;
      const std::string_view base = text.substr(0, n);
      std::string_view offset = text.substr(n);
      trim(&offset);
      if (starts(offset, "+")) offset.remove_prefix(1);
      if (!offset.empty()) t.offset = integer(offset);
      if (const auto found = find_register(base)) {
        t.reg = *found;
        t.has_base = true;
      } else if (const auto address = symbol(base)) {
        t.offset += static_cast<int64_t>(*address);
      } else {
        fail("an address that is not known: " + std::string(text));
      }
      return t;
    }
    if (std::isdigit(static_cast<unsigned char>(text[0])) || text[0] == '-') {
      t.kind = Kind::immediate;
    } else if (const auto found = find_register(text)) {
      t.kind = Kind::reg;
      t.reg = *found;
    } else if (symbol(text)) {
      t.kind = Kind::symbol;
    } else {
      fail("an operand that is not known: " + std::string(text));
    }
    return t;
  }

  // Vectors and pairs, {a, b} and p|q, come out as their elements.
  std::vector<Token> tokens(std::string_view text) {
    std::vector<Token> result;
    size_t begin = 0;
    for (size_t i = 0; i <= text.size(); ++i) {
      const bool end = i == text.size();
      if (!end && text[i] != ',' && text[i] != '{' && text[i] != '}' && text[i] != '|') continue;
      std::string_view part = text.substr(begin, i - begin);
      begin = i + 1;
      trim(&part);
      if (!part.empty()) result.push_back(token(part));
    }
    return result;
  }

  uint64_t value_of(const Token& t, char letter) const {
    if (t.kind == Kind::symbol) return *symbol(t.text);
    const bool is_float = starts(t.text, "0f") || starts(t.text, "0F"),
               is_double = starts(t.text, "0d") || starts(t.text, "0D");
    if ((is_float && letter != 'w') || (is_double && letter != 'd'))
      fail("a number of another type: " + std::string(t.text));
    const uint64_t value = is_float || is_double ? std::stoull(std::string(t.text.substr(2)), nullptr, 16)
                                                 : static_cast<uint64_t>(integer(t.text));
    return letter == 'h' ? value & 0xffff : letter == 'w' ? value & 0xffffffff : value;
  }

  static bool fits(Class type, char letter) {
    return letter == 'p'   ? type == Class::predicate
           : letter == 'd' ? type == Class::bits64
           : letter == 'w' ? type == Class::bits32
                           : type == Class::bits16;
  }
  static int width(char letter) { return letter == 'd' ? 64 : letter == 'w' ? 32 : letter == 'h' ? 16 : 1; }
  static int width(Class type) {
    return type == Class::bits64 ? 64 : type == Class::bits32 ? 32 : type == Class::bits16 ? 16 : 1;
  }

  // A source: a register of the letter's type, or, for cvt alone, a wider one.
  uint32_t source(const Token& t, char letter, bool may_be_wider = false) {
    if (t.kind == Kind::immediate || t.kind == Kind::symbol) {
      if (letter == 'p') return constant_predicate(integer(t.text) != 0);
      return constant(value_of(t, letter), letter == 'd');
    }
    if (t.kind != Kind::reg) fail("a source that is none");
    if (fits(t.reg.type, letter)) return t.reg.at;
    if (may_be_wider && letter != 'p' && width(t.reg.type) > width(letter)) {
      if (t.reg.type != Class::bits64) return t.reg.at;  // the lower bits of a word
      const uint32_t row = new_row(false);
      const Form* const low = arithmetic_form("low.b64");
      emit(Instruction{.handler = low->handler, .guard = guard_, .line = line_}, {row, t.reg.at});
      return row;
    }
    fail("a source of the wrong type");
  }
  uint32_t destination(const Token& t, char letter) {
    if (t.kind == Kind::sink)
      return new_register(letter == 'p' ? Class::predicate : letter == 'd' ? Class::bits64 : Class::bits32).at;
    if (t.kind != Kind::reg || !fits(t.reg.type, letter)) fail("a destination of the wrong type");
    return t.reg.at;
  }

  void emit(Instruction in, const std::vector<uint32_t>& operands) {
    in.operands = static_cast<uint32_t>(program_.operands.size());
    program_.operands.insert(program_.operands.end(), operands.begin(), operands.end());
    program_.code.push_back(in);
  }

  // ---- Statements.

  void statement(std::string_view text) {
    trim(&text);
    if (text.empty()) return;
    if (starts(text, ".reg")) return declare(text.substr(4).substr(text.substr(4).find_first_not_of(" \t\n")));
    if (starts(text, ".local")) return declare_local(text.substr(7));
    if (starts(text, ".pragma")) return pragma(text.substr(7));
    if (text[0] == '.') fail("a directive that is not known: " + std::string(text));
    guard_ = kNoGuard;
    if (text[0] == '@') {
      std::string_view name = take_word(&text).substr(1);
      const bool negated = starts(name, "!");
      if (negated) name.remove_prefix(1);
      const auto found = find_register(name);
      if (!found || found->type != Class::predicate) fail("a guard that is no predicate: " + std::string(name));
      guard_ = static_cast<int32_t>(found->at * 2 + negated);
    }
    const std::string_view name = take_word(&text);
    Instruction in = {.guard = guard_, .line = line_};
    if (name == "bra" || name == "bra.uni") {
      in.flow = Flow::branch;
      branches_.emplace_back(program_.code.size(), std::string(text));
      return emit(in, {});
    }
    if (name == "ret" || name == "exit") {
      in.flow = Flow::exit;
      return emit(in, {});
    }
    const bool is_move = starts(name, "mov.b");
    if (is_move && starts(text, "{")) return unpack(name, text);
    if (is_move && text.find('{') != std::string_view::npos)
      return arithmetic(in, name, *arithmetic_form("pack." + std::string(name.substr(4))), text);
    if (const Form* form = arithmetic_form(name)) return arithmetic(in, name, *form, text);
    if (name == "griddepcontrol.wait") program_.waits_for_previous = true;
    if (const Form* form = warp_form(name)) return collective(in, *form, text);
    if (const Form* form = bulk_form(name)) return collective(in, *form, text);
    const MemoryInstruction memory = memory_instruction(name);
    if (!memory.handler) fail("an instruction that is not known: " + std::string(name));
    access(in, memory, name, text);
    used_bytes_ = ~0u;
  }

  // "used_bytes_mask 4095": of what the next ld reads, 12 bytes are needed.
  void pragma(std::string_view text) {
    trim(&text);
    const std::string_view name = "\"used_bytes_mask ";
    if (starts(text, name)) {
      used_bytes_ = static_cast<uint32_t>(std::stoul(std::string(text.substr(name.size())), nullptr, 0));
    } else if (!starts(text, "\"nounroll\"")) {
      fail("a pragma that is not known: " + std::string(text));
    }
  }

  void arithmetic(Instruction in, std::string_view name, const Form& form, std::string_view text) {
    const std::vector<Token> all = tokens(text);
    if (all.size() != std::strlen(form.operands)) fail("another number of operands: " + std::string(name));
    std::vector<uint32_t> operands = {0};
    for (size_t i = 1; i < all.size(); ++i) operands.push_back(source(all[i], form.operands[i], starts(name, "cvt")));
    operands[0] = destination(all[0], form.operands[0]);
    in.handler = form.handler;
    emit(in, operands);
  }

  // mov.b64 {lo, hi}, d
  void unpack(std::string_view name, std::string_view text) {
    const std::vector<Token> all = tokens(text);
    const bool wide = name == "mov.b64";
    if (all.size() != 3 || (!wide && name != "mov.b32")) fail("a move that is not known");
    const uint32_t from = source(all[2], wide ? 'd' : 'w');
    for (size_t i = 0; i < 2; ++i) {
      const Form* const form = arithmetic_form((i == 0 ? "low" : "high") + std::string(name.substr(3)));
      const uint32_t to = destination(all[i], wide ? 'w' : 'h');
      emit(Instruction{.handler = form->handler, .guard = guard_, .line = line_}, {to, from});
    }
  }

  void collective(Instruction in, const Form& form, std::string_view text) {
    std::vector<Token> all = tokens(text);
    in.handler = form.handler;
    in.flow = form.flow;
    if (form.flow == Flow::barrier) {
      if (all.empty() || all.size() > 2) fail("a barrier with another number of operands");
      return emit(in, {source(all[0], 'w'), all.size() == 2 ? source(all[1], 'w') : constant(0, false)});
    }
    const std::string_view letters = form.operands;
    if (form.destinations == 2 && all.size() + 1 == letters.size())
      all.insert(all.begin() + 1, Token{});  // shfl without its predicate
    if (all.size() != letters.size()) fail("another number of operands");
    std::vector<uint32_t> operands;
    if (form.flow == Flow::collective) operands.push_back(constant(kAllLanes, false));
    for (size_t i = 0; i < all.size(); ++i) {
      if (letters[i] == 'm') {
        operands[0] = source(all[i], 'w');
      } else if (letters[i] == 'a') {
        if (all[i].kind != Kind::address) fail("expected an address");
        if (form.flow == Flow::memory && all[i].offset != 0) fail("an address with an offset");
        in.immediate = all[i].offset;
        if (all[i].has_base && all[i].reg.type != Class::bits32) fail("an address of another size");
        operands.push_back(all[i].has_base ? all[i].reg.at : constant(0, false));
      } else if (letters[i] == 'g') {
        if (all[i].kind != Kind::address || !all[i].has_base || all[i].reg.type != Class::bits64 || all[i].offset != 0)
          fail("expected an address of 64 bits without an offset");
        operands.push_back(all[i].reg.at);
      } else {
        operands.push_back(i < form.destinations ? destination(all[i], letters[i]) : source(all[i], letters[i]));
      }
    }
    emit(in, operands);
  }

  uint32_t base_row(const Token& t, MemoryForm* form) {
    if (t.kind != Kind::address) fail("expected an address");
    if (!t.has_base) return constant(0, true);
    if (t.reg.type != Class::bits64 && t.reg.type != Class::bits32) fail("an address of another size");
    form->address_is_64_bits = t.reg.type == Class::bits64;
    return t.reg.at;
  }

  void access(Instruction in, const MemoryInstruction& memory, std::string_view name, std::string_view text) {
    const std::vector<Token> all = tokens(text);
    MemoryForm form = memory.form;
    std::vector<uint32_t> operands;
    in.handler = memory.handler;
    in.flow = Flow::memory;
    if (starts(name, "cp.async")) {
      if (all.size() < 3) {
        for (const Token& t : all) operands.push_back(source(t, 'w'));
        if (operands.size() != std::strlen(memory.operands)) fail("another number of operands");
      } else {
        const int64_t bytes = all[2].kind == Kind::immediate ? integer(all[2].text) : 0;
        if (bytes != 16 && !(name.find(".ca.") != std::string_view::npos && (bytes == 4 || bytes == 8)))
          fail("cp.async of a number of bytes that it cannot copy");
        if (all.size() > 4) fail("another number of operands");
        MemoryForm global;
        operands.push_back(base_row(all[0], &form));
        if (all[0].offset != 0) fail("cp.async to an address with an offset");
        operands.push_back(base_row(all[1], &global));
        if (!global.address_is_64_bits) fail("an address of another size");
        in.immediate = all[1].offset;
        operands.push_back(constant(static_cast<uint64_t>(bytes), false));
        operands.push_back(source(all.size() == 4 ? all[3] : all[2], 'w'));
      }
    } else if (starts(name, "ld") || starts(name, "st")) {
      if (all.size() != 1u + form.count) fail("another number of operands");
      const Token& address = memory.is_store ? all[0] : all.back();
      operands.push_back(base_row(address, &form));
      in.immediate = address.offset;
      for (size_t i = 0; i < form.count; ++i) {
        const Token& t = all[memory.is_store ? i + 1 : i];
        const char letter = form.bytes == 8 ? 'd' : form.bytes == 4 ? 'w' : 'h';
        if (t.kind == Kind::reg) {
          if (t.reg.type == Class::predicate || width(t.reg.type) < form.bytes * 8) fail("a register too small");
          form.register_bytes[i] = static_cast<uint8_t>(width(t.reg.type) / 8);
          operands.push_back(t.reg.at);
        } else {
          form.register_bytes[i] = letter == 'd' ? 8 : 4;
          operands.push_back(memory.is_store ? source(t, letter) : destination(t, letter));
        }
      }
    } else {
      const bool returns = starts(name, "atom");
      const size_t values = std::strlen(memory.operands);
      if (all.size() != values + 1 + returns) fail("another number of operands");
      operands.push_back(base_row(all[returns], &form));
      in.immediate = all[returns].offset;
      if (returns) operands.push_back(destination(all[0], 'w'));
      for (size_t i = 0; i < 2; ++i)
        operands.push_back(i < values ? source(all[1 + returns + i], memory.operands[i]) : constant(0, false));
    }
    form.used = used_bytes_;
    in.form = static_cast<uint32_t>(program_.forms.size());
    program_.forms.push_back(form);
    emit(in, operands);
  }

  const Entry& entry_;
  Program& program_;
  int line_;
  int32_t guard_ = kNoGuard;
  uint32_t used_bytes_ = ~0u;                                         // of the next ld
  std::vector<std::unordered_map<std::string, Register>> scopes_{1};  // the outermost first
  std::unordered_map<std::string, uint32_t> labels_;
  std::vector<std::pair<size_t, std::string>> branches_;
  std::map<std::pair<uint64_t, bool>, uint32_t> constants_;
  std::map<std::string, uint32_t, std::less<>> locals_;
  uint32_t true_ = ~0u, false_ = ~0u;
};

}  // namespace

Program& Entry::decoded() {
  if (!program) {
    auto made = std::make_unique<Program>();
    Decoder(*this, made.get()).decode();
    program = std::move(made);
  }
  return *program;
}

}  // namespace diffqkv::ptx
