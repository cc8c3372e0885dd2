// How the warps of a block of decode attention, and the splits of a unit, become one output.
#pragma once

#include "attention_decode_pieces.h"
#include "softmax.h"

namespace diffqkv::cuda {
namespace {

struct Plan {
  int q_heads_per_k_head, q_heads_per_v_head;
  int group_heads;        // query heads that share K and V heads
  int unit_heads, parts;  // of a group
  int num_units;          // of a sequence
  int num_splits, min_split_keys, tile_keys;
  int page_shift;                      // log2(page_tokens)
  int64_t k_batch_rows, v_batch_rows;  // from sequence to sequence, where they are contiguous
  float scale_log2;                    // sm_scale * log2(e)
  float* o_accum;                      // [unit][split][unit_heads][head_dim_vo], not divided
  Words4* sums_accum;                  // [unit][split][unit_heads]: m, d, divisor
  uint32_t* arrived;                   // [unit]: splits that are done; 0 before and after
};

// What merging reads: rows of head_dim_vo elements of o, then m, d and the divisor; 16 bytes past a multiple of 128, so
// that the lanes that store them fall on different banks.
__host__ __device__ __forceinline__ constexpr int row_floats(int head_dim_vo) { return head_dim_vo + 4; }

// 4 dims of O of one query head, and its sums, merged from parts.
struct Merged {
  SoftmaxState state = SoftmaxState::empty();
  float divisor = 0, o[4] = {};

  template <int kParts>
  __device__ __forceinline__ void add(const Words4 (&sums)[kParts], const Words4 (&parts)[kParts]) {
    float top = state.m;
#pragma unroll
    for (int i = 0; i < kParts; ++i) top = fmaxf(top, bit_cast<float>(sums[i].w[0]));
    const float own = factor(state.m, top);
    state.m = top, state.d *= own, divisor *= own;
#pragma unroll
    for (int d = 0; d < 4; ++d) o[d] *= own;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const float other = factor(bit_cast<float>(sums[i].w[0]), top);
      state.d = __fmaf_rn(bit_cast<float>(sums[i].w[1]), other, state.d);
      divisor = __fmaf_rn(bit_cast<float>(sums[i].w[2]), other, divisor);
#pragma unroll
      for (int d = 0; d < 4; ++d) o[d] = __fmaf_rn(bit_cast<float>(parts[i].w[d]), other, o[d]);
    }
  }
  // A part without a score above -inf has d = 0 and o = 0, or NaN, which is to stay.
  __device__ __forceinline__ static float factor(float m, float top) {
    return m > -infinity() ? ex2_approx(m - top) : 1.0f;
  }

  // Of query head `row` of all sequences.
  template <typename T, int kDimVo>
  __device__ __forceinline__ void finish(const AttentionDecodeParams& p, int64_t row, int dim) const {
    const float inverse = divisor == 0.0f ? 0.0f : __frcp_rn(divisor);
    const Words2 words = {{cvt_rn_x2<T>(o[0] * inverse, o[1] * inverse), cvt_rn_x2<T>(o[2] * inverse, o[3] * inverse)}};
    st_global(reinterpret_cast<Words2*>(static_cast<T*>(p.out) + row * kDimVo + dim), words);
    if (dim == 0 && p.lse != nullptr) st_global(p.lse + row, state.lse());
  }
};

// The splits of a unit, by the last of its blocks.
template <typename T, int kDimVo>
__device__ __forceinline__ void merge_splits(const AttentionDecodeParams& p, const Plan& plan, const Unit& unit) {
  constexpr int kAtOnce = 8;  // loads under way
  const int64_t first_row = static_cast<int64_t>(unit.index) * plan.num_splits * plan.unit_heads;
  for (int item = threadIdx.x; item < unit.num_heads * (kDimVo / 4); item += kThreads) {
    const int head = item / (kDimVo / 4), dim = item % (kDimVo / 4) * 4;
    const float* const o = plan.o_accum + (first_row + head) * kDimVo + dim;
    const Words4* const sums = plan.sums_accum + first_row + head;
    Merged merged;
    for (int split = 0; split < unit.used_splits; split += kAtOnce) {
      Words4 part_sums[kAtOnce], parts[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        part_sums[i] = {{bit_cast<uint32_t>(-infinity()), 0u, 0u, 0u}}, parts[i] = {};
        if (split + i < unit.used_splits) {
          const int64_t row = static_cast<int64_t>(split + i) * plan.unit_heads;
          part_sums[i] = ld_global(sums + row);
          parts[i] = ld_global(reinterpret_cast<const Words4*>(o + row * kDimVo));
        }
      }
      merged.add(part_sums, parts);
    }
    merged.template finish<T, kDimVo>(p, unit.batch * p.num_q_heads + unit.first_head + head, dim);
  }
}

// The warps' rows lie in shared memory, with a barrier behind them.
template <typename T, int kDimVo, int kTiles>
__device__ __forceinline__ void merge_warps(const AttentionDecodeParams& p, const Plan& plan, const Unit& unit,
                                            const float* rows) {
  constexpr int kRowFloats = row_floats(kDimVo);
  const int64_t first_row = (static_cast<int64_t>(unit.index) * plan.num_splits + unit.split_idx) * plan.unit_heads;
  for (int item = threadIdx.x; item < unit.num_heads * (kDimVo / 4); item += kThreads) {
    const int head = item / (kDimVo / 4), dim = item % (kDimVo / 4) * 4;
    Words4 sums[kWarps], parts[kWarps];
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      const float* const row = rows + (warp * kTiles * 8 + head) * kRowFloats;
      sums[warp] = ld_shared(reinterpret_cast<const Words4*>(row + kDimVo));
      parts[warp] = ld_shared(reinterpret_cast<const Words4*>(row + dim));
    }
    Merged merged;
    merged.add(sums, parts);
    if (unit.used_splits == 1) {
      merged.template finish<T, kDimVo>(p, unit.batch * p.num_q_heads + unit.first_head + head, dim);
      continue;
    }
    const Words4 words = {{bit_cast<uint32_t>(merged.o[0]), bit_cast<uint32_t>(merged.o[1]),
                           bit_cast<uint32_t>(merged.o[2]), bit_cast<uint32_t>(merged.o[3])}};
    st_global(reinterpret_cast<Words4*>(plan.o_accum + (first_row + head) * kDimVo + dim), words);
    if (dim == 0) {
      const Words4 merged_sums = {{bit_cast<uint32_t>(merged.state.m), bit_cast<uint32_t>(merged.state.d),
                                   bit_cast<uint32_t>(merged.divisor), 0u}};
      st_global(plan.sums_accum + first_row + head, merged_sums);
    }
  }
}

}  // namespace
}  // namespace diffqkv::cuda
