// The activations of an FFN. Each is within a few ulp, also in the tails: the argument of exp is corrected for its rounding,
// because exp multiplies the relative error of a large argument. NaN stays NaN.
#pragma once

#include <cmath>

#include "backend/activation.h"
#include "types.h"

namespace diffqkv::cuda {

// If exp overflows, the quotient is -0, the limit.
__device__ __forceinline__ float silu(float x) { return x * __frcp_rn(1.0f + expf(-x)); }

// x times the share of the normal distribution below x.
__device__ __forceinline__ float gelu(float x) {
  const float magnitude = fabsf(x);
  const float a = magnitude > NormalTail::kMax ? NormalTail::kMax : magnitude;
  const float w = __frcp_rn(a + NormalTail::kCenter);
  const float t = (a - NormalTail::kCenter) * w;
  float poly = NormalTail::c9;
  poly = __fmaf_rn(poly, t, NormalTail::c8);
  poly = __fmaf_rn(poly, t, NormalTail::c7);
  poly = __fmaf_rn(poly, t, NormalTail::c6);
  poly = __fmaf_rn(poly, t, NormalTail::c5);
  poly = __fmaf_rn(poly, t, NormalTail::c4);
  poly = __fmaf_rn(poly, t, NormalTail::c3);
  poly = __fmaf_rn(poly, t, NormalTail::c2);
  poly = __fmaf_rn(poly, t, NormalTail::c1);
  poly = __fmaf_rn(poly, t, NormalTail::c0);
  const float square = a * a;
  const float correction = __fmaf_rn(__fmaf_rn(a, a, -square), -0.5f, 1.0f);
  const float tail = expf(square * -0.5f) * correction * (w * poly);
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

__device__ __forceinline__ float gelu_tanh(float x) {
  const float below = x > GeluTanh::kMax ? GeluTanh::kMax : x;
  const float c = below < -GeluTanh::kMax ? -GeluTanh::kMax : below;
  const float square = c * c;
  const float cubic = square * GeluTanh::kCubic;
  const float factor = cubic + GeluTanh::kLinear;
  float factor_low = cubic - (factor - GeluTanh::kLinear);
  factor_low += __fmaf_rn(square, GeluTanh::kCubic, -cubic);
  factor_low += __fmaf_rn(square, GeluTanh::kCubicLow, GeluTanh::kLinearLow);
  factor_low += __fmaf_rn(c, c, -square) * GeluTanh::kCubic;
  const float exponent = c * factor;
  const float exponent_low = __fmaf_rn(c, factor, -exponent) + c * factor_low;
  return x * __frcp_rn(1.0f + expf(-exponent) * (1.0f - exponent_low));
}

__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; }

// Replaces each x by its activation. The branch is uniform.
template <int kCount>
__device__ __forceinline__ void activate(Activation activation, float (&x)[kCount]) {
  const auto each = [&](const auto& function) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = function(x[i]);
  };
  switch (activation) {
    case Activation::silu: return each([](float value) { return silu(value); });
    case Activation::gelu: return each([](float value) { return gelu(value); });
    case Activation::gelu_tanh: return each([](float value) { return gelu_tanh(value); });
    case Activation::relu: return each([](float value) { return relu(value); });
    case Activation::relu2: return each([](float value) { return relu(value) * relu(value); });
  }
}

}  // namespace diffqkv::cuda
