// Which of the compiled instruction sets this process uses.
#pragma once

#include <string>

#include "backend/cpu/kernels.h"

namespace diffqkv::cpu {

struct CpuIsa {
  const Kernels* kernels;
  bool amx;
  bool forced;       // by DIFFQKV_CPU_ISA
  std::string name;  // "avx512_bf16+amx"
};

// The best that CPU and operating system support, or what the environment variable DIFFQKV_CPU_ISA asks for (baseline,
// avx2, avx512, avx512_bf16 or amx). Decided once. Throws ERR_DEVICE_UNAVAILABLE where that value is unknown or not
// supported.
const CpuIsa& cpu_isa();

}  // namespace diffqkv::cpu
