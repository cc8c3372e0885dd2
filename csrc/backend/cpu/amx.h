// AMX: its instructions, the configuration of its tiles, and the scope in which a thread uses them.
#pragma once

#include "backend/cpu/amx_instructions.h"
#include "backend/cpu/simd.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

#if defined(__AVX512BF16__)
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
    DIFFQKV_TILE_STORE_CONFIG(saved_);
#endif
  }
  DIFFQKV_INLINE ~AmxScope() {
#if defined(__AVX512BF16__)
    if (!enabled_) return;
    if (saved_.palette == 0) {
      DIFFQKV_TILE_RELEASE();
    } else {
      DIFFQKV_TILE_LOAD_CONFIG(saved_);
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
