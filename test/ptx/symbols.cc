#include "symbols.h"

#include <cxxabi.h>
#include <elf.h>
#include <link.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <stdexcept>

namespace diffqkv::ptx {
namespace {

using Functions = std::multimap<uintptr_t, FunctionName>;

// The table of symbols of the running program, internal ones included.
Functions read_symbols() {
  std::ifstream in("/proc/self/exe", std::ios::binary);
  std::vector<char> file((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (file.size() < sizeof(Elf64_Ehdr)) throw std::runtime_error("/proc/self/exe cannot be read");
  const auto at = [&]<typename T>(size_t offset, T*) { return reinterpret_cast<const T*>(file.data() + offset); };
  const Elf64_Ehdr& header = *at(0, static_cast<Elf64_Ehdr*>(nullptr));
  const Elf64_Shdr* const sections = at(header.e_shoff, static_cast<Elf64_Shdr*>(nullptr));
  uintptr_t base = 0;  // where the program was loaded
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        *static_cast<uintptr_t*>(data) = info->dlpi_addr;
        return 1;  // the first is the program
      },
      &base);
  Functions functions;
  for (int i = 0; i < header.e_shnum; ++i) {
    const Elf64_Shdr& section = sections[i];
    if (section.sh_type != SHT_SYMTAB) continue;
    const char* const names = file.data() + sections[section.sh_link].sh_offset;
    const Elf64_Sym* const symbols = at(section.sh_offset, static_cast<Elf64_Sym*>(nullptr));
    std::string stem;
    for (size_t s = 0; s < section.sh_size / sizeof(Elf64_Sym); ++s) {
      const Elf64_Sym& symbol = symbols[s];
      const std::string name = names + symbol.st_name;
      if (ELF64_ST_TYPE(symbol.st_info) == STT_FILE) stem = name.substr(0, name.find('.'));
      if (ELF64_ST_TYPE(symbol.st_info) != STT_FUNC || symbol.st_shndx == SHN_UNDEF || name.rfind("_Z", 0) != 0)
        continue;
      const bool is_local = ELF64_ST_BIND(symbol.st_info) == STB_LOCAL;
      functions.emplace(base + symbol.st_value, FunctionName{is_local ? stem : "", common_name(name)});
    }
  }
  return functions;
}

void replace_all(std::string* text, const std::string& from, const std::string& to) {
  for (size_t at = text->find(from); at != std::string::npos; at = text->find(from, at + to.size()))
    text->replace(at, from.size(), to);
}

}  // namespace

std::string common_name(const std::string& mangled) {
  int status = 0;
  char* const demangled = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  if (!demangled) return mangled;
  std::string name = demangled;
  std::free(demangled);
  replace_all(&name, "diffqkv::emulated::", "diffqkv::");
  replace_all(&name, "diffqkv::cuda::", "diffqkv::");
  return name;
}

std::vector<FunctionName> functions_at(const void* address) {
  static const Functions functions = read_symbols();
  std::vector<FunctionName> found;
  const auto [begin, end] = functions.equal_range(reinterpret_cast<uintptr_t>(address));
  for (auto it = begin; it != end; ++it) found.push_back(it->second);
  return found;
}

}  // namespace diffqkv::ptx
