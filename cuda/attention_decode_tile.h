// What one warp of decode attention computes on: the fragments of scores and output, from the pieces of K and V that
// attention_decode_pieces.h brings.
//
// Fragments are those of device/mma.h: of each 8 query heads a lane has lane % 4 * 2 and the next (index i, or i % 2,
// of the arrays below), and of each 16 keys or dims lane / 4 and lane / 4 + 8.
//
// K and V of 8 bits are widened in registers, and their scales enter scores and weights. The order of dims is free, in the
// sum of a score and among the rows of O^T, and is what makes this cheap: of the four elements that ldmatrix gives a lane
// as a word, 0 and 2 become one word of a fragment and 1 and 3 another. So of 16 dims of K those at 4t, 4t + 2 and
// 4t + 1, 4t + 3 stand where 2t, 2t + 1 and 2t + 8, 2t + 9 do else, and Q has them in the same order (store_query); and of
// 16 dims of O the rows g and g + 8 are 2g and 2g + 1.
#pragma once

#include <device/mma.h>
#include "attention_decode_merge.h"
#include "bytes.h"

namespace diffqkv::cuda {
namespace {

// Where 8 elements of Q lie, of those at 16 bytes each: as K of 8 bits asks for.
__device__ __forceinline__ void store_query(unsigned char* row, int chunk, const Words4& q) {
  const auto low = [](uint32_t a, uint32_t b) { return (a & 0xffffu) | b << 16; };
  const auto high = [](uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000u); };
  Words2* const to = reinterpret_cast<Words2*>(row + chunk / 2 * 32 + chunk % 2 * 8);
  st_shared(to, Words2{{low(q.w[0], q.w[1]), low(q.w[2], q.w[3])}});
  st_shared(to + 2, Words2{{high(q.w[0], q.w[1]), high(q.w[2], q.w[3])}});
}

template <typename T>
__device__ __forceinline__ WidenedBytes widen(Format format, const uint32_t (&words)[4]) {
  return format == Format::i8 ? widen_i8<T>(words) : widen_f8e4m3<T>(words);
}

// kTiles times 8 query heads; kScaled as in PieceStream.
template <typename T, int kDimVo, int kTiles, bool kScaled>
struct Attention {
  using Pieces = PieceStream<kDimVo, kScaled>;
  static constexpr int kKeyTiles = Pieces::kKeyTiles, kDimTiles = kDimVo / 16, kSlotDims = Pieces::kSlotDims;
  // P times V's scales may be below what f16 can hold, though its sum matters: each tile has a unit of its own then.
  static constexpr bool kUnits = kScaled && __is_same(T, f16);

  float s[kTiles][kKeyTiles][4];     // S^T, then P^T
  uint32_t p[kTiles][kKeyTiles][2];  // P^T as it is multiplied
  float p_unit[kTiles][2];           // and in which unit: 1, but for f16 times V's scales
  float o[kTiles][kDimTiles][4];     // O^T
  SoftmaxState state[kTiles][2];     // d: this lane's keys alone, of P before it is rounded; for lse
  float divisor[kTiles][2];          // the sum of the rounded P, by the same products with ones: V = 1 gives exactly 1;
                                     // not where V has scales: then it is d

