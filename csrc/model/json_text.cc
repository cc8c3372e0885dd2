#include "model/json_text.h"

#include <cstdio>
#include <cstring>
#include <limits>

#include "model/checkpoint.h"

namespace diffqkv {

class JsonReader : public nlohmann::json_sax<Json> {
 public:
  JsonReader(const std::string& origin, ErrorCode malformed) : origin_(origin), malformed_(malformed) {}

  bool null() override { return add(std::monostate()); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(int64_t{value}); }
  bool number_unsigned(number_unsigned_t value) override {
    if (value > uint64_t{std::numeric_limits<int64_t>::max()}) return add(static_cast<double>(value));
    return add(static_cast<int64_t>(value));
  }
  bool number_float(number_float_t value, const string_t&) override { return add(double{value}); }
  bool string(string_t& value) override { return add(std::make_unique<std::string>(std::move(value))); }
  bool binary(binary_t&) override { return false; }  // never called for JSON

  bool start_object(size_t) override { return open(std::make_unique<JsonValue::Object>()); }
  bool start_array(size_t) override { return open(std::make_unique<JsonValue::Items>()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    auto& object = *std::get<std::unique_ptr<JsonValue::Object>>(open_.back()->value_);
    if (!object.keys.try_emplace(std::move(name), object.items.size()).second)
      fail_at(malformed_, origin_, "duplicate key '" + printable(name) + "'");
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& e) override {
    fail_at(malformed_, origin_, "not valid JSON: " + json_error(e));
  }

  JsonValue result() { return std::move(root_); }

 private:
  // Nothing is added to a container while one inside it is open, so the pointers in open_ stay
  // valid.
  template <typename Value>
  JsonValue& append(Value value) {
    JsonValue& json = open_.empty() ? root_ : const_cast<JsonValue::Items&>(*open_.back()->items()).emplace_back();
    json.value_ = std::move(value);
    return json;
  }
  template <typename Value>
  bool add(Value value) {
    append(std::move(value));
    return true;
  }
  template <typename Container>
  bool open(Container container) {
    if (open_.size() == static_cast<size_t>(kMaxJsonDepth)) {
      fail_at(malformed_, origin_, "nested more than " + std::to_string(kMaxJsonDepth) + " levels deep");
    }
    open_.push_back(&append(std::move(container)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  const std::string& origin_;
  ErrorCode malformed_;
  JsonValue root_;
  std::vector<JsonValue*> open_;
};

const char* JsonValue::type_name() const {
  switch (kind()) {
    case Kind::null: return "null";
    case Kind::boolean: return "boolean";
    case Kind::integer:
    case Kind::number: return "number";
    case Kind::string: return "string";
    case Kind::array: return "array";
    case Kind::object: return "object";
  }
  return "";
}

std::string JsonValue::written() const {
  char number_text[40] = "";
  switch (kind()) {
    case Kind::null: return "null";
    case Kind::boolean: return boolean() ? "true" : "false";
    case Kind::integer: return std::to_string(integer());
    case Kind::string: return '"' + text() + '"';
    default: break;
  }
  snprintf(number_text, sizeof number_text, "%.9g", number());
  // 64.0 is not an integer, so it is not written as one.
  return std::strpbrk(number_text, ".eni") ? number_text : std::string(number_text) + ".0";
}

const JsonValue* JsonValue::find(const std::string& key) const {
  const auto* object = std::get_if<std::unique_ptr<Object>>(&value_);
  if (!object) return nullptr;
  const auto at = (*object)->keys.find(key);
  return at == (*object)->keys.end() ? nullptr : &(*object)->items[at->second];
}

JsonValue parse_json_object(std::string_view text, const std::string& origin, ErrorCode malformed) {
  JsonReader reader(origin, malformed);
  Json::sax_parse(text.begin(), text.end(), &reader);
  JsonValue result = reader.result();
  if (!result.is(JsonValue::Kind::object))
    fail_at(malformed, origin, std::string("the text must be a JSON object, not ") + result.type_name());
  return result;
}

}  // namespace diffqkv
