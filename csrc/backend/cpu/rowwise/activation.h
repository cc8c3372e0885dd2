// silu, for silu_mul and gated_gemv.
#pragma once

#include "backend/cpu/simd.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

// x / (1 + exp(-x)). If exp overflows to +inf, the quotient is -0, which is the limit. NaN stays
// NaN.
DIFFQKV_INLINE F32v silu(F32v x) {
  const F32v d = exp(-x) + 1.0f;
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

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
