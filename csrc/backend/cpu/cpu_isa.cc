#include "backend/cpu/cpu_isa.h"

#include <cstdlib>
#include <string>

#include "backend/error.h"

#if defined(DIFFQKV_X86)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace diffqkv::cpu {
namespace {

struct Level {
  const char* name;  // as in DIFFQKV_CPU_ISA
  const Kernels* kernels;
  bool amx;
  bool (*supported)();
};

#if defined(DIFFQKV_X86)

// __builtin_cpu_supports looks at XGETBV too: registers that the system doesn't save count as missing.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

// The CPU has tiles and bf16 products on them, the system saves their state, and grants this process its use: Linux
// wants to be asked (arch_prctl), since the state makes signal frames bigger.
bool has_amx() {
  if (!has_avx512_bf16()) return false;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if (!(edx & kAmxBf16) || !(edx & kAmxTile)) return false;
  unsigned xcr0_low = 0, xcr0_high = 0;
  __asm__ volatile("xgetbv" : "=a"(xcr0_low), "=d"(xcr0_high) : "c"(0));
  constexpr unsigned kTileConfig = 1u << 17, kTileData = 1u << 18;
  if (!(xcr0_low & kTileConfig) || !(xcr0_low & kTileData)) return false;
#if defined(__linux__)
  constexpr int kArchReqXcompPerm = 0x1023, kXfeatureTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) == 0;
#else
  return false;
#endif
}

#endif

bool always() { return true; }

const Level kLevels[] = {
    {"baseline", &baseline::kernels, false, always},
#if defined(DIFFQKV_X86)
    {"avx2", &avx2::kernels, false, has_avx2},
    {"avx512", &avx512::kernels, false, has_avx512},
    {"avx512_bf16", &avx512_bf16::kernels, false, has_avx512_bf16},
    {"amx", &avx512_bf16::kernels, true, has_amx},
#endif
};

CpuIsa make(const Level& level, bool forced) {
  return {level.kernels, level.amx, forced, std::string(level.kernels->name) + (level.amx ? "+amx" : "")};
}

CpuIsa choose() {
#if defined(DIFFQKV_X86)
  __builtin_cpu_init();
#endif
  const char* wanted = std::getenv("DIFFQKV_CPU_ISA");
  const bool forced = wanted && *wanted;
  const Level* best = nullptr;
  std::string allowed;
  for (const Level& level : kLevels) {
    // In rising order, and what needs to ask the system comes last: not asked where a lower level is wanted.
    if (forced && best && best->name == std::string(wanted)) break;
    if (!level.supported()) continue;
    allowed += (best ? ", " : "") + std::string(level.name);
    best = &level;
  }
  if (forced && best->name != std::string(wanted)) {
    fail(ErrorCode::device_unavailable, "DIFFQKV_CPU_ISA is '%s'; this CPU supports %s. Unset it for the best of them",
         wanted, allowed.c_str());
  }
  return make(*best, forced);
}

}  // namespace

const CpuIsa& cpu_isa() {
  static const CpuIsa isa = choose();
  return isa;
}

bool use_amx() { return cpu_isa().amx; }

}  // namespace diffqkv::cpu
