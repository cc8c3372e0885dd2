// The input is a model.safetensors. What is accepted is held against a reader that builds the whole tree.

#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "harness.h"
#include "model/checkpoint.h"
#include "model/json_text.h"
#include "mutate.h"

namespace {

using namespace diffqkv;

void check_tensors(const Checkpoint& checkpoint, std::string_view file) {
  uint64_t length;
  memcpy(&length, file.data(), 8);
  const std::string_view header = file.substr(8, length), data = file.substr(8 + length);
  const Json json = Json::parse(header);
  std::map<std::string, const StoredTensor*> by_name;  // as in the file, where names may have prefixes
  for (const auto& [simple, tensor] : checkpoint.tensors()) by_name[tensor.name] = &tensor;
  size_t count = 0;
  for (const auto& [name, entry] : json.items()) {
    if (name == "__metadata__") continue;
    count++;
    fuzz::check(by_name.count(name) == 1, "a tensor is missing");
    const StoredTensor* tensor = by_name[name];
    const uint64_t begin = entry["data_offsets"][0].get<uint64_t>(), end = entry["data_offsets"][1].get<uint64_t>();
    fuzz::check(begin <= end && end <= data.size() && tensor->bytes == end - begin, "a tensor outside of the file");
    fuzz::check(tensor->dtype == entry["dtype"].get<std::string>() &&
                    tensor->shape == entry["shape"].get<std::vector<int64_t>>(),
                "another type or shape");
    std::string bytes(tensor->bytes, '\0');
    tensor->file->read(bytes.data(), tensor->offset, tensor->bytes);
    fuzz::check(bytes == data.substr(begin, tensor->bytes), "other bytes");
    const std::optional<DType> dtype = weight_dtype(*tensor);
    if (!dtype) continue;
    uint64_t elements = 1;
    for (const int64_t size : tensor->shape) elements *= static_cast<uint64_t>(size);
    fuzz::check(elements * dtype_size(*dtype) == tensor->bytes, "bytes that do not fit the shape");
  }
  fuzz::check(count == checkpoint.tensors().size(), "another number of tensors");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view file(reinterpret_cast<const char*>(data), size);
  fuzz::clear_files();
  fuzz::put_file("model.safetensors", file);
  std::unique_ptr<Checkpoint> checkpoint;
  if (fuzz::opens(40, [&] { checkpoint = std::make_unique<Checkpoint>(fuzz::kDirectory); }))
    check_tensors(*checkpoint, file);
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  return fuzz::mutate_with(fuzz::mutate_safetensors, data, size, max_size, seed);
}
