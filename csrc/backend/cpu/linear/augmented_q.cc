// out (+)= (silu(x gate^T) * (x up^T)) down^T. Few tokens: gate and up in one pass (gated_gemv), then down. More: three
// products, in blocks of tokens so that scratch memory is bounded, with silu and the product of gate and up in the
// epilogues of the first two, or in silu_mul. What lies between is rounded at most once.
#include <algorithm>

#include "backend/cpu/arena.h"
#include "backend/cpu/linear/linear.h"
#include "backend/error.h"

namespace diffqkv::cpu {
namespace {

constexpr int64_t kBlockTokens = 1024;

}  // namespace

void LinearLayers::augmented_q(const AugmentedQParams& p) {
  if (p.num_tokens <= 0 || p.out_features <= 0) return;
  // What lies between the products: bf16 where the last one can multiply that as it stands. Else f32: it would be
  // widened anyway, and f16 ends at 65,504, which silu(a) * b leaves easily.
  const bool bf16 = p.x_dtype == DType::bf16 && p.weight_dtype == DType::bf16 && multiplies_bf16();
  const DType inner_dtype = bf16 ? DType::bf16 : DType::f32;
  const auto product = [&](const void* x, DType x_dtype, const void* weight, void* out, DType out_dtype,
                           int64_t num_tokens, int64_t in_features, int64_t out_features, bool accumulate) {
    MatmulParams m;
    m.x = x;
    m.weight = weight;
    m.out = out;
    m.x_dtype = x_dtype;
    m.weight_dtype = p.weight_dtype;
    m.out_dtype = out_dtype;
    m.num_tokens = num_tokens;
    m.in_features = in_features;
    m.out_features = out_features;
    m.accumulate = accumulate;
    matmul(m);
  };
  const size_t inner_size = dtype_size(inner_dtype);
  if (p.num_tokens <= max_gemv_tokens(p.weight_dtype)) {
    void* inner = arena_.get(kSlotInner, p.num_tokens * p.inner_size * inner_size);
    kernels_.gated_gemv(p, inner, inner_dtype, arena_);
    product(inner, inner_dtype, p.down, p.out, p.out_dtype, p.num_tokens, p.inner_size, p.out_features, p.accumulate);
    return;
  }
  const int64_t block_tokens = std::min(kBlockTokens, p.num_tokens);
  void* inner = arena_.get(kSlotInner, block_tokens * p.inner_size * sizeof(float));
  for (int64_t token = 0; token < p.num_tokens; token += block_tokens) {
    const int64_t num_tokens = std::min(block_tokens, p.num_tokens - token);
    const void* x = static_cast<const char*>(p.x) + token * p.in_features * static_cast<int64_t>(dtype_size(p.x_dtype));
    DType written = DType::bf16;
    if (!bf16 || !gated_product_bf16(p, x, num_tokens, inner)) {
      written = DType::f32;
      void* gate = arena_.get(kSlotGate, block_tokens * p.inner_size * sizeof(float));
      product(x, p.x_dtype, p.gate, gate, written, num_tokens, p.in_features, p.inner_size, false);
      product(x, p.x_dtype, p.up, inner, written, num_tokens, p.in_features, p.inner_size, false);
      kernels_.silu_mul({gate, inner, inner, written, num_tokens * p.inner_size});
    }
    product(inner, written, p.down,
            static_cast<char*>(p.out) + token * p.out_features * static_cast<int64_t>(dtype_size(p.out_dtype)),
            p.out_dtype, num_tokens, p.inner_size, p.out_features, p.accumulate);
  }
}

}  // namespace diffqkv::cpu
