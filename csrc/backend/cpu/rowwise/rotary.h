// Rotate-half RoPE of the heads of one token, for rope and kv_append.
#pragma once

#include "backend/cpu/simd.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

constexpr int kRotaryBlock = 128;  // pairs of dims whose cosines and sines are computed at once

// scale times cos and sin of position * inv_freq[i], or 1 and 0 if inv_freq[i] is 0, with an absolute error of about 1e-7. The angle is
// computed in float64 and reduced there to r in [-pi/4, pi/4] by multiples of pi/2. pi/2 is the sum
// of three parts, of which the first two have 30 bits, so that their products with a multiple below
// 2^23 are exact. The polynomials are those of the Cephes library, in float32. Both loops are
// written for the compiler to vectorize.
inline __attribute__((noinline)) void cos_sin(int32_t position, const double* inv_freq, float scale, int count,
                                              float* cos_out, float* sin_out) {
  float r[kRotaryBlock];
  int32_t quadrant[kRotaryBlock];
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer in the low bits
  for (int i = 0; i < count; ++i) {
    const double angle = position * inv_freq[i];
    const double shifted = angle * 0.63661977236758134308 + kRound;
    const double n = shifted - kRound;
    r[i] = static_cast<float>(((angle - n * 0x1.921fb54000000p+0) - n * 0x1.10b4610000000p-30) -
                              n * 0x1.a62633145c06ep-58);
    quadrant[i] = static_cast<int32_t>(bit_cast<uint64_t>(shifted));
  }
  for (int i = 0; i < count; ++i) {
    const float z = r[i] * r[i];
    const float s = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * r[i] + r[i];
    const float c =
        ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z - 0.5f * z + 1.0f;
    const uint32_t q = static_cast<uint32_t>(quadrant[i]);
    const uint32_t swap = 0u - (q & 1u);
    const uint32_t s_bits = bit_cast<uint32_t>(s);
    const uint32_t c_bits = bit_cast<uint32_t>(c);
    // Quarter turns: (c, s), (-s, c), (-c, -s), (s, -c).
    const float factor = inv_freq[i] == 0 ? 1.0f : scale;
    cos_out[i] = factor * bit_cast<float>(((swap & s_bits) | (~swap & c_bits)) ^ (((q + 1) & 2u) << 30));
    sin_out[i] = factor * bit_cast<float>(((swap & c_bits) | (~swap & s_bits)) ^ ((q & 2u) << 30));
  }
}

// out = scale * rope(x), [num_heads, head_dim], at one position. out may be x.
template <typename Out, typename X>
DIFFQKV_INLINE void rotate_heads(const X* x, Out* out, int32_t position, const double* inv_freq, float scale,
                                 int64_t num_heads, int64_t head_dim) {
  const int64_t half = head_dim / 2;
  float cos_a[kRotaryBlock], sin_a[kRotaryBlock];
  for (int64_t block = 0; block < half; block += kRotaryBlock) {
    const int64_t count = min_of(kRotaryBlock, half - block);
    cos_sin(position, inv_freq + block, scale, static_cast<int>(count), cos_a, sin_a);
    for (int64_t head = 0; head < num_heads; ++head) {
      const X* x0 = x + head * head_dim + block;
      const X* x1 = x0 + half;
      Out* out0 = out + head * head_dim + block;
      Out* out1 = out0 + half;
      int64_t d = 0;
      for (; d + kLanes <= count; d += kLanes) {
        const F32v a = load(x0 + d);
        const F32v b = load(x1 + d);
        const F32v c = load(cos_a + d);
        const F32v s = load(sin_a + d);
        store(out0 + d, a * c - b * s);
        store(out1 + d, b * c + a * s);
      }
      if (d < count) {
        const int64_t n = count - d;
        const F32v a = load_n(x0 + d, n);
        const F32v b = load_n(x1 + d, n);
        const F32v c = load_n(cos_a + d, n);
        const F32v s = load_n(sin_a + d, n);
        store_n(out0 + d, a * c - b * s, n);
        store_n(out1 + d, b * c + a * s, n);
      }
    }
  }
}

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
