#include "cases.h"

namespace diffqkv::ptx {

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (emulated::NamedCall& call : emulated::operator_calls()) cases.push_back({call.name, std::move(call.make)});
  for (auto& more : {device_layer_cases(), attention_cases(), linear_cases(), other_cases()})
    cases.insert(cases.end(), more.begin(), more.end());
  return cases;
}

}  // namespace diffqkv::ptx
