#include "mutate.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstring>
#include <vector>

#include <nlohmann/json.hpp>

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace diffqkv::fuzz {
namespace {

using Json = nlohmann::ordered_json;

size_t below(size_t limit, Random& random) { return limit == 0 ? 0 : random() % limit; }

struct Span {
  size_t begin, size;
};

// Strings, numbers, words and brackets, as they stand in the text; what is in an open string is one token.
std::vector<Span> tokens(const std::string& text) {
  std::vector<Span> found;
  size_t i = 0;
  while (i < text.size()) {
    const size_t begin = i;
    const auto c = static_cast<unsigned char>(text[i++]);
    if (c == '"') {
      while (i < text.size() && text[i] != '"') i += text[i] == '\\' ? 2 : 1;
      i = std::min(i + 1, text.size());
    } else if (isalnum(c) || c == '-') {
      while (i < text.size() && (isalnum(static_cast<unsigned char>(text[i])) || strchr("+-.", text[i]))) i++;
    } else if (c <= ' ' || c == ',' || c == ':') {
      continue;
    }
    found.push_back({begin, i - begin});
  }
  return found;
}

std::string other_value(const std::string& old, Random& random) {
  static const char* const kValues[] = {"0",
                                        "1",
                                        "2",
                                        "3",
                                        "-1",
                                        "0.5",
                                        "1e3",
                                        "1e-300",
                                        "1e308",
                                        "1e999",
                                        "16",
                                        "255",
                                        "65536",
                                        "2147483647",
                                        "2147483648",
                                        "4294967296",
                                        "9223372036854775807",
                                        "9223372036854775808",
                                        "18446744073709551615",
                                        "18446744073709551616",
                                        "null",
                                        "true",
                                        "false",
                                        "[]",
                                        "{}",
                                        "\"\"",
                                        "\"\\u0000\\ud83d\\ude00\"",
                                        "[0]",
                                        "[1,1]",
                                        "{\"a\":1}"};
  char* end = nullptr;
  const unsigned long long number = strtoull(old.c_str(), &end, 10);
  if (!old.empty() && isdigit(static_cast<unsigned char>(old[0])) && *end == '\0' && random() % 2) {
    switch (random() % 5) {
      case 0: return std::to_string(number + 1);
      case 1: return std::to_string(number - 1);
      case 2: return std::to_string(number * 2);
      case 3: return std::to_string(number / 2);
      default: return std::to_string(number + 8);
    }
  }
  return kValues[below(std::size(kValues), random)];
}

// Where each member of an outermost object stands: "name": value, without the comma.
std::vector<Span> members(const std::string& text) {
  std::vector<Span> found;
  int depth = 0;
  size_t begin = 0;
  for (const Span& token : tokens(text)) {
    const char c = text[token.begin];
    if (c == '{' || c == '[') depth++;
    if (c == '}' || c == ']') depth--;
    const size_t end = token.begin + token.size;
    const size_t next = text.find_first_not_of(" \n\r\t", end);
    const char after = next == std::string::npos ? '\0' : text[next];
    if (depth == 1 && c == '"' && after == ':') begin = token.begin;
    if (depth == 1 && begin > 0 && (after == ',' || after == '}')) found.push_back({begin, end - begin});
  }
  return found;
}

void mutate_members(std::string& text, Random& random) {
  const std::vector<Span> all = members(text);
  if (all.empty()) return;
  const Span one = all[below(all.size(), random)], other = all[below(all.size(), random)];
  const std::string member = text.substr(one.begin, one.size);
  switch (random() % 3) {
    case 0: {  // without it
      const size_t comma = one.begin + one.size;
      text.erase(one.begin, one.size + (comma < text.size() && text[comma] == ',' ? 1 : 0));
      break;
    }
    case 1: text.insert(other.begin, member + ","); break;
    default: text.replace(other.begin, other.size, member);
  }
}

// Gives every tensor the offsets that its shape and type need, one after another, and the file as many bytes of data.
void repair(std::string& header, std::string& data, size_t max_data) {
  Json json = Json::parse(header, nullptr, false);
  if (!json.is_object()) return;
  uint64_t offset = 0;
  for (auto& [name, entry] : json.items()) {
    if (name == "__metadata__" || !entry.is_object()) continue;
    const Json shape = entry.value("shape", Json()), dtype = entry.value("dtype", Json());
    if (!shape.is_array() || !dtype.is_string()) continue;
    const std::string type = dtype.get<std::string>();
    uint64_t bits = type.find("64") != std::string::npos ? 64 : type.find("32") != std::string::npos ? 32 : 8;
    if (type.find("16") != std::string::npos) bits = 16;
    if (type.rfind("F4", 0) == 0) bits = 4;
    if (type.rfind("F6", 0) == 0) bits = 6;
    for (const Json& size : shape) {
      if (size.is_number_unsigned() && size.get<uint64_t>() < (1u << 20)) bits *= size.get<uint64_t>();
      if (bits > 8 * max_data) return;
    }
    entry["data_offsets"] = {offset, offset + bits / 8};
    offset += bits / 8;
  }
  if (offset > max_data) return;
  header = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  data.resize(offset, '\x3c');
}

}  // namespace

void mutate_bytes(std::string& bytes, size_t max_size) {
  const size_t size = bytes.size();
  bytes.resize(std::max(size, max_size));
  bytes.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(bytes.data()), size, bytes.size()));
}

