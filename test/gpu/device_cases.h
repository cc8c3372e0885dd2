// The cases of gpu_driver, compiled for the device that it runs on.
#pragma once

#include "calls/call.h"
#include "driver.h"

namespace diffqkv::cuda {

// Known once the device is open.
struct DeviceShape {
  int multiprocessors = 1;
  size_t shared_bytes = 0;  // of a block
  size_t l2_bytes = 0;
};
DeviceShape device_shape();

std::vector<driver::Case> correctness_cases(const driver::Options& options);
std::vector<driver::Case> timing_cases(const driver::Options& options);
// A case that goes wrong deliberately: hang, crash, abort or fail.
driver::Case broken_case(const std::string& kind);

// Runs the call, compares all that it writes, and returns what is wrong. `emulated`: what the emulation of the device
// makes of the same call's outputs, if it is to be compared.
driver::Result check_call(Call& call, const std::vector<std::vector<uint8_t>>* emulated);

}  // namespace diffqkv::cuda
