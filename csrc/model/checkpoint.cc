#include "model/checkpoint.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "model/json_text.h"
#include "model/packed_weights.h"
#include "model/shard_index.h"

namespace diffqkv {
namespace {

static_assert(std::endian::native == std::endian::little,
              "safetensors are little-endian, and are read here without byte swapping");

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation
constexpr size_t kMaxRank = 16;

// Bits of one element; 0 for an unknown type.
unsigned dtype_bits(const std::string& dtype) {
  static constexpr struct {
    const char* name;
    unsigned bits;
  } kTypes[] = {{"F32", 32},    {"BF16", 16},   {"F16", 16},        {"F64", 64},       {"I64", 64},    {"U64", 64},
                {"I32", 32},    {"U32", 32},    {"I16", 16},        {"U16", 16},       {"I8", 8},      {"U8", 8},
                {"BOOL", 8},    {"C64", 64},    {"F4", 4},          {"F8_E4M3", 8},    {"F8_E5M2", 8}, {"F8_E8M0", 8},
                {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}};
  for (const auto& type : kTypes) {
    if (dtype == type.name) return type.bits;
  }
  return 0;
}

struct HeaderEntry {
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<uint64_t> offsets;
  bool has_dtype = false;
  bool has_shape = false;
  bool has_offsets = false;
};

// Parses the header without building a tree, whose memory the file could inflate. Accepts only {
// name: { dtype, shape, data_offsets } } and { "__metadata__": { string: string } }.
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  HeaderReader(const std::string& path, const CancelFlag* cancel, std::map<std::string, HeaderEntry>& entries)
      : path_(path), cancel_(cancel), entries_(entries) {}

