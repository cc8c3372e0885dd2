// The AMX instructions, by inline assembly. Unlike the intrinsics, it states which memory is
// accessed and needs no target attribute, so it can be inlined. Tile numbers are part of the
// instruction, so the wrappers are macros. Strides are in bytes. A config is a TileConfig.
#pragma once

#define DIFFQKV_TILE_LOAD_CONFIG(config) asm volatile("ldtilecfg %0" : : "m"(config))
#define DIFFQKV_TILE_STORE_CONFIG(config) asm volatile("sttilecfg %0" : "=m"(config))
#define DIFFQKV_TILE_RELEASE() asm volatile("tilerelease" : :)
#define DIFFQKV_TILE_LOAD(tile, base, stride) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(base), "r"(static_cast<int64_t>(stride)) : "memory")
#define DIFFQKV_TILE_STORE(tile, base, stride) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(base), "r"(static_cast<int64_t>(stride)) : "memory")
#define DIFFQKV_TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile : :)
// c += a b, of pairs of bf16.
#define DIFFQKV_TILE_DOT(c, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : :)
// c += a b, of groups of four i8. AMX-BF16 does not imply that a CPU has it.
#define DIFFQKV_TILE_DOT_BYTES(c, a, b) asm volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c : :)
#define DIFFQKV_HAS_TILE_DOT_BYTES() __builtin_cpu_supports("amx-int8")
