// What tests make go wrong on the device `emulated`.
#pragma once

#include <cstdint>
#include <string>

namespace diffqkv {

struct EmulatedFault {
  std::string call;  // a function of the CUDA runtime; "kernel": while it runs, and what waits for it hears of it
  uint64_t first = 0, times = 0;  // which of the calls from now on, counted from 1, and how many from there on
  int status = 0;                 // the cudaError_t that they answer; 700 and 719 stay, and the device is lost
};
// In place of the one before, of whose call it gives how often it has come since that was set. From any thread.
uint64_t set_emulated_fault(const EmulatedFault& fault);

}  // namespace diffqkv
