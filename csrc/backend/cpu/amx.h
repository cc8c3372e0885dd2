// AMX by inline assembly. Unlike the intrinsics, it states which memory is accessed and needs no
// target attribute, so it can be inlined. Tile numbers are part of the instruction, so the wrappers
// are macros. Strides are in bytes.
#pragma once

#include "backend/cpu/simd.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

#if defined(__AVX512BF16__)
#define DIFFQKV_TILE_LOAD(tile, base, stride) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(base), "r"(static_cast<int64_t>(stride)) : "memory")
#define DIFFQKV_TILE_STORE(tile, base, stride) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(base), "r"(static_cast<int64_t>(stride)) : "memory")
#define DIFFQKV_TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile : :)
#define DIFFQKV_TILE_DOT(c, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : :)

struct alignas(64) TileConfig {
  uint8_t palette = 0, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t rows[16] = {};
};
#endif

// Saves and restores the tile configuration of the calling thread. oneDNN, whose kernels run in the
// same OpenMP threads, may have its own.
class AmxScope {
 public:
  DIFFQKV_INLINE explicit AmxScope(bool enable) : enabled_(enable) {
#if defined(__AVX512BF16__)
    if (!enabled_) return;
    asm volatile("sttilecfg %0" : "=m"(saved_));
#endif
  }
  DIFFQKV_INLINE ~AmxScope() {
#if defined(__AVX512BF16__)
    if (!enabled_) return;
    if (saved_.palette == 0) {
      asm volatile("tilerelease" : :);
    } else {
      asm volatile("ldtilecfg %0" : : "m"(saved_));
    }
#endif
  }
  AmxScope(const AmxScope&) = delete;
  AmxScope& operator=(const AmxScope&) = delete;

 private:
  bool enabled_;
#if defined(__AVX512BF16__)
  TileConfig saved_;
#endif
};

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
