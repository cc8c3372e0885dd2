// JSON from files that nobody vouches for. For the readers of such files alone: json.hpp takes seconds to compile.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

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

inline constexpr int kMaxJsonDepth = 32;

// A value as it stands in a file. Not nlohmann's, which asks for memory as it is destroyed, and ends the process where there
// is none.
class JsonValue {
 public:
  enum class Kind { null, boolean, integer, number, string, array, object };

  Kind kind() const { return static_cast<Kind>(value_.index()); }
  bool is(Kind wanted) const { return kind() == wanted; }
  bool is_number() const { return is(Kind::integer) || is(Kind::number); }
  const char* type_name() const;
  std::string written() const;  // of all but arrays and objects, in short

  bool boolean() const { return std::get<bool>(value_); }
  int64_t integer() const { return std::get<int64_t>(value_); }  // one that is too large is INT64_MAX
  double number() const { return is(Kind::integer) ? static_cast<double>(integer()) : std::get<double>(value_); }
  const std::string& text() const { return *std::get<std::unique_ptr<std::string>>(value_); }
  // Of an array or object; of anything else there are none.
  size_t size() const { return items() ? items()->size() : 0; }
  const JsonValue& operator[](size_t i) const { return (*items())[i]; }
  const JsonValue* find(const std::string& key) const;  // of an object

 private:
  friend class JsonReader;
  using Items = std::vector<JsonValue>;
  struct Object {
    Items items;
    std::map<std::string, size_t> keys;  // which of the items
  };
  const Items* items() const {
    if (is(Kind::object)) return &std::get<std::unique_ptr<Object>>(value_)->items;
    return is(Kind::array) ? std::get<std::unique_ptr<Items>>(value_).get() : nullptr;
  }

  // In the order of Kind. 16 bytes: a file may be nothing but numbers of one digit.
  std::variant<std::monostate, bool, int64_t, double, std::unique_ptr<std::string>, std::unique_ptr<Items>,
               std::unique_ptr<Object>>
      value_;
};

// One JSON object, nested at most kMaxJsonDepth deep, each key once. The tree takes up to some forty times the bytes of the
// text.
JsonValue parse_json_object(std::string_view text, const std::string& origin, ErrorCode malformed);

}  // namespace diffqkv
