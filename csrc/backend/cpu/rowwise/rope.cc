// Rotate-half RoPE (ops.h has the formula). Split by tokens: cosines and sines are computed once
// per token, for all its heads. Bound by memory.
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/rowwise/rotary.h"
#include "backend/cpu/simd.h"
#include "backend/error.h"

namespace diffqkv::cpu::DIFFQKV_ISA {

void rope(const RopeParams& p, Arena&) {
  require_compute_type("rope: x", p.dtype);
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    if (p.positions[t] < 0) {
      fail(ErrorCode::invalid_argument, "rope: positions[%lld] is %d; it must be at least 0", static_cast<long long>(t),
           p.positions[t]);
    }
  }
  const int64_t token_size = p.num_heads * p.head_dim;
  visit(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    parallel_ranges(p.num_tokens, 1, p.num_tokens * token_size, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        rotate_heads(static_cast<const T*>(p.x) + t * token_size, static_cast<T*>(p.out) + t * token_size,
                     p.positions[t], p.inv_freq, p.scale, p.num_heads, p.head_dim);
      }
    });
  });
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