  bool null() override { bad_value("null"); }
  bool boolean(bool) override { bad_value("true or false"); }
  // Called for negative numbers only.
  bool number_integer(number_integer_t value) override { bad_value(std::to_string(value)); }
  bool number_float(number_float_t, const string_t& text) override { bad_value(printable(text)); }
  bool binary(binary_t&) override { bad_value("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == Place::shape) {
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) bad_value(std::to_string(value));
      if (entry_->shape.size() == kMaxRank)
        fail_tensor("shape has more than " + std::to_string(kMaxRank) + " dimensions");
      entry_->shape.push_back(static_cast<int64_t>(value));
    } else if (place_ == Place::offsets) {
      if (entry_->offsets.size() == 2) fail_tensor("data_offsets has more than two numbers");
      entry_->offsets.push_back(value);
    } else {
      bad_value(std::to_string(value));
    }
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::metadata && has_key_) {
      has_key_ = false;
    } else if (place_ == Place::tensor && field_ == "dtype") {
      entry_->dtype = value;
      entry_->has_dtype = true;
      field_.clear();
    } else {
      bad_value("'" + printable(value) + "'");
    }
    return true;
  }

  bool start_object(size_t) override {
    if (place_ == Place::outside) {
      place_ = Place::top;
    } else if (place_ == Place::top && name_ == "__metadata__") {
      place_ = Place::metadata;
    } else if (place_ == Place::top) {
      place_ = Place::tensor;
      entry_ = &entries_[name_];
    } else {
      bad_value("an object");
    }
    return true;
  }

  bool key(string_t& value) override {
    if (cancel_ && cancel_->load(std::memory_order_relaxed))
      throw Error(ErrorCode::aborted, "loading was aborted while " + path_ + " was read");
    if (place_ == Place::top) {
      if (value == "__metadata__") {
        if (has_metadata_) fail_file(path_, "the header has duplicate __metadata__");
        has_metadata_ = true;
      } else if (entries_.count(value)) {
        fail_file(path_, "the header has a duplicate tensor '" + printable(value) + "'");
      }
      name_ = value;
    } else if (place_ == Place::metadata) {
      has_key_ = true;
    } else {
      if (value != "dtype" && value != "shape" && value != "data_offsets") {
        fail_tensor("unknown field '" + printable(value) + "'; only dtype, shape and data_offsets are allowed");
      }
      if ((value == "dtype" && entry_->has_dtype) || (value == "shape" && entry_->has_shape) ||
          (value == "data_offsets" && entry_->has_offsets)) {
        fail_tensor("duplicate " + value);
      }
      field_ = value;
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::tensor) {
      if (!entry_->has_dtype) fail_tensor("dtype is missing");
      if (!entry_->has_shape) fail_tensor("shape is missing");
      if (!entry_->has_offsets) fail_tensor("data_offsets is missing");
      if (entry_->offsets.size() != 2)
        fail_tensor("data_offsets has " + std::to_string(entry_->offsets.size()) + " numbers; it must have two");
      place_ = Place::top;
    } else {
      place_ = place_ == Place::metadata ? Place::top : Place::outside;
    }
    return true;
  }

  bool start_array(size_t) override {
    if (place_ == Place::tensor && field_ == "shape") {
      place_ = Place::shape;
      entry_->has_shape = true;
    } else if (place_ == Place::tensor && field_ == "data_offsets") {
      place_ = Place::offsets;
      entry_->has_offsets = true;
    } else {
      bad_value("an array");
    }
    return true;
  }

  bool end_array() override {
    place_ = Place::tensor;
    field_.clear();
    return true;
  }

  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& e) override {
    fail_file(path_, "the header is not valid JSON: " + json_error(e));
  }

 private:
  enum class Place { outside, top, metadata, tensor, shape, offsets };

  [[noreturn]] void fail_tensor(const std::string& what) const {
    fail_file(path_, "tensor '" + printable(name_) + "': " + what);
  }

  [[noreturn]] void bad_value(const std::string& value) const {
    switch (place_) {
      case Place::outside: fail_file(path_, "the header is " + value + "; it must be a JSON object");
      case Place::metadata: fail_file(path_, "__metadata__ has the value " + value + "; it must have only strings");
      case Place::top: fail_tensor("its value is " + value + "; it must be an object");
      case Place::shape: fail_tensor("shape has the value " + value + "; it must have only integers of at least 0");
      case Place::offsets:
        fail_tensor("data_offsets has the value " + value + "; it must have only integers of at least 0");
      case Place::tensor: break;
    }
    fail_tensor(field_ + " is " + value +
                (field_ == "dtype" ? "; it must be a string" : "; it must be an array of integers"));
  }

  const std::string& path_;
  const CancelFlag* cancel_;
  std::map<std::string, HeaderEntry>& entries_;
  Place place_ = Place::outside;
  std::string name_;
  std::string field_;
  HeaderEntry* entry_ = nullptr;
  bool has_key_ = false;
  bool has_metadata_ = false;
};

// The size in bytes that shape and type require. Fails if it is not a whole number of bytes.
uint64_t needed_bytes(const std::string& path, const std::string& name, const HeaderEntry& entry) {
  const auto fail_tensor = [&](const std::string& what) {
    fail_file(path, "tensor '" + printable(name) + "': " + what);
  };
  const unsigned bits = dtype_bits(entry.dtype);
  if (bits == 0) fail_tensor("unknown dtype '" + printable(entry.dtype) + "'");
  // A 0 anywhere makes the product 0, even if the other sizes overflow.
  const bool empty = std::find(entry.shape.begin(), entry.shape.end(), 0) != entry.shape.end();
  uint64_t total_bits = empty ? 0 : bits;
  for (const int64_t size : entry.shape) {
    if (__builtin_mul_overflow(total_bits, static_cast<uint64_t>(size), &total_bits)) {
      fail_tensor("the product of its shape overflows 64 bits");
    }
  }
  if (total_bits % 8 != 0) fail_tensor("the size by shape and dtype is not a whole number of bytes");
  return total_bits / 8;
}

