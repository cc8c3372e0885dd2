// The state of an online softmax in base 2: with x = score * sm_scale * log2(e), m is the largest x so far and
// d = sum of 2^(x - m); an accumulator o = sum of 2^(x - m) v goes with it.
#pragma once

#include "conversions.h"
#include "reductions.h"

namespace diffqkv::cuda {

struct SoftmaxState {
  float m, d;

  __device__ __forceinline__ static SoftmaxState empty() { return {-infinity(), 0.0f}; }

  // What exponents are taken from: m, or 0 while no score is above -inf, so that 2^(-inf - base) is 0 and not NaN.
  __device__ __forceinline__ float base() const { return m > -infinity() ? m : 0.0f; }

  // Takes in that a score x is about to enter; returns the factor for d's old summands, which it has applied to d, and
  // which the accumulator needs too.
  __device__ __forceinline__ float raise(float x) {
    if (!(x > m)) return 1.0f;
    const float factor = m > -infinity() ? ex2_approx(m - x) : 0.0f;
    m = x;
    d *= factor;
    return factor;
  }

  // Takes in another state. Returns the factors for the two accumulators: this one's and the other's.
  struct Factors {
    float own, other;
  };
  __device__ __forceinline__ Factors merge(const SoftmaxState& other) {
    const float top = other.m > m ? other.m : m;
    // A part without a score above -inf has d = 0 and o = 0, or NaN, which is to stay.
    const Factors factors = {m > -infinity() ? ex2_approx(m - top) : 1.0f,
                             other.m > -infinity() ? ex2_approx(other.m - top) : 1.0f};
    d = d * factors.own + other.d * factors.other;
    m = top;
    return factors;
  }

  // What o is to be multiplied by: 1 / d, or 0 where nothing was seen.
  __device__ __forceinline__ float normalize() const { return d == 0.0f ? 0.0f : 1.0f / d; }

  // ln(sum of exp(score * sm_scale)); -inf where nothing was seen.
  __device__ __forceinline__ float lse() const {
    constexpr float kLn2 = 0.693147180559945309f;
    return d == 0.0f ? -infinity() : base() * kLn2 + logf(d);
  }
};

}  // namespace diffqkv::cuda