  __device__ __forceinline__ Attention() {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) state[n][i] = SoftmaxState::empty(), divisor[n][i] = 0;
#pragma unroll
      for (int i = 0; i < kDimTiles * 4; ++i) o[n][i / 4][i % 4] = 0;
    }
  }

  __device__ __forceinline__ void clear_scores() {
#pragma unroll
    for (int i = 0; i < kTiles * kKeyTiles * 4; ++i) s[i / (kKeyTiles * 4)][i / 4 % kKeyTiles][i % 4] = 0;
  }

  // The query heads that read one K or V head, as columns of the tiles: `count` from `first` on, which may be below 0.
  struct Readers {
    int first, count;
    __device__ __forceinline__ bool has(int n, int i) const {
      return static_cast<unsigned>(n * 8 + lane_index() % 4 * 2 + i - first) < static_cast<unsigned>(count);
    }
    __device__ __forceinline__ bool any(int n) const {
      return kTiles == 1 || (first < n * 8 + 8 && first + count > n * 8);
    }
  };

  // S^T += K Q^T for a piece of a K head, in the columns of the query heads that read it: the products of all 8 are
  // formed, and those of the others dropped. queries: this lane's chunk of the piece's first dims, see query_chunk.
  __device__ __forceinline__ void add_scores(const unsigned char* piece, Format format, int dims,
                                             const unsigned char* queries, int query_pitch, Readers readers) {
#pragma unroll
    for (int i = 0; i < kTiles * kKeyTiles; ++i) {
      const int n = i / kKeyTiles, tile = i % kKeyTiles;
      if (!readers.any(n)) continue;
      float(&sum)[4] = s[n][tile];
      float c[4] = {sum[0], sum[1], sum[2], sum[3]};
      const auto add_32_dims = [&](int pair) {
        const int row = tile * 16 + lane_index() % 16, column = lane_index() / 16;
        uint32_t low[4], high[4], b[4];
        ldmatrix_x4(b, queries + n * 8 * query_pitch + pair * 64);
        if (!kScaled || format == Format::wide) {
          ldmatrix_x4(low, piece + place<kSlotDims * 2>(row, pair * 4 + column));
          ldmatrix_x4(high, piece + place<kSlotDims * 2>(row, pair * 4 + column + 2));
        } else {
          ldmatrix_x4(low, piece + place<kSlotDims>(row, pair * 2 + column));
          const WidenedBytes wide = widen<T>(format, low);
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            low[j] = wide.even[j], low[j + 2] = wide.odd[j];
            high[j] = wide.even[j + 2], high[j + 2] = wide.odd[j + 2];
          }
        }
        mma_m16n8k16<T>(c, low, {b[0], b[1]});
        mma_m16n8k16<T>(c, high, {b[2], b[3]});
      };
      if (kTiles == 1 && dims == kSlotDims) {  // with more tiles it would not fit the registers
#pragma unroll
        for (int pair = 0; pair < kSlotDims / 32; ++pair) add_32_dims(pair);
      } else {
        for (int pair = 0; pair < dims / 32; ++pair) add_32_dims(pair);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[j] = readers.has(n, j % 2) ? c[j] : sum[j];
    }
  }
  // Rows of Q are query_pitch apart, an odd number of chunks, so that 8 of them fall on different banks.
  __device__ __forceinline__ static int query_chunk(int query_pitch) {
    return lane_index() % 8 * query_pitch + lane_index() / 8 * 16;
  }

  // The K head of this lane's two columns of the n-th 8 query heads, a byte each, then the V heads; counted in the unit.
  // Columns past the last query head have its heads.
  __device__ __forceinline__ static uint32_t column_heads(int n, int num_heads, Readers k_readers, Readers v_readers) {
    uint32_t heads = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int own = n * 8 + lane_index() % 4 * 2 + i, column = own < num_heads ? own : num_heads - 1;
      heads |= static_cast<uint32_t>((column - k_readers.first) / k_readers.count) << 8 * i;
      heads |= static_cast<uint32_t>((column - v_readers.first) / v_readers.count) << (16 + 8 * i);
    }
    return heads;
  }

  // The scales of a lane's keys and two columns.
  struct Scales {
    bf16 k[2][kKeyTiles * 2], v[2][kKeyTiles * 2];
  };
  // Of the tile's first `keys` keys; heads: column_heads. Two columns of one head make one load.
  __device__ __forceinline__ static Scales load_scales(const TileRows& rows, const Cache& cache, Format k_format,
                                                       Format v_format, uint32_t heads, int keys) {
    constexpr bf16 kOne = {0x3f80};
    Scales scales;
#pragma unroll
    for (int half = 0; half < kKeyTiles * 2; ++half) {
      const int key = half * 8 + lane_index() / 4;
      const auto load_pair = [&](bf16(&first), bf16(&second), bool scaled, const bf16* row, uint32_t pair) {
        first = second = kOne;
        if (!scaled || key >= keys) return;
        first = second = ld_global(row + (pair & 0xffu));
        if ((pair >> 8 & 0xffu) != (pair & 0xffu)) second = ld_global(row + (pair >> 8 & 0xffu));
      };
      load_pair(scales.k[0][half], scales.k[1][half], k_format != Format::wide, rows.k_scales + key * cache.k.num_heads,
                heads);
      load_pair(scales.v[0][half], scales.v[1][half], v_format != Format::wide, rows.v_scales + key * cache.v.num_heads,
                heads >> 16);
    }
    return scales;
  }

  // P from S, of the tile's first `keys` keys; first: the scales of the first 8 query heads, ld_global(n): of the n-th.
  template <typename Load>
  __device__ __forceinline__ void add_weights(int keys, float scale_log2, Format v_format, const Scales& first,
                                              const Load& load) {
    constexpr uint32_t kOnes = __is_same(T, bf16) ? 0x3f803f80u : 0x3c003c00u;
    const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
    const int row = lane_index() / 4;
    const bool v_is_wide = !kScaled || v_format == Format::wide;
    Scales scales = first;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      Scales next = scales;
      if (kScaled && n + 1 < kTiles) next = load(n + 1);
      float factor[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float top = -infinity();
#pragma unroll
        for (int half = 0; half < kKeyTiles * 2; ++half) {
          float& score = s[n][half / 2][half % 2 * 2 + i];
          if (kScaled) score *= to_float(scales.k[i][half]);
          const float x = score * scale_log2;
          if (half * 8 + row < keys) top = fmaxf(top, x);  // passes over NaN
        }
#pragma unroll
        for (int mask = 4; mask < kWarpSize; mask *= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, mask));
        factor[i] = state[n][i].raise(top);
        const float base = -state[n][i].base();
#pragma unroll
        for (int half = 0; half < kKeyTiles * 2; ++half) {
          float& x = s[n][half / 2][half % 2 * 2 + i];
          x = half * 8 + row < keys ? ex2_approx(__fmaf_rn(x, scale_log2, base)) : 0.0f;
          state[n][i].d += x;
          if (kScaled) x *= to_float(scales.v[i][half]);
        }
        p_unit[n][i] = 1.0f;
        if (kUnits && !v_is_wide) rescale(n, i);
      }
      if (__ballot_sync(kAllLanes, factor[0] != 1.0f || factor[1] != 1.0f) != 0) {
        divisor[n][0] *= factor[0], divisor[n][1] *= factor[1];
#pragma unroll
        for (int i = 0; i < kDimTiles * 4; ++i) o[n][i / 4][i % 4] *= factor[i % 2];
      }
      float sum[4] = {divisor[n][0], divisor[n][1], 0.0f, 0.0f};