std::string span_text(const HeaderEntry& entry) {
  return std::string("[") + std::to_string(entry.offsets[0]) + ", " + std::to_string(entry.offsets[1]) + ")";
}

}  // namespace

std::string printable(const std::string& text) {
  constexpr size_t kMaxBytes = 120;
  std::string result;
  for (size_t i = 0; i < text.size(); i++) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (result.size() >= kMaxBytes && (c & 0xc0) != 0x80) return result + "...";
    const bool is_c1 = c == 0xc2 && i + 1 < text.size() && (text[i + 1] & 0xe0) == 0x80;  // U+0080 to U+009F
    if (c < 0x20 || c == 0x7f || is_c1) {
      static constexpr char kHex[] = "0123456789abcdef";
      const auto code = static_cast<unsigned char>(is_c1 ? text[++i] : text[i]);
      result += {'\\', 'x', kHex[code >> 4], kHex[code & 15]};
    } else {
      result += text[i];
    }
  }
  return result;
}

void StoredTensor::read(void* out, uint64_t begin, uint64_t count) const {
  if (!packed) return file->read(out, offset + begin, count);
  packed->read(static_cast<float*>(out), static_cast<int64_t>(begin / sizeof(float)),
               static_cast<int64_t>(count / sizeof(float)));
}

std::string StoredTensor::place() const { return file->path() + ": the tensor '" + printable(name) + "' "; }

std::optional<DType> weight_dtype(const StoredTensor& tensor) {
  if (tensor.dtype == "F32") return DType::f32;
  if (tensor.dtype == "F16") return DType::f16;
  if (tensor.dtype == "BF16") return DType::bf16;
  return std::nullopt;
}

Checkpoint::Checkpoint(const std::string& directory, const CancelFlag* cancel) {
  check_directory(directory);
  path_ = directory + "/model.safetensors";
  if (file_exists(path_)) {
    read_file(path_, cancel);
  } else {
    path_ = directory + "/model.safetensors.index.json";
    if (!file_exists(path_)) fail_file(directory, "has neither model.safetensors nor model.safetensors.index.json");
    read_shards(directory, cancel);
  }
  simplify_names();
}

namespace {

// The name without the prefixes that torch.compile and multimodal models add. `bare`: the file has
// the names of a model without its output matrix, which lack "model.".
std::string simple_name(std::string name, bool bare) {
  const auto drop = [&](const std::string& prefix) {
    const bool has = name.compare(0, prefix.size(), prefix) == 0;
    if (has) name.erase(0, prefix.size());
    return has;
  };
  while (drop("_orig_mod.")) {}
  if (drop("model.language_model.")) name = "model." + name;
  drop("language_model.");
  for (const std::string module : {"embed_tokens.", "layers.", "norm."}) {
    if (bare && name.compare(0, module.size(), module) == 0) return "model." + name;
  }
  return name;
}

}  // namespace

void Checkpoint::simplify_names() {
  const std::string embed = "embed_tokens.weight";
  const bool bare = std::any_of(tensors_.begin(), tensors_.end(),
                                [&](const auto& item) { return simple_name(item.first, false) == embed; });
  std::map<std::string, StoredTensor> simple;
  for (auto& [name, tensor] : tensors_) {
    const auto [it, inserted] = simple.emplace(simple_name(name, bare), std::move(tensor));
    if (!inserted) {
      fail_file(path_, "the tensors '" + printable(it->second.name) + "' and '" + printable(name) +
                           "' differ only by their prefix");
    }
  }
  tensors_ = std::move(simple);
}

