// The soft cap of attention scores.
#pragma once

#include "conversions.h"

namespace diffqkv::cuda {

// How cap_score divides: by a correctly rounded reciprocal, which is a call, or by an approximate one.
// Which of them fits the registers depends on the kernel.
enum class Reciprocal { rounded, approximate };

// tanh(product cap_factor), see ScoreScale. The error is at most 4 ulp: below 0.625 the polynomial
// of the Cephes library, above it 1 - 2 / (e^2x + 1). NaN stays NaN.
template <Reciprocal kReciprocal = Reciprocal::rounded>
__device__ __forceinline__ float cap_score(float product, float cap_factor) {
  constexpr float kTwoLog2E = 2.88539008177792681f;
  const float x = product * cap_factor;
  const float size = fabsf(x);
  const float square = x * x;
  float poly = __fmaf_rn(-5.70498872745e-3f, square, 2.06390887954e-2f);
  poly = __fmaf_rn(poly, square, -5.37397155531e-2f);
  poly = __fmaf_rn(poly, square, 1.33314422036e-1f);
  poly = __fmaf_rn(poly, square, -3.33332819422e-1f);
  const float near_zero = __fmaf_rn(poly * square, size, size);
  const float divisor = ex2_approx(size * kTwoLog2E) + 1.0f;
  const float quotient = kReciprocal == Reciprocal::rounded ? __frcp_rn(divisor) : rcp_approx(divisor);
  const float elsewhere = __fmaf_rn(-2.0f, quotient, 1.0f);
  const float magnitude = size < 0.625f ? near_zero : elsewhere;
  return bit_cast<float>(bit_cast<uint32_t>(magnitude) | (bit_cast<uint32_t>(x) & 0x80000000u));
}

}  // namespace diffqkv::cuda
