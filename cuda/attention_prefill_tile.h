// The tiles of prefill attention: how they lie in shared memory, scores, softmax, and the accumulator of P V, each for the
// rows of one warp.
//
// Fragments are those of device/mma.h: of each 16 rows a lane has rows lane / 4 and lane / 4 + 8 (index 0 and 1 of the
// arrays below), and of each 8 columns lane % 4 * 2 and the next.
#pragma once

#include <device/memory.h>
#include <device/mma.h>
#include "softmax.h"

namespace diffqkv::cuda {
namespace {

constexpr int kTileKeys = 32, kKeySteps = kTileKeys / 16;

// Rows of m16n8k16 that a warp owns, in units of 16: two use each fragment of K and V twice.
// Fewer where registers would not do.
__host__ __device__ __forceinline__ constexpr int row_tiles(int head_dim_qk, int head_dim_vo) {
  return head_dim_vo < 128 || (head_dim_vo == 128 && head_dim_qk == 128) ? 2 : 1;
}

// A tile in shared memory: rows of `dims` elements, in chunks of 16 bytes. Chunks are swizzled so that neither 8 rows at one
// column, nor what 8 lanes copy, meet in a bank: rows that are a multiple of 128 bytes by row % 8, the others, which start in
// one half of the banks and the other by turns, by row / 2 % 4.
__device__ __forceinline__ int swizzle(int row, int dims) { return dims % 64 == 0 ? row & 7 : row >> 1 & 3; }

// Of a tile's keys, those of the lane's columns.
struct KeyScales {
  float x[kTileKeys / 8][2];

  __device__ __forceinline__ explicit KeyScales(const float* key_scales) {
#pragma unroll
    for (int n = 0; n < kTileKeys / 8; ++n) {
      const Words2 two = ld_shared(reinterpret_cast<const Words2*>(key_scales + n * 8 + lane_index() % 4 * 2));
      x[n][0] = bit_cast<float>(two.w[0]), x[n][1] = bit_cast<float>(two.w[1]);
    }
  }
};

// S of a warp's rows and a tile of keys.
template <int kRowTiles>
struct Scores {
  float s[kRowTiles][kTileKeys / 8][4];

  // -inf for the keys that a row does not see; visible: how many of the tile's keys each row sees.
  __device__ __forceinline__ void mask(const int (&visible)[kRowTiles][2]) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (n * 8 + lane_index() % 4 * 2 + i % 2 >= visible[m][i / 2]) s[m][n][i] = -infinity();
        }
      }
    }
  }

  // Times the scales of the keys.
  __device__ __forceinline__ void scale(const float* key_scales) {
    const KeyScales scales(key_scales);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[m][n][i] *= scales.x[n][i % 2];
      }
    }
  }
};

// P, rounded, as the A fragments of P V.
template <int kRowTiles>
struct Weights {
  uint32_t p[kRowTiles][kKeySteps][4];
};

