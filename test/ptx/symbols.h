// Which kernel of the C++ build is which entry of the PTX: names of functions by their address, in a spelling that both
// compilers' names come to.
#pragma once

#include <string>
#include <vector>

namespace diffqkv::ptx {

// "file: name": the source file's stem for what has internal linkage, else nothing; the demangled name without the
// namespace that differs between the compilers.
struct FunctionName {
  std::string file, name;
};

// The names of the functions of this program that begin at an address.
std::vector<FunctionName> functions_at(const void* address);
// A demangled name in the common spelling.
std::string common_name(const std::string& mangled);

}  // namespace diffqkv::ptx
