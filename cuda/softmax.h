// The state of an online softmax: m is the largest score so far, a raw product q.k or its tanh, and d is
// the sum of the weights 2^((score - m) scale_log2), with ScoreScale::scale_log2. An accumulator o = sum
// of weight v goes with it.
#pragma once

#include "conversions.h"
#include "reductions.h"

namespace diffqkv::cuda {

struct SoftmaxState {
  float m, d;

  __device__ __forceinline__ static SoftmaxState empty() { return {-infinity(), 0.0f}; }

  // What scores are subtracted from: m, or 0 while no score is above -inf, so that the weight of
  // -inf is 0 and not NaN.
  __device__ __forceinline__ float base() const { return m > -infinity() ? m : 0.0f; }

  // The weight of a score that is at most m. The difference comes first: score * scale_log2 - base *
  // scale_log2 in one FMA would keep the rounding error of base * scale_log2, which exceeds the range
  // of exponents if scores are of order 1e9.
  __device__ __forceinline__ float weight(float score, float scale_log2) const {
    return ex2_approx((score - base()) * scale_log2);
  }

  // The factor for sums whose largest score was m, if it is `top` now. Sums without a score above
  // -inf are 0, or NaN, which must stay.
  __device__ __forceinline__ static float factor(float m, float top, float scale_log2) {
    return m > -infinity() ? ex2_approx((m - top) * scale_log2) : 1.0f;
  }

  // Prepares for a score. Returns the factor for earlier summands. It is applied to d, and the
  // accumulator needs it too.
  __device__ __forceinline__ float raise(float score, float scale_log2) {
    if (!(score > m)) return 1.0f;
    const float old = factor(m, score, scale_log2);
    m = score;
    d *= old;
    return old;
  }

  // ln(sum of exp(score scale)), or -inf if d is 0.
  __device__ __forceinline__ float lse(float scale) const {
    return d == 0.0f ? -infinity() : __fmaf_rn(base(), scale, logf(d));
  }
};

}  // namespace diffqkv::cuda