#pragma unroll
      for (int tile = 0; tile < kKeyTiles; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          p[n][tile][half] = movmatrix_trans(cvt_rn_x2<T>(s[n][tile][half * 2], s[n][tile][half * 2 + 1]));
        }
        if (v_is_wide) mma_m16n8k16<T>(sum, ones, p[n][tile]);
      }
      divisor[n][0] = sum[0], divisor[n][1] = sum[1];
      scales = next;
    }
  }

  // Divides a column's weights of the tile by the power of two of the largest.
  __device__ __forceinline__ void rescale(int n, int i) {
    float top = 0.0f;
#pragma unroll
    for (int half = 0; half < kKeyTiles * 2; ++half) top = fmaxf(top, s[n][half / 2][half % 2 * 2 + i]);
#pragma unroll
    for (int mask = 4; mask < kWarpSize; mask *= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, mask));
    constexpr uint32_t kOne = 0x3f800000u, kExponent = 0x7f800000u;
    const uint32_t exponent = bit_cast<uint32_t>(top) & kExponent;
    const bool normal = exponent > 0 && exponent < 0x7f000000u;
    p_unit[n][i] = bit_cast<float>(normal ? exponent : kOne);
    const float inverse = bit_cast<float>(normal ? 2 * kOne - exponent : kOne);