template <int kRowTiles>
struct Softmax {
  SoftmaxState state[kRowTiles][2];  // d: this lane's summands alone, not rounded; for lse

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) state[i / 2][i % 2] = SoftmaxState::empty();
  }

  // Takes in the largest scores; returns whether this lane has a factor other than 1 for what was summed before.
  __device__ __forceinline__ bool raise(const Scores<kRowTiles>& scores, float scale_log2,
                                        float (&factor)[kRowTiles][2]) {
    bool raised = false;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float top = -infinity();
#pragma unroll
        for (int n = 0; n < kTileKeys / 8; ++n) {
          top = fmaxf(top, fmaxf(scores.s[m][n][2 * h], scores.s[m][n][2 * h + 1]));  // fmaxf passes over NaN
        }
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
        factor[m][h] = state[m][h].raise(top * scale_log2);
        raised |= factor[m][h] != 1.0f;
      }
    }
    return raised;
  }

  template <typename T>
  __device__ __forceinline__ Weights<kRowTiles> weights(const Scores<kRowTiles>& scores, float scale_log2) {
    return weights_times<T>(scores, scale_log2, [](int, int, int, float weight) { return weight; });
  }
  // Times the scales of V, but where a row does not see the key: 0 times NaN is not 0.
  template <typename T>
  __device__ __forceinline__ Weights<kRowTiles> scaled_weights(const Scores<kRowTiles>& scores, float scale_log2,
                                                               const float* v_scales,
                                                               const int (&visible)[kRowTiles][2]) {
    const KeyScales scales(v_scales);
    return weights_times<T>(scores, scale_log2, [&](int row, int n, int i, float weight) {
      const bool seen = n * 8 + lane_index() % 4 * 2 + i < visible[row / 2][row % 2];
      return seen ? weight * scales.x[n][i] : 0.0f;
    });
  }

  // The sum of a row's weights; all 4 lanes that share it.
  __device__ __forceinline__ float sum(int m, int h) const {
    float d = state[m][h].d;
    d += __shfl_xor_sync(kAllLanes, d, 1);
    d += __shfl_xor_sync(kAllLanes, d, 2);
    return d;
  }
  __device__ __forceinline__ float lse(int m, int h) const {
    SoftmaxState row = state[m][h];
    row.d = sum(m, h);
    return row.lse();
  }

 private:
  template <typename T, typename F>
  __device__ __forceinline__ Weights<kRowTiles> weights_times(const Scores<kRowTiles>& scores, float scale_log2,
                                                              const F& times) {
    Weights<kRowTiles> weights;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float base = -state[m][h].base();
#pragma unroll
        for (int n = 0; n < kTileKeys / 8; ++n) {
          const float low = ex2_approx(__fmaf_rn(scores.s[m][n][2 * h], scale_log2, base));
          const float high = ex2_approx(__fmaf_rn(scores.s[m][n][2 * h + 1], scale_log2, base));
          state[m][h].d += low + high;
          const int row = 2 * m + h;
          weights.p[m][n / 2][n % 2 * 2 + h] = cvt_rn_x2<T>(times(row, n, 0, low), times(row, n, 1, high));
        }
      }
    }
    return weights;
  }
};

// Words of two elements, those that are not finite replaced by 0.
template <typename T>
__device__ __forceinline__ uint32_t finite_only(uint32_t word) {
  constexpr uint32_t kLow = __is_same(T, bf16) ? 0x7f80u : 0x7c00u, kHigh = kLow << 16;
  return word & (((word & kLow) == kLow ? 0u : 0xffffu) | ((word & kHigh) == kHigh ? 0u : 0xffff0000u));
}

template <typename T, int kDimVo, int kRowTiles>
struct Accumulator {
  float o[kRowTiles][kDimVo / 8][4];
  float divisor[kRowTiles][4];  // the sum of the rounded P, by the same products with ones: V = 1 gives exactly 1

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        divisor[m][i] = 0;
#pragma unroll
        for (int n = 0; n < kDimVo / 8; ++n) o[m][n][i] = 0;
      }
    }
  }

  __device__ __forceinline__ void scale(const float (&factor)[kRowTiles][2]) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        divisor[m][i] *= factor[m][i / 2];
#pragma unroll
        for (int n = 0; n < kDimVo / 8; ++n) o[m][n][i] *= factor[m][i / 2];
      }
    }
  }

  // Lane's row and chunk of the first 16 keys, for ldmatrix_x4_trans: two chunks, of each the first 8 keys and the next 8.
  __device__ __forceinline__ static const unsigned char* value_row(const unsigned char* tile) {
    return tile + (lane_index() & 15) * (kDimVo * 2);
  }
  __device__ __forceinline__ static void load_values(uint32_t (&b)[4], const unsigned char* row, int key_step,
                                                     int pair) {
    const int chunk = pair * 2 + (lane_index() >> 4);
    ldmatrix_x4_trans(b, row + key_step * 16 * (kDimVo * 2) + ((chunk ^ swizzle(lane_index() & 15, kDimVo)) << 4));
  }

  // O += P V. With kFinite, elements of V that are not finite count as 0; returns whether this lane met one.
  template <bool kFinite>
  __device__ __forceinline__ bool add(const Weights<kRowTiles>& weights, const unsigned char* tile) {
    constexpr uint32_t kOnes = __is_same(T, bf16) ? 0x3f803f80u : 0x3c003c00u;
    const uint32_t ones[2] = {kOnes, kOnes};
    const unsigned char* row = value_row(tile);
    uint32_t dropped = 0;
#pragma unroll
    for (int k = 0; k < kKeySteps; ++k) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) mma_m16n8k16<T>(divisor[m], weights.p[m][k], ones);
