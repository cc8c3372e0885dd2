// Reads the fields of a JSON object of config.json. Errors name the file and the field.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/json_text.h"

namespace diffqkv {

inline std::string number_text(double value) {
  char text[40];
  snprintf(text, sizeof text, "%.9g", value);
  return text;
}

// Reads the fields of one JSON object and throws errors that name them.
class Fields {
 public:
  Fields(const JsonValue& object, std::string origin, ErrorCode malformed, std::string prefix = "")
      : object_(object), origin_(std::move(origin)), malformed_(malformed), prefix_(std::move(prefix)) {}

  // Present, maybe as null, which may mean another thing than a missing key.
  bool given(const char* key) const { return object_.find(key); }
  // Present and not null.
  bool has(const char* key) const {
    const JsonValue* value = object_.find(key);
    return value && !value->is(JsonValue::Kind::null);
  }

  [[noreturn]] void malformed(const std::string& what) const { fail_at(malformed_, origin_, what); }
  [[noreturn]] void unsupported(const std::string& what) const { fail_at(ErrorCode::unsupported_model, origin_, what); }

  int64_t integer(const char* key, int64_t min, int64_t max) const {
    const JsonValue& value = get(key);
    const std::string range = "; it must be an integer from " + std::to_string(min) + " to " + std::to_string(max);
    if (!value.is(JsonValue::Kind::integer) || value.integer() < min || value.integer() > max)
      malformed(name(key) + " is " + shown(value) + range);
    return value.integer();
  }
  int64_t integer(const char* key, int64_t min, int64_t max, int64_t otherwise) const {
    return has(key) ? integer(key, min, max) : otherwise;
  }

  double positive(const char* key) const {
    const JsonValue& value = get(key);
    const bool good = value.is_number() && std::isfinite(value.number()) && value.number() > 0;
    if (!good) malformed(name(key) + " is " + shown(value) + "; it must be a finite number above 0");
    return value.number();
  }

  double positive(const char* key, double otherwise) const { return has(key) ? positive(key) : otherwise; }

  bool boolean(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!get(key).is(JsonValue::Kind::boolean))
      malformed(name(key) + " is " + shown(get(key)) + "; it must be true or false");
    return get(key).boolean();
  }

  std::string string(const char* key, const char* otherwise) const {
    if (!has(key)) return otherwise;
    if (!get(key).is(JsonValue::Kind::string))
      malformed(name(key) + " is " + shown(get(key)) + "; it must be a string");
    return get(key).text();
  }

  Fields object(const char* key) const {
    if (!get(key).is(JsonValue::Kind::object))
      malformed(name(key) + " is " + shown(get(key)) + "; it must be an object");
    return Fields(get(key), origin_, malformed_, name(key) + ".");
  }

  const JsonValue& get(const char* key) const {
    const JsonValue* value = object_.find(key);
    if (!value) malformed(name(key) + " is missing");
    return *value;
  }

  std::vector<std::string> keys() const { return object_.keys(); }
  std::string name(const char* key) const { return prefix_ + key; }

  static std::string shown(const JsonValue& value) {
    if (value.is(JsonValue::Kind::object)) return "an object";
    if (value.is(JsonValue::Kind::array)) return "an array";
    return printable(value.written());
  }

 private:
  const JsonValue& object_;
  std::string origin_;
  ErrorCode malformed_;
  std::string prefix_;
};

}  // namespace diffqkv
