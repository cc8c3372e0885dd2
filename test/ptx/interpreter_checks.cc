#include "interpreter_checks.h"

#include <cstring>

#include "backend/dtype.h"
#include "engine/engine.h"
#include "global_memory.h"
#include "machine.h"

namespace diffqkv::ptx {

std::string with(std::string text, const std::string& name, const std::string& value) {
  for (size_t at = text.find(name); at != std::string::npos; at = text.find(name, at + value.size()))
    text.replace(at, name.size(), value);
  return text;
}

std::string execute(const std::string& body, Words* memory, const Run& how, int stride) {
  constexpr const char* kEntry = R"(.version 8.0
    .target sm_80
    .address_size 64
    .extern .shared .align 128 .b8 shared[];
    .visible .entry kernel(.param .u64 kernel_param_0)
    .maxntid 256, 1, 1
    {
      .reg .pred %p<20>;
      .reg .b16 %rs<20>;
      .reg .b32 %r<60>;
      .reg .f32 %f<20>;
      .reg .b64 %rd<20>;
      .reg .f64 %fd<20>;
      ld.param.u64 %rd1, [kernel_param_0];
      mov.u32 %r1, %tid.x;
      mul.wide.u32 %rd2, %r1, STRIDE;
      add.s64 %rd2, %rd2, %rd1;
      BODY
      ret;
    })";
  // 16 bytes that nobody may touch, or more, lie before and after.
  std::vector<unsigned char> storage(memory->size() * 4 + 64, 0xee);
  unsigned char* const data = storage.data() + 32 - reinterpret_cast<uintptr_t>(storage.data()) % 16;
  std::memcpy(data, memory->data(), memory->size() * 4);
  emulated::add_memory(data, memory->size() * 4);
  std::string fault;
  try {
    const auto module = parse_module("a check", with(with(kEntry, "STRIDE", std::to_string(stride)), "BODY", body));
    Grid grid;
    grid.entry = &module->entries[0];
    grid.size = {how.blocks, 1, 1};
    grid.threads = how.threads;
    grid.shared_bytes = how.shared_bytes;
    grid.seed = how.seed;
    grid.parameters.resize(sizeof(data));
    std::memcpy(grid.parameters.data(), &data, sizeof(data));
    GlobalMemory global(how.threads);
    Block block;
    for (unsigned i = 0; i < how.blocks; ++i) block.run(grid, global, {i, 0, 0}, i);
  } catch (const Fault& found) {
    fault = found.what();
  }
  emulated::remove_memory(data);
  std::memcpy(memory->data(), data, memory->size() * 4);
  return fault;
}

float f16_value(uint32_t bits) {
  float value;
  const uint16_t half = static_cast<uint16_t>(bits);
  convert_to_f32(DType::f16, &value, &half, 1);
  return value;
}
float bf16_value(uint32_t bits) { return float_of(bits << 16); }

}  // namespace diffqkv::ptx