#pragma unroll
      for (int pair = 0; pair < kDimVo / 16; ++pair) {
        uint32_t v[4];
        load_values(v, row, k, pair);
        if (kFinite) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const uint32_t finite = finite_only<T>(v[i]);
            dropped |= v[i] ^ finite;
            v[i] = finite;
          }
        }
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const uint32_t b[2] = {v[2 * n], v[2 * n + 1]};
#pragma unroll
          for (int m = 0; m < kRowTiles; ++m) mma_m16n8k16<T>(o[m][pair * 2 + n], weights.p[m][k], b);
        }
      }
    }
    return dropped != 0;
  }

  // What add<true> left out, key by key, for the rows that see it: the others' P is 0, but 0 times infinity is not.
  // visible: how many keys of the tile the lane's rows see.
  __device__ __forceinline__ void add_nonfinite(const Weights<kRowTiles>& weights, const unsigned char* tile,
                                                const int (&visible)[kRowTiles][2]) {
    static_assert(kKeySteps == 2);
    const unsigned char* row = value_row(tile);
    for (int key = 0; key < kTileKeys; ++key) {
      // The word of a fragment's lower and upper half that holds this key, and none else.
      const uint32_t half = key & 1 ? 0xffff0000u : 0xffffu;
      const int word = key % 16 / 2 - lane_index() % 4;
      const uint32_t mask[2] = {word == 0 ? half : 0u, word == 4 ? half : 0u};
#pragma unroll
      for (int pair = 0; pair < kDimVo / 16; ++pair) {
        uint32_t v[4];
        load_values(v, row, key / 16, pair);
        uint32_t any = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          v[i] = (v[i] ^ finite_only<T>(v[i])) & mask[i % 2];
          any |= v[i];
        }
        if (__ballot_sync(kAllLanes, any != 0) == 0) continue;
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          uint32_t a[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) a[i] = (key < 16 ? weights.p[m][0][i] : weights.p[m][1][i]) & mask[i / 2];
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            const uint32_t b[2] = {v[2 * n], v[2 * n + 1]};
            float c[4] = {};
            mma_m16n8k16<T>(c, a, b);
#pragma unroll
            for (int i = 0; i < 4; ++i) o[m][pair * 2 + n][i] += key < visible[m][i / 2] ? c[i] : 0.0f;
          }
        }
      }
    }
  }

  // Divides and stores one row, a multiple of 32 elements. Its 4 lanes swap words, so that each has 16 bytes in a row.
  __device__ __forceinline__ void store_row(int m, int h, T* out, bool valid) const {
    const int t = lane_index() % 4;
    const float inverse = divisor[m][2 * h] == 0.0f ? 0.0f : __frcp_rn(divisor[m][2 * h]);
#pragma unroll
    for (int n = 0; n < kDimVo / 8; n += 4) {
      Words4 words;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        words.w[i] = cvt_rn_x2<T>(o[m][n + i][2 * h] * inverse, o[m][n + i][2 * h + 1] * inverse);
#pragma unroll
      for (int distance = 1; distance <= 2; distance *= 2) {
        const bool upper = (t & distance) != 0;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int low = i * (3 - distance), high = low + distance;
          const uint32_t got = __shfl_xor_sync(kAllLanes, upper ? words.w[low] : words.w[high], distance);
          words.w[low] = upper ? got : words.w[low], words.w[high] = upper ? words.w[high] : got;
        }
      }
      if (valid) st_global(reinterpret_cast<Words4*>(out + n * 8 + t * 8), words);
    }
  }
};

}  // namespace
}  // namespace diffqkv::cuda
