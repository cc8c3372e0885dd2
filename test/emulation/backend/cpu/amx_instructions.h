// Replaces the AMX instructions of csrc/backend/cpu/amx_instructions.h with functions that compute the same. The kernels of
// the level `emulated_amx`, which only the tests' module has, are compiled with it, and so run on a CPU that has AVX512-BF16
// but no AMX.
//
// An instruction that the CPU would stop with #UD or #GP ends the process here, with a message.
#pragma once

#include <stdint.h>

namespace diffqkv::cpu::emulated_amx {

// Each thread has its own eight tiles and configuration, as a core has.
void ldtilecfg(const void* config);
void sttilecfg(void* config);
void tilerelease();
void tileloadd(int tile, const void* base, int64_t stride);
void tilestored(int tile, void* base, int64_t stride);
void tilezero(int tile);
void tdpbf16ps(int c, int a, int b);
void tdpbssd(int c, int a, int b);

}  // namespace diffqkv::cpu::emulated_amx

#define DIFFQKV_TILE_LOAD_CONFIG(config) ::diffqkv::cpu::emulated_amx::ldtilecfg(&(config))
#define DIFFQKV_TILE_STORE_CONFIG(config) ::diffqkv::cpu::emulated_amx::sttilecfg(&(config))
#define DIFFQKV_TILE_RELEASE() ::diffqkv::cpu::emulated_amx::tilerelease()
#define DIFFQKV_TILE_LOAD(tile, base, stride) ::diffqkv::cpu::emulated_amx::tileloadd(tile, base, stride)
#define DIFFQKV_TILE_STORE(tile, base, stride) ::diffqkv::cpu::emulated_amx::tilestored(tile, base, stride)
#define DIFFQKV_TILE_ZERO(tile) ::diffqkv::cpu::emulated_amx::tilezero(tile)
#define DIFFQKV_TILE_DOT(c, a, b) ::diffqkv::cpu::emulated_amx::tdpbf16ps(c, a, b)
#define DIFFQKV_TILE_DOT_BYTES(c, a, b) ::diffqkv::cpu::emulated_amx::tdpbssd(c, a, b)
#define DIFFQKV_HAS_TILE_DOT_BYTES() true
