#include "model/shard_index.h"

#include <algorithm>

#include "model/checkpoint.h"
#include "model/input_file.h"
#include "model/json_text.h"

namespace diffqkv {
namespace {

constexpr uint64_t kMaxIndexBytes = uint64_t{64} << 20;

// Parses weight_map without building a tree, which could be many times as large as the file.
// Ignores other fields.
class IndexReader : public nlohmann::json_sax<Json> {
 public:
  IndexReader(const std::string& path, ShardIndex& index) : path_(path), index_(index) {}

  bool null() override { return value("null"); }
  bool boolean(bool) override { return value("boolean"); }
  bool number_integer(number_integer_t) override { return value("number"); }
  bool number_unsigned(number_unsigned_t) override { return value("number"); }
  bool number_float(number_float_t, const string_t&) override { return value("number"); }
  bool binary(binary_t&) override { return value("binary"); }

  bool string(string_t& shard) override {
    if (!in_map()) return value("string");
    // No control characters, because the name appears in messages as a part of a path.
    const bool plain = !shard.empty() && shard.size() <= 255 && shard != "." && shard != ".." &&
                       shard.find_first_of("/\\\x7f") == std::string::npos &&
                       std::all_of(shard.begin(), shard.end(), [](unsigned char c) { return c >= 0x20; });
    if (!plain) fail(tensor() + "its shard '" + printable(shard) + "' is not the name of a file in the directory");
    const std::string& kept = *index_.shards.insert(std::move(shard)).first;
    if (!index_.shard_of.emplace(key_, &kept).second) fail(tensor() + "duplicate");
    return true;
  }

  bool start_object(size_t) override {
    if (depth_ == 1 && key_ == "weight_map") {
      if (has_map_) fail("duplicate weight_map");
      has_map_ = true;
    } else if (depth_ > 0) {
      value("object");
    }
    return enter();
  }

  bool key(string_t& name) override {
    key_ = std::move(name);
    if (depth_ == 1) top_key_ = key_;
    return true;
  }

  bool end_object() override {
    depth_--;
    return true;
  }

  bool start_array(size_t) override {
    value("array");
    return enter();
  }

  bool end_array() override { return end_object(); }

  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& e) override {
    fail("not valid JSON: " + json_error(e));
  }

  void finish() const {
    if (!has_map_) fail("weight_map is missing");
  }

 private:
  bool in_map() const { return depth_ == 2 && top_key_ == "weight_map"; }
  std::string tensor() const { return "weight_map: tensor '" + printable(key_) + "': "; }
  [[noreturn]] void fail(const std::string& what) const { fail_at(ErrorCode::invalid_checkpoint, path_, what); }

  // A value of a type that weight_map must not have. Values outside weight_map are ignored.
  bool value(const std::string& type) const {
    if (depth_ == 0) fail("the file must be a JSON object, not " + type);
    if (depth_ == 1 && key_ == "weight_map") fail("weight_map must be an object, not " + type);
    if (in_map()) fail(tensor() + "its shard must be a string, not " + type);
    return true;
  }

  bool enter() {
    if (++depth_ > kMaxJsonDepth) fail("nested more than " + std::to_string(kMaxJsonDepth) + " levels deep");
    return true;
  }

  const std::string& path_;
  ShardIndex& index_;
  int depth_ = 0;
  std::string key_;
  std::string top_key_;
  bool has_map_ = false;
};

}  // namespace

ShardIndex read_shard_index(const std::string& path) {
  const std::string text = InputFile(path).read_text(kMaxIndexBytes);
  ShardIndex index;
  IndexReader reader(path, index);
  Json::sax_parse(text, &reader);
  reader.finish();
  return index;
}

}  // namespace diffqkv
