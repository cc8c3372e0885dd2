// The input is a model.safetensors.index.json over two shards that are always the same.

#include <cstring>
#include <memory>

#include "harness.h"
#include "model/checkpoint.h"
#include "model/json_text.h"
#include "mutate.h"

namespace {

using namespace diffqkv;

std::string shard(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string file(8, '\0');
  memcpy(file.data(), &length, 8);
  return file + header + std::string(data_bytes, '\x3c');
}

const std::string first = shard(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                                R"("y":{"dtype":"BF16","shape":[1,3],"data_offsets":[8,14]}})",
                                14);
const std::string second =
    shard(R"({"__metadata__":{"format":"pt"},"z":{"dtype":"F16","shape":[0,4],"data_offsets":[0,0]},)"
          R"("w":{"dtype":"U8","shape":[],"data_offsets":[0,1]}})",
          1);

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view index(reinterpret_cast<const char*>(data), size);
  fuzz::clear_files();
  fuzz::put_file("a.safetensors", first);
  fuzz::put_file("b.safetensors", second);
  fuzz::put_file("model.safetensors.index.json", index);
  std::unique_ptr<Checkpoint> checkpoint;
  if (!fuzz::opens(40, [&] { checkpoint = std::make_unique<Checkpoint>(fuzz::kDirectory); })) return 0;
  const Json map = Json::parse(index)["weight_map"];
  fuzz::check(map.size() == checkpoint->tensors().size(), "another number of tensors");
  for (const auto& [name, file] : map.items()) {
    const StoredTensor* tensor = checkpoint->find(name);
    fuzz::check(tensor && tensor->file->path() == fuzz::kDirectory + "/" + file.get<std::string>(),
                "a tensor of another shard");
  }
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  return fuzz::mutate_with(fuzz::mutate_json, data, size, max_size, seed);
}
