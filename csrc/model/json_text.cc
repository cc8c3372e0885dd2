#include "model/json_text.h"

#include <set>
#include <vector>

#include "model/checkpoint.h"

namespace diffqkv {

Json parse_json_object(std::string_view text, const std::string& origin, ErrorCode malformed) {
  constexpr int kMaxDepth = 32;
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int depth, Json::parse_event_t event, Json& value) {
    switch (event) {
      case Json::parse_event_t::array_start:
      case Json::parse_event_t::object_start:
        if (depth >= kMaxDepth) fail_at(malformed, origin, "nested more than " + std::to_string(kMaxDepth) + " deep");
        if (event == Json::parse_event_t::object_start) keys.emplace_back();
        break;
      case Json::parse_event_t::object_end: keys.pop_back(); break;
      case Json::parse_event_t::key:
        if (!keys.back().insert(value.get<std::string>()).second) {
          fail_at(malformed, origin, "the key '" + printable(value.get<std::string>()) + "' is there twice");
        }
        break;
      default: break;
    }
    return true;
  };
  Json result;
  try {
    result = Json::parse(text.begin(), text.end(), check);
  } catch (const Json::exception& e) {
    fail_at(malformed, origin, "not valid JSON: " + json_error(e));
  }
  if (!result.is_object())
    fail_at(malformed, origin, std::string("a JSON object is wanted, not ") + result.type_name());
  return result;
}

}  // namespace diffqkv
