// The loops of CpuCeilings, for one thread. read_stream is bound by memory, multiply_registers by the multiply units.
#include "backend/cpu/amx.h"
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/simd.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

constexpr int kSums = 8;

// Reads kStreams equal parts of [p, p + count) side by side. Returns the bitwise or of what it reads, so that the
// compiler keeps the loads.
template <int kStreams, bool kPrefetch>
uint32_t read_parts(const U32v* p, int64_t count, int64_t prefetch_bytes) {
  constexpr int kUnroll = kSums / kStreams;
  U32v sums[kSums] = {};
  const int64_t part = count / kStreams;
  for (int64_t i = 0; i + kUnroll <= part; i += kUnroll) {
    for (int s = 0; s < kStreams; ++s) {
      for (int u = 0; u < kUnroll; ++u) {
        const U32v* at = p + s * part + i + u;
        if (kPrefetch) __builtin_prefetch(reinterpret_cast<const char*>(at) + prefetch_bytes, 0, 3);
        sums[s * kUnroll + u] |= *at;
      }
    }
  }
  U32v all = {};
  for (const U32v& sum : sums) all |= sum;
  return all[0] | all[kLanes - 1];
}

// Enough independent sums to hide the latency of the multiply units.
constexpr int kChains = 12;

double multiply_f32(int64_t rounds, float* sink) {
  F32v sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = set1(static_cast<float>(i) + *sink);
  // Each product depends on the one before it, so the compiler cannot move it out of the loop.
  const F32v a = set1(*sink + 0.5f), b = set1(*sink + 1.0f);
  for (int64_t round = 0; round < rounds; ++round) {
    for (F32v& sum : sums) sum = fma(sum, a, b);
  }
  for (const F32v& sum : sums) *sink += sum[0];
  return 2.0 * kLanes * kChains * static_cast<double>(rounds);
}

#if defined(__AVX512BF16__)

double multiply_bf16(int64_t rounds, float* sink) {
  __m512 sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i) + *sink);
  const __m512bh a = (__m512bh)_mm512_set1_epi32(static_cast<int>(*sink) + 0x3f803f80);
  for (int64_t round = 0; round < rounds; ++round) {
    for (__m512& sum : sums) sum = _mm512_dpbf16_ps(sum, a, a);
  }
  for (const __m512& sum : sums) *sink += sum[0];
  return 2.0 * 32 * kChains * static_cast<double>(rounds);
}

double multiply_tiles(int64_t rounds) {
  if (!use_amx()) return 0;
  const AmxScope scope(true);
  TileConfig config;
  config.palette = 1;
  for (int tile = 0; tile < 6; ++tile) {
    config.bytes_per_row[tile] = 64;
    config.rows[tile] = 16;
  }
  DIFFQKV_TILE_LOAD_CONFIG(config);
  DIFFQKV_TILE_ZERO(0);
  DIFFQKV_TILE_ZERO(1);
  DIFFQKV_TILE_ZERO(2);
  DIFFQKV_TILE_ZERO(3);
  DIFFQKV_TILE_ZERO(4);
  DIFFQKV_TILE_ZERO(5);
  for (int64_t round = 0; round < rounds; ++round) {
    DIFFQKV_TILE_DOT(0, 4, 5);
    DIFFQKV_TILE_DOT(1, 4, 5);
    DIFFQKV_TILE_DOT(2, 4, 5);
    DIFFQKV_TILE_DOT(3, 4, 5);
  }
  return 2.0 * 16 * 16 * 32 * 4 * static_cast<double>(rounds);
}

#else

double multiply_bf16(int64_t, float*) { return 0; }
double multiply_tiles(int64_t) { return 0; }

#endif

}  // namespace

uint32_t read_stream(const void* data, int64_t bytes, int streams, int64_t prefetch_bytes) {
  const auto* p = static_cast<const U32v*>(data);
  const int64_t count = bytes / static_cast<int64_t>(sizeof(U32v));
  const bool prefetch = prefetch_bytes > 0;
  switch (streams) {
    case 1: return prefetch ? read_parts<1, true>(p, count, prefetch_bytes) : read_parts<1, false>(p, count, 0);
    case 2: return prefetch ? read_parts<2, true>(p, count, prefetch_bytes) : read_parts<2, false>(p, count, 0);
    default: return prefetch ? read_parts<4, true>(p, count, prefetch_bytes) : read_parts<4, false>(p, count, 0);
  }
}

double multiply_registers(MultiplyUnit unit, int64_t rounds, float* sink) {
  switch (unit) {
    case MultiplyUnit::bf16: return multiply_bf16(rounds, sink);
    case MultiplyUnit::tiles: return multiply_tiles(rounds);
    default: return multiply_f32(rounds, sink);
  }
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
