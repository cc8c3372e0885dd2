// out (+)= (activation(x gate^T) * (x up^T)) down^T, or activation(x up^T) down^T, in blocks of tokens
// so that scratch memory is bounded. Gate and up are one pass (gated_gemv, gated_gemm), or two
// products of oneDNN. The intermediate result is rounded at most once.
#include <algorithm>

#include "backend/cpu/arena.h"
#include "backend/cpu/linear/linear.h"
#include "backend/error.h"

namespace diffqkv::cpu {
namespace {

constexpr int64_t kBlockTokens = 1024;

}  // namespace

void LinearLayers::gated_mlp(const GatedMlpParams& p) {
  require_compute_type("gated MLP: x", p.x_dtype);
  require_weight_type("gated MLP: up", p.up.dtype);
  require_weight_type("gated MLP: down", p.down.dtype);
  require_compute_type("gated MLP: out", p.out_dtype);
  if (p.num_tokens <= 0 || p.out_features <= 0) return;
  // The intermediate result is bf16 if x is, and the last product can multiply bf16 directly. Else it
  // is f32: it would be converted to f32 anyway, and activation(a) * b easily exceeds 65,504, the
  // range of f16.
  const auto in_bf16 = [&](const WeightView& weight) {
    return multiplies_bf16(weight.dtype, p.num_tokens <= max_gemv_tokens(weight.dtype));
  };
  const bool bf16 = p.x_dtype == DType::bf16 && in_bf16(p.up) && in_bf16(p.down);
  const DType inner_dtype = bf16 ? DType::bf16 : DType::f32;
  const void* const all_x = normalized(p.x, p.norm, p.x_dtype, p.num_tokens, p.in_features);
  if (p.num_others > 0) {
    MatmulParams others;
    others.x = all_x;
    others.weight = p.others[0].weight;
    others.out = p.others[0].out;
    others.x_dtype = p.x_dtype;
    others.out_dtype = p.out_dtype;
    others.num_tokens = p.num_tokens;
    others.in_features = p.in_features;
    others.out_features = p.others[0].out_features;
    others.num_others = p.num_others - 1;
    std::copy_n(p.others + 1, others.num_others, others.others);
    matmul(others);
  }
  const auto down = [&](const void* inner, DType dtype, int64_t first_token, int64_t num_tokens) {
    const int64_t row_bytes = p.out_features * static_cast<int64_t>(dtype_size(p.out_dtype));
    matmul({.x = inner,
            .weight = p.down,
            .out = static_cast<char*>(p.out) + first_token * row_bytes,
            .x_dtype = dtype,
            .out_dtype = p.out_dtype,
            .num_tokens = num_tokens,
            .in_features = p.inner_size,
            .out_features = p.out_features,
            .accumulate = p.accumulate,
            .others = {}});
  };
  const bool is_gemv = p.num_tokens <= max_gemv_tokens(p.up.dtype);
  const int64_t block_tokens = std::min(kBlockTokens, p.num_tokens);
  void* inner = arena_.get(kSlotInner, block_tokens * p.inner_size * dtype_size(inner_dtype));
  for (int64_t token = 0; token < p.num_tokens; token += block_tokens) {
    const int64_t num_tokens = std::min(block_tokens, p.num_tokens - token);
    const void* x =
        static_cast<const char*>(all_x) + token * p.in_features * static_cast<int64_t>(dtype_size(p.x_dtype));
    GatedMlpParams block = p;
    block.x = x;
    block.norm = {};
    block.num_others = 0;
    block.num_tokens = num_tokens;
    if (is_gemv) {
      kernels_.gated_gemv(block, inner, inner_dtype, arena_);
    } else if (bf16 && uses_onednn(p.up.dtype, p.x_dtype, p.in_features)) {
      gated_product_onednn(p, x, num_tokens, inner);
    } else {
      kernels_.gated_gemm(block, inner, inner_dtype, arena_);
    }
    down(inner, inner_dtype, token, num_tokens);
  }
}

}  // namespace diffqkv::cpu
