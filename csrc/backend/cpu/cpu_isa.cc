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

#if defined(DIFFQKV_X86)

// __builtin_cpu_supports checks XGETBV too: registers that the system does not save count as
// missing.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

// Whether the CPU has tiles and bf16 products, the system saves their state, and it allows this
// process to use them. Linux requires a request (arch_prctl), because the state makes signal frames
// larger.
bool has_amx() {
  if (!has_avx512_bf16()) return false;
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kAmxBf16 = 1u << 22;
  constexpr unsigned kAmxTile = 1u << 24;
  if (!(edx & kAmxBf16) || !(edx & kAmxTile)) return false;
  unsigned xcr0_low = 0;
  unsigned xcr0_high = 0;
  __asm__ volatile("xgetbv" : "=a"(xcr0_low), "=d"(xcr0_high) : "c"(0));
  constexpr unsigned kTileConfig = 1u << 17;
  constexpr unsigned kTileData = 1u << 18;
  if (!(xcr0_low & kTileConfig) || !(xcr0_low & kTileData)) return false;
#if defined(__linux__)
  constexpr int kArchReqXcompPerm = 0x1023;
  constexpr int kXfeatureTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) == 0;
#else
  return false;
#endif
}

#endif

bool always() { return true; }

CpuIsa make(const IsaLevel& level, bool forced) {
  std::string name = level.kernels->name;
  if (level.name != name) name += std::string("+") + level.name;
  return {level.kernels, level.amx, forced, name};
}

CpuIsa choose() {
#if defined(DIFFQKV_X86)
  __builtin_cpu_init();
#endif
  const char* wanted = std::getenv("DIFFQKV_CPU_ISA");
  const bool forced = wanted && *wanted;
  const IsaLevel* best = nullptr;
  std::string allowed;
  for (const IsaLevel& level : isa_levels()) {
    // has_amx asks the system for AMX, so it must not run if a lower level is wanted.
    if (forced && best && best->name == std::string(wanted)) break;
    if (!level.supported()) continue;
    allowed += (best ? ", " : "") + std::string(level.name);
    if (!level.only_by_name || (forced && level.name == std::string(wanted))) best = &level;
  }
  if (forced && best->name != std::string(wanted)) {
    fail(ErrorCode::device_unavailable,
         "DIFFQKV_CPU_ISA is '%s', but this CPU supports %s; set one of these, or unset it to use the best", wanted,
         allowed.c_str());
  }
  return make(*best, forced);
}

}  // namespace

#if defined(DIFFQKV_X86)
bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}
#endif

std::vector<IsaLevel>& isa_levels() {
  static std::vector<IsaLevel>* const levels = new std::vector<IsaLevel> {
    {.name = "baseline", .kernels = &baseline::kernels, .amx = false, .supported = always},
#if defined(DIFFQKV_X86)
        {.name = "avx2", .kernels = &avx2::kernels, .amx = false, .supported = has_avx2},
        {.name = "avx512", .kernels = &avx512::kernels, .amx = false, .supported = has_avx512},
        {.name = "avx512_bf16", .kernels = &avx512_bf16::kernels, .amx = false, .supported = has_avx512_bf16},
        {.name = "amx", .kernels = &avx512_bf16::kernels, .amx = true, .supported = has_amx},
#endif
  };
  return *levels;
}

const CpuIsa& cpu_isa() {
  static const CpuIsa isa = choose();
  return isa;
}

bool use_amx() { return cpu_isa().amx; }

bool one_prefetch_stream() {
#if defined(DIFFQKV_X86)
  __builtin_cpu_init();
  static const bool amd = __builtin_cpu_is("amd");
  return amd;
#else
  return false;
#endif
}

}  // namespace diffqkv::cpu
