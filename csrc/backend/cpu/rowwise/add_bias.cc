// out[t, :] = x[t, :] + bias. Split by tokens. Bound by memory.
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/simd.h"
#include "backend/error.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

template <typename T>
void add_bias_rows(const AddBiasParams& p, int64_t begin, int64_t end) {
  const int64_t n = p.num_features;
  for (int64_t t = begin; t < end; ++t) {
    const T* x = static_cast<const T*>(p.x) + t * n;
    T* out = static_cast<T*>(p.out) + t * n;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(out + i, load(x + i) + load(p.bias + i));
    if (i < n) store_n(out + i, load_n(x + i, n - i) + load_n(p.bias + i, n - i), n - i);
  }
}

}  // namespace

void add_bias(const AddBiasParams& p, Arena&) {
  require_compute_type("add_bias: x", p.dtype);
  visit(p.dtype, [&](auto tag) {
    parallel_ranges(p.num_tokens, 1, p.num_tokens * p.num_features,
                    [&](int64_t begin, int64_t end) { add_bias_rows<decltype(tag)>(p, begin, end); });
  });
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
