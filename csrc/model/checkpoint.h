// The safetensors files of a checkpoint directory. Headers are checked in full: the data of a tensor
// that `find` returns is inside its file and has the size that its shape and type require.
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/dtype.h"
#include "model/input_file.h"

namespace diffqkv {

// Set by another thread to end a call early. The call then throws ErrorCode::aborted.
using CancelFlag = std::atomic<bool>;

class PackedWeight;
struct Quantization;

struct StoredTensor {
  std::string name;
  std::string dtype;           // as in the file: "BF16", "F32", "I64", ...
  std::vector<int64_t> shape;  // the product does not overflow if no dimension is 0
  const InputFile* file = nullptr;
  uint64_t offset = 0;  // of its data in the file, in bytes
  uint64_t bytes = 0;
  // A quantized weight: `file` has its integers, and the other fields describe its values in f32.
  std::shared_ptr<const PackedWeight> packed;

  // Reads `count` bytes of the data from `begin` on. Of a quantized weight, whole elements.
  void read(void* out, uint64_t begin, uint64_t count) const;
  std::string place() const;  // "FILE: the tensor 'NAME' ", for messages
};

// The type of a weight: F32, F16 or BF16. Empty for other types.
std::optional<DType> weight_dtype(const StoredTensor& tensor);

class Checkpoint {
 public:
  // `directory` has model.safetensors, or model.safetensors.index.json and the shards that it
  // names.
  explicit Checkpoint(const std::string& directory, const CancelFlag* cancel = nullptr);
  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;

  // Null if there is no such tensor. Names are those of a causal language model in transformers,
  // such as model.norm.weight, also if the file has other prefixes (simple_name).
  const StoredTensor* find(const std::string& name) const;
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  // Replaces the parts of each quantized weight by the weight (packed_weights.h).
  void combine_parts(const Quantization& quantization);
  // The single file or the index, for messages about missing tensors.
  const std::string& path() const { return path_; }

 private:
  const InputFile& read_file(const std::string& path, const CancelFlag* cancel);
  void read_shards(const std::string& directory, const CancelFlag* cancel);
  void simplify_names();

  std::string path_;
  std::list<InputFile> files_;  // tensors_ point to them
  std::map<std::string, StoredTensor> tensors_;
};

// Shortens UTF-8 text from a file to 120 bytes and escapes control characters (U+0000 to U+001F,
// U+007F to U+009F), for messages.
std::string printable(const std::string& text);

}  // namespace diffqkv
