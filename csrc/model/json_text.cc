#include "model/json_text.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "model/checkpoint.h"

namespace diffqkv {
namespace {

struct NonFinite {
  size_t index;  // among the numbers of the text
  double value;
};

// Replaces NaN, Infinity and -Infinity, which the parser does not know, by zeros of the same length.
// Appends their values to `found`. A literal counts only if it is a whole token, so text that is
// malformed remains malformed.
std::string replace_non_finite(std::string_view text, std::vector<NonFinite>& found) {
  static constexpr struct {
    std::string_view literal;
    double value;
  } kLiterals[] = {{"NaN", std::numeric_limits<double>::quiet_NaN()},
                   {"Infinity", std::numeric_limits<double>::infinity()},
                   {"-Infinity", -std::numeric_limits<double>::infinity()}};
  static constexpr std::string_view kBefore = " \t\r\n,:[";
  static constexpr std::string_view kAfter = " \t\r\n,]}";
  static constexpr std::string_view kNumber = "+-.eE0123456789";
  const auto is_one_of = [&](std::string_view characters, size_t at) {
    return at >= text.size() || characters.find(text[at]) != std::string_view::npos;
  };
  std::string result(text);
  size_t num_numbers = 0;
  size_t i = 0;
  while (i < text.size()) {
    if (text[i] == '"') {
      for (i++; i < text.size() && text[i] != '"'; i++) i += text[i] == '\\';
      i++;
      continue;
    }
    const auto literal = std::find_if(std::begin(kLiterals), std::end(kLiterals), [&](const auto& candidate) {
      const size_t length = candidate.literal.size();
      return text.compare(i, length, candidate.literal) == 0 && is_one_of(kBefore, i - 1) &&
             is_one_of(kAfter, i + length);
    });
    if (literal != std::end(kLiterals)) {
      found.push_back({num_numbers++, literal->value});
      result.replace(i, literal->literal.size(), literal->literal.size(), ' ');
      result[i] = '0';
      i += literal->literal.size();
    } else if (text[i] == '-' || (text[i] >= '0' && text[i] <= '9')) {
      num_numbers++;
      i = std::min(text.find_first_not_of(kNumber, i), text.size());
    } else {
      i++;
    }
  }
  return result;
}

}  // namespace

class JsonReader : public nlohmann::json_sax<Json> {
 public:
  JsonReader(const std::string& origin, ErrorCode malformed, const std::vector<NonFinite>& non_finite)
      : origin_(origin), malformed_(malformed), next_(non_finite.begin()), end_(non_finite.end()) {}

  bool null() override { return add(std::monostate()); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add_number(int64_t{value}); }
  bool number_unsigned(number_unsigned_t value) override {
    if (value > uint64_t{std::numeric_limits<int64_t>::max()}) return add_number(static_cast<double>(value));
    return add_number(static_cast<int64_t>(value));
  }
  bool number_float(number_float_t value, const string_t&) override { return add_number(double{value}); }
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
  template <typename Value>
  bool add_number(Value value) {
    const size_t index = num_numbers_++;
    if (next_ == end_ || next_->index != index) return add(value);
    return add((next_++)->value);
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
  size_t num_numbers_ = 0;
  std::vector<NonFinite>::const_iterator next_;
  std::vector<NonFinite>::const_iterator end_;
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
  if (std::isnan(number())) return "NaN";
  if (std::isinf(number())) return number() > 0 ? "Infinity" : "-Infinity";
  snprintf(number_text, sizeof number_text, "%.9g", number());
  // 64.0 is not an integer, so it is not written as one.
  return std::strpbrk(number_text, ".e") ? number_text : std::string(number_text) + ".0";
}

const JsonValue* JsonValue::find(const std::string& key) const {
  const auto* object = std::get_if<std::unique_ptr<Object>>(&value_);
  if (!object) return nullptr;
  const auto at = (*object)->keys.find(key);
  return at == (*object)->keys.end() ? nullptr : &(*object)->items[at->second];
}

std::vector<std::string> JsonValue::keys() const {
  std::vector<std::string> names;
  for (const auto& entry : std::get<std::unique_ptr<Object>>(value_)->keys) names.push_back(entry.first);
  return names;
}

JsonValue parse_json_object(std::string_view text, const std::string& origin, ErrorCode malformed) {
  std::vector<NonFinite> non_finite;
  const std::string finite = replace_non_finite(text, non_finite);
  JsonReader reader(origin, malformed, non_finite);
  Json::sax_parse(finite, &reader);
  JsonValue result = reader.result();
  if (!result.is(JsonValue::Kind::object))
    fail_at(malformed, origin, std::string("the text must be a JSON object, not ") + result.type_name());
  return result;
}

}  // namespace diffqkv
