// out (+)= x weight^T: few tokens by gemv, more by gemm. gemm takes one 16-bit type; other types, and mixed ones, go by
// gemv, 8 tokens at a time.
#include "linear.h"

namespace diffqkv::cuda {

void check_linear_types(const char* name, DType x, DType weight, DType out, bool accumulate) {
  check_float_types(name, {{"a tensor", x}, {"a tensor", weight}, {"a tensor", out}});
  if (accumulate && out != DType::f32) {
    fail(ErrorCode::invalid_argument, "%s: accumulates into out of type f32 only, not %s", name, dtype_name(out));
  }
}

void linear(const LinearParams& p, Context& context) {
  if (p.num_tokens <= 0 || p.out_features <= 0 || (p.accumulate && p.in_features <= 0)) return;
  if (suits_gemm(p) || p.row_scale) return gemm(p, context);
  gemv(p, context);
}

void matmul(const MatmulParams& p, Context& context) {
  if (p.num_others > 0) {
    for (int i = 0; i < p.num_outputs(); ++i) matmul(p.single(i), context);
    return;
  }
  check_not_packed(p.weight.dtype);
  check_linear_types("matmul", p.x_dtype, p.weight.dtype, p.out_dtype, p.accumulate);
  LinearParams product;
  product.x = p.x;
  product.weight = p.weight.data;
  product.out = p.out;
  product.x_dtype = p.x_dtype;
  product.weight_dtype = p.weight.dtype;
  product.out_dtype = p.out_dtype;
  product.num_tokens = p.num_tokens;
  product.in_features = p.in_features;
  product.out_features = p.out_features;
  product.accumulate = p.accumulate;
  linear(product, context);
}

}  // namespace diffqkv::cuda
