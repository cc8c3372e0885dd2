// The activations, for gated_activation and gated_gemv. Each is within a few ulp, also in the tails:
// the argument of exp is corrected for its rounding, because exp multiplies the relative error of
// a large argument. NaN stays NaN.
#pragma once

#include "backend/activation.h"
#include "backend/cpu/simd.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

// x / d for d >= 1, which may be +inf.
DIFFQKV_INLINE F32v divide(F32v x, F32v d) {
#if defined(__AVX512F__)
  // An approximation and one Newton step are much faster than a division. For d = inf the step
  // would be inf * 0, so the approximation, 0, is kept.
  const __m512 y = _mm512_rcp14_ps((__m512)d);
  const __mmask16 finite = _mm512_cmp_ps_mask((__m512)d, _mm512_set1_ps(0x1.fffffep127f), _CMP_NGT_UQ);
  const __m512 e = _mm512_fnmadd_ps((__m512)d, y, _mm512_set1_ps(1.0f));
  return x * (F32v)_mm512_mask_fmadd_ps(y, finite, e, y);
#else
  return x / d;
#endif
}

// a * b - product, for product = a * b rounded.
DIFFQKV_INLINE F32v product_error(F32v a, F32v b, F32v product) {
#if defined(__FMA__)
  return fma(a, b, -product);
#else
  // Products of halves of 12 bits are exact.
  const F32v a1 = (F32v)((U32v)a & 0xfffff000u);
  const F32v b1 = (F32v)((U32v)b & 0xfffff000u);
  const F32v a2 = a - a1;
  const F32v b2 = b - b1;
  return ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2;
#endif
}

DIFFQKV_INLINE F32v relu(F32v x) { return x < 0.0f ? F32v{} : x; }

// If exp overflows to +inf, the quotient is -0, which is the limit.
DIFFQKV_INLINE F32v silu(F32v x) { return divide(x, exp(-x) + 1.0f); }

// x times the share of the normal distribution below x.
DIFFQKV_INLINE F32v gelu(F32v x) {
  F32v a = (F32v)((U32v)x & 0x7fffffffu);
  a = a > NormalTail::kMax ? set1(NormalTail::kMax) : a;
  const F32v w = divide(set1(1.0f), a + NormalTail::kCenter);
  const F32v t = (a - NormalTail::kCenter) * w;
  F32v poly = set1(NormalTail::c9);
  poly = fma(poly, t, set1(NormalTail::c8));
  poly = fma(poly, t, set1(NormalTail::c7));
  poly = fma(poly, t, set1(NormalTail::c6));
  poly = fma(poly, t, set1(NormalTail::c5));
  poly = fma(poly, t, set1(NormalTail::c4));
  poly = fma(poly, t, set1(NormalTail::c3));
  poly = fma(poly, t, set1(NormalTail::c2));
  poly = fma(poly, t, set1(NormalTail::c1));
  poly = fma(poly, t, set1(NormalTail::c0));
  const F32v square = a * a;
  const F32v correction = fma(product_error(a, a, square), set1(-0.5f), set1(1.0f));
  const F32v tail = exp(square * -0.5f) * correction * (w * poly);
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

DIFFQKV_INLINE F32v gelu_tanh(F32v x) {
  F32v c = x > GeluTanh::kMax ? set1(GeluTanh::kMax) : x;
  c = c < -GeluTanh::kMax ? set1(-GeluTanh::kMax) : c;
  const F32v square = c * c;
  const F32v cubic = square * GeluTanh::kCubic;
  const F32v factor = cubic + GeluTanh::kLinear;
  F32v factor_low = cubic - (factor - GeluTanh::kLinear);
  factor_low += product_error(square, set1(GeluTanh::kCubic), cubic);
  factor_low += square * GeluTanh::kCubicLow + GeluTanh::kLinearLow;
  factor_low += product_error(c, c, square) * GeluTanh::kCubic;
  const F32v exponent = c * factor;
  const F32v exponent_low = product_error(c, factor, exponent) + c * factor_low;
  return divide(x, exp(-exponent) * (1.0f - exponent_low) + 1.0f);
}

// Calls f(activation), where activation is a function of a vector.
template <typename F>
DIFFQKV_INLINE void visit_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::silu: return f([](F32v x) DIFFQKV_LAMBDA { return silu(x); });
    case Activation::gelu: return f([](F32v x) DIFFQKV_LAMBDA { return gelu(x); });
    case Activation::gelu_tanh: return f([](F32v x) DIFFQKV_LAMBDA { return gelu_tanh(x); });
    case Activation::relu: return f([](F32v x) DIFFQKV_LAMBDA { return relu(x); });
    case Activation::relu2: return f([](F32v x) DIFFQKV_LAMBDA { return relu(x) * relu(x); });
  }
}

DIFFQKV_INLINE F32v activate(Activation activation, F32v x) {
  visit_activation(activation, [&](auto function) DIFFQKV_LAMBDA { x = function(x); });
  return x;
}

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