void mutate_json(std::string& text, size_t max_size, Random& random) {
  const std::string before = text;
  switch (random() % 5) {
    case 0:
    case 1: break;
    case 2: mutate_members(text, random); break;
    default: {
      const std::vector<Span> all = tokens(text);
      if (all.empty()) break;
      const Span one = all[below(all.size(), random)], other = all[below(all.size(), random)];
      const std::string token = text.substr(other.begin, other.size);
      text.replace(one.begin, one.size, random() % 4 ? other_value(text.substr(one.begin, one.size), random) : token);
    }
  }
  if (text == before || text.size() > max_size) {
    text = before;
    mutate_bytes(text, max_size);
  }
}

void mutate_safetensors(std::string& file, size_t max_size, Random& random) {
  if (file.size() < 8 || max_size < 64 || random() % 16 == 0) return mutate_bytes(file, max_size);
  uint64_t length;
  memcpy(&length, file.data(), 8);
  const size_t kept = std::min<uint64_t>(length, file.size() - 8);
  std::string header = file.substr(8, kept), data = file.substr(8 + kept);
  const size_t max_header = max_size - 8 - std::min(data.size(), max_size - 8);
  switch (random() % 8) {
    case 0: data.resize(std::min(max_size / 2, data.size() + below(9, random))); break;
    case 1: data.resize(data.size() - below(std::min<size_t>(9, data.size() + 1), random)); break;
    case 2: repair(header, data, max_size / 2); break;
    case 3:
      mutate_json(header, max_header, random);
      repair(header, data, max_size / 2);
      break;
    default: mutate_json(header, max_header, random);
  }
  if (random() % 16 != 0)
    length = header.size();
  else if (random() % 2)
    length += random() % 3 - 1;
  std::string result(8, '\0');
  memcpy(result.data(), &length, 8);
  result += header;
  result += data;
  if (result.size() > max_size) result.resize(max_size);
  file = std::move(result);
}

size_t mutate_with(void (*mutate)(std::string&, size_t, Random&), uint8_t* data, size_t size, size_t max_size,
                   unsigned seed) {
  Random random(seed);
  std::string bytes(reinterpret_cast<const char*>(data), size);
  mutate(bytes, max_size, random);
  const size_t result = std::min(bytes.size(), max_size);
  memcpy(data, bytes.data(), result);
  return result;
}

}  // namespace diffqkv::fuzz
