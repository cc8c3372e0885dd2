// The instruction set that this process uses.
#pragma once

#include <string>
#include <vector>

#include "backend/cpu/kernels.h"

namespace diffqkv::cpu {

struct IsaLevel {
  const char* name;  // as in DIFFQKV_CPU_ISA
  const Kernels* kernels;
  bool amx;
  bool (*supported)();
  bool only_by_name = false;  // never the best one, used only if DIFFQKV_CPU_ISA names it
};

// In rising order. A module that has more adds them when it is loaded, before anything opens a
// device.
std::vector<IsaLevel>& isa_levels();

struct CpuIsa {
  const Kernels* kernels;
  bool amx;
  bool forced;       // DIFFQKV_CPU_ISA selects it
  std::string name;  // "avx512_bf16+amx"
};

// The best one that CPU and operating system support, or the one that the environment variable
// DIFFQKV_CPU_ISA names (one of isa_levels). Decided once. Throws
// ERR_DEVICE_UNAVAILABLE if that value is unknown or not supported.
const CpuIsa& cpu_isa();

#if defined(DIFFQKV_X86)
bool has_avx512_bf16();
#endif

}  // namespace diffqkv::cpu
