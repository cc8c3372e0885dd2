// The emulation beside the GPU: what it makes of a small call.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace diffqkv::driver {

// The bytes of the outputs of the call with this name in operator_calls(), in the order of Call::outputs.
std::vector<std::vector<uint8_t>> emulated_outputs(const std::string& name);

}  // namespace diffqkv::driver
