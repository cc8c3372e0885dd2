#include "cases.h"

#include <cstring>

#include "backend/backend.h"
#include "wrapper_inputs.h"
#include "wrappers.h"

namespace diffqkv::ptx {

namespace {

using namespace emulated;

void add_device_layer(std::vector<NamedCall>* cases) {
  constexpr int kBlocks = 8;
  for (const Wrapper& wrapper : wrappers()) {
    cases->push_back({std::string("device layer: ") + wrapper.name, [wrapper] {
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
}

}  // namespace

std::vector<NamedCall> all_cases() {
  std::vector<NamedCall> cases = ptx_calls();
  add_device_layer(&cases);
  cases.push_back({"the probe of a device that is opened", [] {
                     Call call;
                     call.enqueue = [](Context&) { make_backend(0)->synchronize(); };
                     return call;
                   }});
  return cases;
}

}  // namespace diffqkv::ptx
