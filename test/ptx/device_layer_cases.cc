// A case for each function of the device layer.
#include <cstring>

#include "cases.h"
#include "wrapper_inputs.h"
#include "wrappers.h"

namespace diffqkv::ptx {

std::vector<Case> device_layer_cases() {
  using namespace emulated;
  constexpr int kBlocks = 8;
  std::vector<Case> cases;
  for (const Wrapper& wrapper : wrappers()) {
    cases.push_back({std::string("device layer: ") + wrapper.name, [wrapper] {
                       const std::vector<uint32_t> words = check::wrapper_input(wrapper.input, kBlocks, 7);
                       std::vector<uint8_t> bytes(words.size() * 4);
                       std::memcpy(bytes.data(), words.data(), bytes.size());
                       Call call;
                       const uint8_t* const in = add_tensor(call, "in", DType::i32, bytes);
                       const bool are_bits = wrapper.input == Input::bits;
                       // A sum is judged by its warp's largest, an approximation by itself.
                       uint8_t* const out = add_output(
                           call, "out", are_bits ? DType::i32 : DType::f32, size_t{kBlocks} * 32 * kOut,
                           wrapper.exact ? Comparison::bits : Comparison::values, wrapper.approximate ? 1 : 32 * kOut);
                       call.enqueue = [wrapper, in, out](Context& context) {
                         LaunchShape shape;
                         shape.grid[0] = kBlocks;
                         shape.shared_bytes = 512;
                         launch(wrapper.name, wrapper.kernel, shape, context.stream,
                                reinterpret_cast<const uint32_t*>(in), reinterpret_cast<uint32_t*>(out));
                       };
                       return call;
                     }});
  }
  return cases;
}

}  // namespace diffqkv::ptx
