// Reads a PTX file: what it declares, and where the bodies of its entries are.
#include <fstream>
#include <sstream>

#include "program.h"

namespace diffqkv::ptx {
namespace {

// Comments become blanks, so that lines keep their numbers.
void blank_comments(std::string* text) {
  std::string& s = *text;
  for (size_t i = 0; i + 1 < s.size(); ++i) {
    if (s[i] != '/' || (s[i + 1] != '/' && s[i + 1] != '*')) continue;
    const bool block = s[i + 1] == '*';
    const size_t found = block ? s.find("*/", i + 2) : s.find('\n', i);
    const size_t end = found == std::string::npos ? s.size() : block ? found + 2 : found;
    for (; i < end; ++i)
      if (s[i] != '\n') s[i] = ' ';
    --i;
  }
}

class Reader {
 public:
  explicit Reader(Module* module) : module_(*module), text_(module->text) {}

  void read() {
    for (;;) {
      skip_blanks();
      if (at_ >= text_.size()) return;
      if (take(".version") || take(".address_size")) {
        word();
      } else if (take(".target")) {
        module_.target = word();
      } else if (take(".extern")) {
        read_shared();
      } else if (take(".visible") || take(".weak")) {
        // As any other.
      } else if (take(".entry")) {
        read_entry();
      } else {
        fail("a declaration that is not known");
      }
    }
  }

 private:
  [[noreturn]] void fail(const std::string& message) const {
    throw Fault(module_.file + ":" + std::to_string(line()) + ": " + message + ": " +
                std::string(text_.substr(at_, text_.find('\n', at_) - at_)).substr(0, 120));
  }
  int line() const {
    int line = 1;
    for (size_t i = 0; i < at_ && i < text_.size(); ++i) line += text_[i] == '\n';
    return line;
  }
  void skip_blanks() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
  }
  bool take(std::string_view token) {
    skip_blanks();
    if (text_.substr(at_, token.size()) != token) return false;
    at_ += token.size();
    return true;
  }
  void expect(std::string_view token) {
    if (!take(token)) fail("expected " + std::string(token));
  }
  std::string word() {
    skip_blanks();
    const size_t begin = at_;
    while (at_ < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[at_])) || text_[at_] == '_' ||
                                  text_[at_] == '$' || text_[at_] == '.'))
      ++at_;
    if (at_ == begin) fail("expected a word");
    return std::string(text_.substr(begin, at_ - begin));
  }
  size_t number() { return std::stoul(word()); }

  // ".shared .align 128 .b8 name[];": dynamic shared memory.
  void read_shared() {
    expect(".shared");
    if (take(".align") && kSharedBase % number() != 0) fail("shared memory of such an alignment is not known");
    expect(".b8");
    const std::string name = word();
    expect("[");
    expect("]");
    expect(";");
    module_.shared_symbols.insert(name);
  }

  void read_entry() {
    Entry entry;
    entry.name = word();
    if (take("(") && !take(")")) {
      do {
        read_parameter(&entry);
      } while (take(","));
      expect(")");
    }
    for (;;) {
      if (take(".maxntid")) {
        entry.max_threads = static_cast<int>(number());
        while (take(",")) entry.max_threads *= static_cast<int>(number());
      } else if (take(".minnctapersm")) {
        number();
      } else {
        break;
      }
    }
    expect("{");
    entry.line = line();
    const size_t begin = at_;
    int depth = 1;
    for (; at_ < text_.size() && depth > 0; ++at_) depth += text_[at_] == '{' ? 1 : text_[at_] == '}' ? -1 : 0;
    if (depth > 0) fail("a body that does not end");
    entry.body = text_.substr(begin, at_ - 1 - begin);
    entry.module = &module_;
    module_.entries.push_back(std::move(entry));
  }

  // ".param .align 8 .b8 name[64]" or ".param .u64 name".
  void read_parameter(Entry* entry) {
    expect(".param");
    Parameter parameter = {};
    if (take(".align")) parameter.alignment = number();
    const std::string type = word();
    parameter.bytes = std::stoul(type.substr(2)) / 8;
    if (parameter.alignment == 0) parameter.alignment = parameter.bytes;
    if (take(".ptr")) fail("a parameter of a kind that is not known");
    const std::string name = word();
    if (take("[")) {
      parameter.bytes *= number();
      expect("]");
    }
    const size_t end = entry->parameters.empty() ? 0 : entry->parameters.back().offset + entry->parameters.back().bytes;
    parameter.offset = (end + parameter.alignment - 1) / parameter.alignment * parameter.alignment;
    entry->parameter_offsets[name] = parameter.offset;
    entry->parameters.push_back(parameter);
  }

  Module& module_;
  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

std::unique_ptr<Module> parse_module(const std::string& file, std::string text) {
  auto module = std::make_unique<Module>();
  module->file = file;
  module->text = std::move(text);
  blank_comments(&module->text);
  Reader(module.get()).read();
  return module;
}

std::unique_ptr<Module> read_module(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  if (!in) throw Fault(file + ": cannot be read");
  return parse_module(file, std::move(text).str());
}

}  // namespace diffqkv::ptx
