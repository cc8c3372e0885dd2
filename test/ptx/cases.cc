#include "cases.h"

namespace diffqkv::ptx {

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (emulated::NamedCall& call : emulated::operator_calls()) cases.push_back({call.name, std::move(call.make)});
  return cases;
}

}  // namespace diffqkv::ptx
