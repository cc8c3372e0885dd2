// A row of K or V of one head as i8 or f8e4m3 with a scale (QuantizeParams in csrc/backend/ops.h), for quantize and kv_append.
#pragma once

#include "element_types.h"
#include "reductions.h"

namespace diffqkv::cuda {

// By one warp: *out(d), an Out, of value(d), f32, for d < dim; value is called twice for each d.
template <typename Out, typename Value, typename Address>
__device__ __forceinline__ void quantize_row(int dim, const Value& value, const Address& out, bf16* scale) {
  constexpr float kLargest = __is_same(Out, i8) ? 127.0f : 448.0f;
  uint32_t top = 0;  // the largest magnitude, as bits: which order NaN above infinity, and that above all numbers
  for (int d = lane_index(); d < dim; d += kWarpSize) {
    const uint32_t bits = bit_cast<uint32_t>(value(d)) & 0x7fffffffu;
    top = bits > top ? bits : top;
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, top, mask);
    top = other > top ? other : top;
  }
  const float magnitude = bit_cast<float>(top);
  const bool finite = top < 0x7f800000u, zero = magnitude < 0x1p-100f;
  const uint32_t rounded_up = (bit_cast<uint32_t>(magnitude / kLargest) + 0xffffu) >> 16;
  const bf16 factor = {static_cast<uint16_t>(!finite ? 0x7fc0u : zero ? 0u : rounded_up)};
  for (int d = lane_index(); d < dim; d += kWarpSize) {
    st_global(out(d), from_float<Out>(finite && !zero ? value(d) / to_float(factor) : 0.0f));
  }
  if (lane_index() == 0) st_global(scale, factor);
}

}  // namespace diffqkv::cuda