namespace {

// The ends of the names of the parts of a quantized weight.
struct PartNames {
  const char* values;
  const char* scales;
  const char* zeros;
  const char* group_index;
  const char* shape;
};

constexpr PartNames kGptq = {".qweight", ".scales", ".qzeros", ".g_idx", ""};
constexpr PartNames kCompressed = {".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_g_idx",
                                   ".weight_shape"};
constexpr PartNames kCompressedBytes = {".weight", ".weight_scale", ".weight_zero_point", "", ""};
constexpr PartNames kFp8 = {".weight", ".weight_scale_inv", "", "", ""};
// Of activations and the KV cache, which are not quantized by the checkpoint here.
constexpr const char* kUnused[] = {".input_scale", ".output_scale", ".k_scale", ".v_scale", ".activation_scale"};

}  // namespace

void Checkpoint::combine_parts(const Quantization& quantization) {
  std::vector<PartNames> kinds;
  switch (quantization.method) {
    case Quantization::none: return;
    case Quantization::gptq:
    case Quantization::awq: kinds = {kGptq}; break;
    case Quantization::compressed: kinds = {kCompressed, kCompressedBytes}; break;
    case Quantization::fp8: kinds = {kFp8}; break;
  }
  for (const PartNames& kind : kinds) {
    const std::string ending = kind.values;
    std::vector<std::string> names;
    for (const auto& [name, tensor] : tensors_) {
      const bool is_bytes = tensor.dtype == "I8" || tensor.dtype == "F8_E4M3";
      if (name.ends_with(ending) && (ending != ".weight" || is_bytes)) names.push_back(name);
    }
    for (const std::string& name : names) {
      const std::string module = name.substr(0, name.size() - ending.size());
      const auto take = [&](const char* part) {
        StoredTensor taken;
        const auto it = *part ? tensors_.find(module + part) : tensors_.end();
        if (it == tensors_.end()) return taken;
        taken = std::move(it->second);
        tensors_.erase(it);
        return taken;
      };
      PackedWeight::Parts parts;
      parts.values = take(kind.values);
      parts.scales = take(kind.scales);
      parts.zeros = take(kind.zeros);
      parts.group_index = take(kind.group_index);
      const auto require = [&](const StoredTensor& part, const char* ending) {
        if (part.file) return;
        throw Error(ErrorCode::invalid_checkpoint,
                    parts.values.place() + "is quantized, but '" + printable(module + ending) + "' is missing");
      };
      require(parts.scales, kind.scales);
      if (quantization.has_zeros) require(parts.zeros, kind.zeros);
      if (quantization.has_group_index) require(parts.group_index, kind.group_index);
      parts.shape = take(kind.shape);
      for (const char* unused : kUnused) take(unused);
      StoredTensor weight = parts.values;
      const auto packed = std::make_shared<const PackedWeight>(quantization, std::move(parts));
      weight.dtype = "F32";
      weight.shape = {packed->rows(), packed->columns()};
      weight.bytes = static_cast<uint64_t>(packed->rows()) * static_cast<uint64_t>(packed->columns()) * sizeof(float);
      weight.packed = packed;
      if (!tensors_.emplace(module + ".weight", weight).second)
        throw Error(ErrorCode::invalid_checkpoint,
                    weight.place() + "and '" + printable(module) + ".weight' both exist");
    }
  }
}

const StoredTensor* Checkpoint::find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

