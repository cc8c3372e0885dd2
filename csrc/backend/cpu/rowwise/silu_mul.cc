// out = silu(gate) * up, with silu(x) = x / (1 + exp(-x)). Split by elements. Bound by exp, then by
// memory.
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/rowwise/activation.h"
#include "backend/cpu/simd.h"
#include "backend/error.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

template <typename T>
void silu_mul_range(const SiluMulParams& p, int64_t begin, int64_t end) {
  const T* gate = static_cast<const T*>(p.gate);
  const T* up = static_cast<const T*>(p.up);
  T* out = static_cast<T*>(p.out);
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) store(out + i, silu(load(gate + i)) * load(up + i));
  if (i < end) store_n(out + i, silu(load_n(gate + i, end - i)) * load_n(up + i, end - i), end - i);
}

}  // namespace

void silu_mul(const SiluMulParams& p, Arena&) {
  require_compute_type("silu_mul: gate", p.dtype);
  visit(p.dtype, [&](auto tag) {
    parallel_ranges(p.count, 64, p.count,
                    [&](int64_t begin, int64_t end) { silu_mul_range<decltype(tag)>(p, begin, end); });
  });
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
