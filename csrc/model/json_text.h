// JSON from files that nobody vouches for. For config.cc and checkpoint.cc alone: json.hpp takes seconds to compile.
#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "backend/error.h"

namespace diffqkv {

using Json = nlohmann::json;

// Throws an Error whose message is origin, ": ", what.
[[noreturn]] inline void fail_at(ErrorCode code, const std::string& origin, const std::string& what) {
  throw Error(code, origin + ": " + what);
}

// What the parser has to say, without the offending token at full length (it may be as long as the file).
inline std::string json_error(const std::exception& e) {
  std::string text = e.what();
  const size_t end = text.find("] ");
  if (text.rfind("[json.exception", 0) == 0 && end != std::string::npos) text.erase(0, end + 2);
  if (text.size() > 160) text = text.substr(0, 160) + "...";
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) c = '?';
  }
  return text;
}

// One JSON object, nested at most 32 deep, each key once. nlohmann::json would keep the last of equal keys in silence.
Json parse_json_object(std::string_view text, const std::string& origin, ErrorCode malformed);

}  // namespace diffqkv
