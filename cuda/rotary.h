// Rotate-half RoPE of the heads of one token (ops.h has the formula), for rope and kv_append.
#pragma once

#include <cmath>

#include "element_types.h"
#include "finding.h"

namespace diffqkv::cuda {

struct Rotation {
  float cos, sin;
};

// Of position * inv_freq, times scale; of 0 if inv_freq is 0, without it. The angle is formed in f64 and there reduced to r in [-pi/4, pi/4] by multiples of pi/2, pi/2 as
// the sum of three parts of which the first two have 30 bits, so that their products with a multiple below 2^23 are exact;
// then f32, by the polynomials of the Cephes library (absolute error about 1e-7). f64 is slow on many cards, and a
// library's sine in f64 many times slower: this is a dozen operations.
__device__ __forceinline__ Rotation rotation(int position, double inv_freq, float scale) {
  constexpr double kRound =
      6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer that stands in the low bits
  const double angle = position * inv_freq;
  const double shifted = angle * 0.63661977236758134308 + kRound;
  const double n = shifted - kRound;
  const float r =
      static_cast<float>(((angle - n * 0x1.921fb54000000p+0) - n * 0x1.10b4610000000p-30) - n * 0x1.a62633145c06ep-58);
  const uint32_t quadrant = static_cast<uint32_t>(bit_cast<uint64_t>(shifted));
  const float z = r * r;
  const float s = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * r + r;
  const float c =
      ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z - 0.5f * z + 1.0f;
  // Quarter turns: (c, s), (-s, c), (-c, -s), (s, -c).
  const float cos_size = quadrant & 1 ? s : c, sin_size = quadrant & 1 ? c : s;
  const float factor = inv_freq == 0 ? 1.0f : scale;
  return {factor * ((quadrant + 1) & 2 ? -cos_size : cos_size), factor * (quadrant & 2 ? -sin_size : sin_size)};
}

// Element d of a rotated head, whose first element is x[from].
__device__ __forceinline__ float rotated(const void* x, DType x_dtype, int64_t from, int head_dim, int d, int position,
                                         const double* inv_freq, float scale) {
  const int half = head_dim / 2, pair = d < half ? d : d - half;
  const Rotation r = rotation(position, ld_global(inv_freq + pair), scale);
  const float a = load_any(x, x_dtype, from + pair), b = load_any(x, x_dtype, from + pair + half);
  return d < half ? a * r.cos - b * r.sin : b * r.cos + a * r.sin;
}

// Rotates the heads of one token, whose first element is x[from]. store(head, d, value) gets each element of the result,
// and may write it over x. All threads of the block share the work; a thread keeps to one pair of dims, so that its angle
// is computed once.
template <typename Store>
__device__ __forceinline__ void rotate_heads(const void* x, DType x_dtype, int64_t from, int num_heads, int head_dim,
                                             int position, const double* inv_freq, float scale, const Store& store) {
  const int thread = threadIdx.x, num_threads = blockDim.x;
  const int half = head_dim / 2, pairs_at_once = half < num_threads ? half : num_threads;
  const int heads_at_once = num_threads / pairs_at_once, first_head = thread / pairs_at_once;
  if (first_head >= heads_at_once) return;
  for (int pair = thread % pairs_at_once; pair < half; pair += pairs_at_once) {
    const Rotation r = rotation(position, ld_global(inv_freq + pair), scale);
    for (int head = first_head; head < num_heads; head += heads_at_once) {
      const int i = head * head_dim + pair;
      const float a = load_any(x, x_dtype, from + i), b = load_any(x, x_dtype, from + i + half);
      store(head, pair, a * r.cos - b * r.sin);
      store(head, pair + half, b * r.cos + a * r.sin);
    }
  }
}

// The operator rope for token t, by one block.
__device__ __forceinline__ void rotate_token(const RopeParams& p, int t, Finding* finding) {
  const int position = ld_global(p.positions + t);
  if (position < 0 && threadIdx.x == 0) report(finding, Finding::position, t, position, 0x7fffffff);
  const int64_t at = t * p.num_heads * p.head_dim;
  const int head_dim = static_cast<int>(p.head_dim);
  rotate_heads(p.x, p.dtype, at, static_cast<int>(p.num_heads), head_dim, position < 0 ? 0 : position, p.inv_freq,
               p.scale, [&](int head, int d, float x) { store_any(p.out, p.dtype, at + head * head_dim + d, x); });
}

}  // namespace diffqkv::cuda
