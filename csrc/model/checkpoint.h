// The safetensors files of a checkpoint directory, mapped into memory. Everything that a header says is checked before
// it is used: what `find` returns lies inside its file, and its bytes are as many as its shape and type need.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "backend/dtype.h"
#include "model/mapped_file.h"

namespace diffqkv {

struct StoredTensor {
  std::string dtype;              // as the file says it: "BF16", "F32", "I64", ...
  std::vector<int64_t> shape;     // its product does not overflow
  const uint8_t* data = nullptr;  // may stand at any address: read through memcpy
  uint64_t bytes = 0;
  const std::string* file = nullptr;  // path of the file that holds it, for messages
};

// F32, F16 and BF16, the types that a model's weights may have.
bool weight_dtype(const StoredTensor& tensor, DType* out);

class Checkpoint {
 public:
  // `directory` holds model.safetensors, or else model.safetensors.index.json and the shards that it names.
  explicit Checkpoint(const std::string& directory);
  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;

  const StoredTensor* find(const std::string& name) const;  // null where there is no such tensor
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  // Where a tensor that is not there was looked for: the one file, or the index.
  const std::string& path() const { return path_; }

 private:
  void read_file(const std::string& path);
  void read_shards(const std::string& directory);

  std::string path_;
  std::vector<MappedFile> files_;
  std::map<std::string, std::string> shard_paths_;  // shard name -> path; tensors_ point into the values
  std::map<std::string, StoredTensor> tensors_;
};

// Text from a file, fit for a message: at most 120 bytes, control characters escaped.
std::string printable(const std::string& text);

}  // namespace diffqkv