#pragma unroll
    for (int half = 0; half < kKeyTiles * 2; ++half) s[n][half / 2][half % 2 * 2 + i] *= inverse;
  }

  // O^T += V^T P^T for a piece of a V head, from dim kFirstDim on, likewise in its own columns alone. As the others'
  // products are dropped, and not multiplied by zeros, a NaN or infinity stays with the query heads that read it.
  template <int kFirstDim>
  __device__ __forceinline__ void add_values(const unsigned char* piece, Format format, Readers readers) {
    constexpr int kSteps = kScaled ? 2 : 1;  // of 16 dims, loaded together
#pragma unroll
    for (int first = 0; first < Pieces::kValueDims / 16; first += kSteps) {
      uint32_t a[kSteps][kKeyTiles][4];
#pragma unroll
      for (int tile = 0; tile < kKeyTiles; ++tile) {
        if (!kScaled || format == Format::wide) {
          const int row = tile * 16 + lane_index() / 16 * 8 + lane_index() % 8, column = lane_index() / 8 % 2;
#pragma unroll
          for (int step = 0; step < kSteps; ++step) {
            ldmatrix_x4_trans(a[step][tile], piece + place<kSlotDims * 2>(row, (first + step) * 2 + column));
          }
        } else {
          const int row = tile * 16 + lane_index() % 16, column = lane_index() / 16;
          uint32_t words[4];
          ldmatrix_x4_trans(words, piece + place<kSlotDims>(row, first + column));
          const WidenedBytes wide = widen<T>(format, words);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            a[i / 2 % kSteps][tile][i % 2 * 2] = wide.even[i], a[i / 2 % kSteps][tile][i % 2 * 2 + 1] = wide.odd[i];
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kSteps * kTiles; ++i) {
        const int step = i / kTiles, n = i % kTiles;
        if (!readers.any(n)) continue;
        float(&sum)[4] = o[n][kFirstDim / 16 + first + step];
        float c[4] = {};
#pragma unroll
        for (int j = 0; j < 4; ++j) c[j] = kUnits ? 0.0f : sum[j];
#pragma unroll
        for (int tile = 0; tile < kKeyTiles; ++tile) mma_m16n8k16<T>(c, a[step][tile], p[n][tile]);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (kUnits) c[j] = __fmaf_rn(c[j], p_unit[n][j % 2], sum[j]);
          sum[j] = readers.has(n, j % 2) ? c[j] : sum[j];
        }
      }
    }
  }

  // For merging.
  __device__ __forceinline__ void store_rows(float* rows, Format v_format) {
    const bool v_is_wide = !kScaled || v_format == Format::wide;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float* const row = rows + (n * 8 + lane_index() % 4 * 2 + i) * row_floats(kDimVo);
#pragma unroll
        for (int tile = 0; tile < kDimTiles; ++tile) {
          const float low = o[n][tile][i], high = o[n][tile][i + 2];
          if (v_is_wide) {
            st_shared(row + tile * 16 + lane_index() / 4, low);
            st_shared(row + tile * 16 + lane_index() / 4 + 8, high);
          } else {
            const Words2 words = {{bit_cast<uint32_t>(low), bit_cast<uint32_t>(high)}};
            st_shared(reinterpret_cast<Words2*>(row + tile * 16) + lane_index() / 4, words);
          }
        }
        float d = state[n][i].d;
#pragma unroll
        for (int mask = 4; mask < kWarpSize; mask *= 2) d += __shfl_xor_sync(kAllLanes, d, mask);
        if (lane_index() < 4) {
          const Words4 sums = {{bit_cast<uint32_t>(state[n][i].m), bit_cast<uint32_t>(d),
                                bit_cast<uint32_t>(v_is_wide ? divisor[n][i] : d), 0u}};
          st_shared(reinterpret_cast<Words4*>(row + kDimVo), sums);
        }
      }
    }
  }
};

}  // namespace
}  // namespace diffqkv::cuda
