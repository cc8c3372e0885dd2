// out = cap * tanh(x / cap). Split by elements. Bound by exp, then by memory.
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/simd.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

// tanh(x) within 4 ulp: near 0 the polynomial of the Cephes library, elsewhere by exp, which ends
// at 1 if it overflows. NaN stays NaN.
DIFFQKV_INLINE F32v tanh(F32v x) {
  const U32v sign = (U32v)x & 0x80000000u;
  const F32v magnitude = (F32v)((U32v)x & 0x7fffffffu);
  const F32v square = x * x;
  F32v poly = set1(-5.70498872745e-3f);
  poly = fma(poly, square, set1(2.06390887954e-2f));
  poly = fma(poly, square, set1(-5.37397155531e-2f));
  poly = fma(poly, square, set1(1.33314422036e-1f));
  poly = fma(poly, square, set1(-3.33332819422e-1f));
  const F32v near = fma(poly * square, magnitude, magnitude);
  const F32v far = 1.0f - 2.0f / (exp(magnitude + magnitude) + 1.0f);
  return (F32v)((U32v)(magnitude < 0.625f ? near : far) | sign);
}

}  // namespace

void softcap(const SoftcapParams& p, Arena&) {
  parallel_ranges(p.count, 64, p.count, [&](int64_t begin, int64_t end) {
    const F32v cap = set1(p.cap);
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) store(p.out + i, cap * tanh(load(p.x + i) / cap));
    if (i < end) store_n(p.out + i, cap * tanh(load_n(p.x + i, end - i) / cap), end - i);
  });
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
