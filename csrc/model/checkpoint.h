// The safetensors files of a checkpoint directory, mapped into memory. Headers are checked in full:
// the data of a tensor that `find` returns is inside its file and has the size that its shape and
// type require.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "backend/dtype.h"
#include "model/mapped_file.h"

namespace diffqkv {

struct StoredTensor {
  std::string dtype;              // as in the file: "BF16", "F32", "I64", ...
  std::vector<int64_t> shape;     // the product does not overflow
  const uint8_t* data = nullptr;  // may be unaligned: read it with memcpy
  uint64_t bytes = 0;
  const std::string* file = nullptr;  // path of its file, for messages
};

// Converts the types that weights may have: F32, F16 and BF16. Returns false for others.
bool weight_dtype(const StoredTensor& tensor, DType* out);

class Checkpoint {
 public:
  // `directory` has model.safetensors, or model.safetensors.index.json and the shards that it
  // names.
  explicit Checkpoint(const std::string& directory);
  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;

  const StoredTensor* find(const std::string& name) const;  // null if there is no such tensor
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  // The single file or the index, for messages about missing tensors.
  const std::string& path() const { return path_; }

 private:
  void read_file(const std::string& path);
  void read_shards(const std::string& directory);

  std::string path_;
  std::vector<MappedFile> files_;
  std::map<std::string, std::string> shard_paths_;  // by shard name; tensors_ point to the values
  std::map<std::string, StoredTensor> tensors_;
};

// Shortens text from a file to 120 bytes and escapes control characters, for messages.
std::string printable(const std::string& text);

}  // namespace diffqkv
