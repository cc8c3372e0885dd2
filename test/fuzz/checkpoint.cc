// The input is a whole checkpoint, opened by Model::load: a byte of options, then for each file a byte that says which, four
// bytes of length, and its bytes. test/fuzz/fuzz.test.ts reads the same form.

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "harness.h"
#include "host_backend.h"
#include "model/model.h"
#include "mutate.h"

namespace {

using namespace diffqkv;

const char* const kNames[] = {"config.json",       "generation_config.json",
                              "model.safetensors", "model.safetensors.index.json",
                              "a.safetensors",     "b.safetensors"};

struct File {
  uint8_t kind;
  std::string bytes;
};

struct Input {
  uint8_t options = 0;
  std::vector<File> files;
};

Input parse(std::string_view data) {
  Input input;
  if (data.empty()) return input;
  input.options = static_cast<uint8_t>(data[0]);
  size_t at = 1;
  while (data.size() - at >= 5 && input.files.size() < 8) {
    const auto kind = static_cast<uint8_t>(static_cast<uint8_t>(data[at]) % std::size(kNames));
    uint32_t length;
    memcpy(&length, data.data() + at + 1, 4);
    at += 5;
    length = std::min<uint32_t>(length, data.size() - at);
    input.files.push_back({kind, std::string(data.substr(at, length))});
    at += length;
  }
  return input;
}

std::string join(const Input& input) {
  std::string data(1, static_cast<char>(input.options));
  for (const File& file : input.files) {
    const auto length = static_cast<uint32_t>(file.bytes.size());
    data += static_cast<char>(file.kind);
    data.append(reinterpret_cast<const char*>(&length), 4);
    data += file.bytes;
  }
  return data;
}

void mutate(std::string& data, size_t max_size, fuzz::Random& random) {
  Input input = parse(data);
  if (input.files.empty() || random() % 32 == 0) return fuzz::mutate_bytes(data, max_size);
  if (random() % 32 == 0) input.options = static_cast<uint8_t>(random());
  File& file = input.files[random() % input.files.size()];
  const size_t room = max_size > data.size() ? max_size - data.size() : 0, limit = file.bytes.size() + room;
  if (random() % 32 == 0)
    file.kind = static_cast<uint8_t>(random() % std::size(kNames));
  else if (strstr(kNames[file.kind], ".json"))
    fuzz::mutate_json(file.bytes, limit, random);
  else
    fuzz::mutate_safetensors(file.bytes, limit, random);
  data = join(input);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const Input input = parse({reinterpret_cast<const char*>(data), size});
  fuzz::clear_files();
  for (const File& file : input.files) fuzz::put_file(kNames[file.kind], file.bytes);
  LoadOptions options;
  static constexpr DType kTypes[] = {DType::f32, DType::f16, DType::bf16};
  if (input.options % 4 != 0) options.dtype = kTypes[input.options % 4 - 1];
  // Of one in eight, some allocation of device memory fails.
  const int fails_at = (input.options >> 2) % 8 == 7 ? input.options >> 5 : -1;
  const auto backend = std::make_shared<fuzz::HostBackend>(fails_at);
  std::shared_ptr<Model> model;
  if (fuzz::opens(40, [&] { model = Model::load(backend, fuzz::kDirectory, options); }))
    fuzz::check(model->weight_bytes().total() <= 4 * size + (64 << 10),
                "weights of more bytes than the files can hold");
  model.reset();
  fuzz::check(backend->allocated() == 0, "device memory that is not given back");
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  return fuzz::mutate_with(mutate, data, size, max_size, seed);
}
