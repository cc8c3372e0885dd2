// JSON from untrusted files. Include it only in readers of such files: json.hpp takes seconds to
// compile.
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

// Throws an Error with the message "origin: what".
[[noreturn]] inline void fail_at(ErrorCode code, const std::string& origin, const std::string& what) {
  throw Error(code, origin + ": " + what);
}

// The message of the parser, shortened: it quotes the invalid token, which may be as long as the
// file.
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

// A JSON value. The destructor of nlohmann's value allocates, and the process aborts if that fails.
class JsonValue {
 public:
  enum class Kind { null, boolean, integer, number, string, array, object };

  Kind kind() const { return static_cast<Kind>(value_.index()); }
  bool is(Kind expected) const { return kind() == expected; }
  bool is_number() const { return is(Kind::integer) || is(Kind::number); }
  const char* type_name() const;
  std::string written() const;  // as JSON text; not for arrays and objects

  bool boolean() const { return std::get<bool>(value_); }
  int64_t integer() const { return std::get<int64_t>(value_); }
  double number() const { return is(Kind::integer) ? static_cast<double>(integer()) : std::get<double>(value_); }
  const std::string& text() const { return *std::get<std::unique_ptr<std::string>>(value_); }
  // The number of elements of an array or an object; 0 for other kinds.
  size_t size() const { return items() ? items()->size() : 0; }
  const JsonValue& operator[](size_t i) const { return (*items())[i]; }
  const JsonValue* find(const std::string& key) const;  // of an object
  std::vector<std::string> keys() const;                // of an object

 private:
  friend class JsonReader;
  using Items = std::vector<JsonValue>;
  struct Object {
    Items items;
    std::map<std::string, size_t> keys;  // index into items
  };
  const Items* items() const {
    if (is(Kind::object)) return &std::get<std::unique_ptr<Object>>(value_)->items;
    return is(Kind::array) ? std::get<std::unique_ptr<Items>>(value_).get() : nullptr;
  }

  // In the order of Kind. 16 bytes, because a file may consist of one-digit numbers.
  std::variant<std::monostate, bool, int64_t, double, std::unique_ptr<std::string>, std::unique_ptr<Items>,
               std::unique_ptr<Object>>
      value_;
};

// Parses one JSON object of at most kMaxJsonDepth levels without duplicate keys. The numbers NaN,
// Infinity and -Infinity are allowed, because Python's json module writes and reads them. The tree
// has up to about 40 times the bytes of the text.
JsonValue parse_json_object(std::string_view text, const std::string& origin, ErrorCode malformed);

}  // namespace diffqkv