const InputFile& Checkpoint::read_file(const std::string& path, const CancelFlag* cancel) {
  const InputFile& file = files_.emplace_back(path);
  if (file.size() < 8)
    fail_file(path, std::to_string(file.size()) +
                        " bytes is too short for a safetensors file, which begins with an 8-byte header length");
  uint64_t header_bytes;
  file.read(&header_bytes, 0, sizeof header_bytes);
  if (header_bytes > kMaxHeaderBytes) {
    fail_file(path, "the header has " + std::to_string(header_bytes) + " bytes; the limit is " +
                        std::to_string(kMaxHeaderBytes));
  }
  if (header_bytes > file.size() - 8) {
    fail_file(path, "truncated: the header has " + std::to_string(header_bytes) + " bytes, but only " +
                        std::to_string(file.size() - 8) + " bytes follow its length");
  }
  std::map<std::string, HeaderEntry> entries;
  {
    HeaderReader reader(path, cancel, entries);
    std::string header(header_bytes, '\0');
    file.read(header.data(), 8, header_bytes);
    Json::sax_parse(header, &reader);
  }

  const uint64_t data_bytes = file.size() - 8 - header_bytes;
  std::vector<std::pair<const std::string, HeaderEntry>*> in_order;
  for (auto& item : entries) {
    const auto& [name, entry] = item;
    const std::string tensor = "tensor '" + printable(name) + "': ";
    const uint64_t begin = entry.offsets[0];
    const uint64_t end = entry.offsets[1];
    if (begin > end) fail_file(path, tensor + "data_offsets " + span_text(entry) + " end before they begin");
    if (end > data_bytes) {
      fail_file(path, tensor + "data_offsets " + span_text(entry) + " exceed the file's " + std::to_string(data_bytes) +
                          " bytes of data; the file may be truncated");
    }
    const uint64_t needed = needed_bytes(path, name, entry);
    if (end - begin != needed) {
      fail_file(path, tensor + "data_offsets " + span_text(entry) + " are " + std::to_string(end - begin) +
                          " bytes, but its shape and dtype require " + std::to_string(needed));
    }
    in_order.push_back(&item);
  }

  // The format requires that tensors cover each byte of the data exactly once.
  std::sort(in_order.begin(), in_order.end(),
            [](const auto* a, const auto* b) { return a->second.offsets < b->second.offsets; });
  uint64_t covered = 0;
  const std::string* previous = nullptr;
  for (const auto* item : in_order) {
    const uint64_t begin = item->second.offsets[0];
    const std::string tensor = "tensor '" + printable(item->first) + "': data_offsets " + span_text(item->second);
    if (begin < covered) fail_file(path, tensor + " overlap those of '" + printable(*previous) + "'");
    if (begin > covered) fail_file(path, tensor + " leave a gap after byte " + std::to_string(covered));
    covered = item->second.offsets[1];
    previous = &item->first;
  }
  if (covered != data_bytes) {
    fail_file(path,
              "the tensors cover " + std::to_string(covered) + " of " + std::to_string(data_bytes) + " bytes of data");
  }

  for (auto& [name, entry] : entries) {
    StoredTensor tensor;
    tensor.name = name;
    tensor.dtype = std::move(entry.dtype);
    tensor.shape = std::move(entry.shape);
    tensor.file = &file;
    tensor.offset = 8 + header_bytes + entry.offsets[0];
    tensor.bytes = entry.offsets[1] - entry.offsets[0];
    const auto [it, inserted] = tensors_.emplace(name, std::move(tensor));
    if (!inserted) fail_file(path, "the tensor '" + printable(name) + "' is also in " + it->second.file->path());
  }
  return file;
}

void Checkpoint::read_shards(const std::string& directory, const CancelFlag* cancel) {
  const ShardIndex index = read_shard_index(path_);
  std::map<std::string, const InputFile*> files;
  for (const std::string& shard : index.shards) {
    const std::string path = directory + "/" + shard;
    if (!file_exists(path)) fail_file(path, "the shard is missing, and " + path_ + " names it");
    files[shard] = &read_file(path, cancel);
  }
  for (const auto& [name, shard] : index.shard_of) {
    const StoredTensor* tensor = find(name);
    const InputFile* file = files.at(*shard);
    const std::string place =
        file->path() + ": the tensor '" + printable(name) + "', which " + path_ + " places in this shard, is ";
    if (!tensor) throw Error(ErrorCode::invalid_checkpoint, place + "missing");
    if (tensor->file != file) throw Error(ErrorCode::invalid_checkpoint, place + "in " + tensor->file->path());
  }
  // Other readers of the format also ignore tensors that the index does not list.
  std::erase_if(tensors_, [&](const auto& item) { return !index.shard_of.count(item.first); });
}

}  // namespace diffqkv
