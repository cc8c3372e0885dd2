// The instruction set that this process uses.
#pragma once

#include <string>

#include "backend/cpu/kernels.h"

namespace diffqkv::cpu {

struct CpuIsa {
  const Kernels* kernels;
  bool amx;
  bool forced;       // DIFFQKV_CPU_ISA selects it
  std::string name;  // "avx512_bf16+amx"
};

// The best one that CPU and operating system support, or the one that the environment variable
// DIFFQKV_CPU_ISA names (baseline, avx2, avx512, avx512_bf16 or amx). Decided once. Throws
// ERR_DEVICE_UNAVAILABLE if that value is unknown or not supported.
const CpuIsa& cpu_isa();

}  // namespace diffqkv::cpu
