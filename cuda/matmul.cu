// out (+)= x weight^T: up to 16 tokens by gemv or gemv_packed, all outputs in one launch, more by
// gemm, an output each. The former also multiply f32 and mixed types, any number of tokens. They
// normalize x in each of their blocks, if it is of few tokens; else its norm is a launch before.
#include "linear.h"
#include "stage_x.h"

namespace diffqkv::cuda {
namespace {

constexpr int kThreads = 256;

struct PadRowsParams {
  const void* x;  // [rows, row_size]
  void* out;      // [rows, stride]
  int64_t count;  // of elements of out
  int64_t row_size, stride;
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 4) pad_rows(PadRowsParams p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.count) return;
  const int64_t row = i / p.stride, column = i % p.stride;
  T value = {};
  if (column < p.row_size) value = ld_global(static_cast<const T*>(p.x) + row * p.row_size + column);
  st_global(static_cast<T*>(p.out) + i, value);
}

int64_t padded_row(const LinearParams& p) { return (p.in_features + 7) / 8 * 8; }

size_t normed_bytes(const LinearParams& p) {
  if (!p.norm.weight) return 0;
  return (static_cast<size_t>(p.num_tokens * p.in_features) * dtype_size(p.x_dtype) + 255) / 256 * 256;
}

size_t padded_bytes(const LinearParams& p) {
  const bool aligned = p.norm.weight || rows_aligned(p.x, 8, DType::f16);
  if (!dtype_is_packed(p.weight().dtype) || (aligned && p.in_features % 8 == 0)) return 0;
  return static_cast<size_t>(p.num_tokens * padded_row(p)) * dtype_size(p.x_dtype);
}

void gemm_each(const LinearParams& p, Context& context) {
  for (int i = 0; i < p.num_outputs; ++i) {
    if (p.outputs[i].out_features > 0) gemm(p, p.outputs[i], context);
  }
}

void linear_packed(LinearParams p, Context& context) {
  if (padded_bytes(p) > 0) {
    p.x_stride = padded_row(p);
    const PadRowsParams pad = {p.x, p.x_scratch, p.num_tokens * p.x_stride, p.in_features, p.x_stride};
    LaunchShape shape;
    shape.grid[0] = static_cast<unsigned>((pad.count + kThreads - 1) / kThreads);
    shape.threads = kThreads;
    const auto kernel = p.x_dtype == DType::f32 ? pad_rows<float> : pad_rows<bf16>;
    launch("pad_rows", kernel, shape, context.stream, pad);
    p.x = p.x_scratch;
  }
  suits_gemm(p) || p.row_scale ? gemm_each(p, context) : gemv_packed(p, context);
}

// Whether the product's own kernel normalizes x: with few tokens, each of its blocks does.
bool normalizes_x(const LinearParams& p, const Context& context) {
  const DType weight_dtype = p.weight().dtype;
  if (p.num_tokens > kMaxNormedTokens || p.row_scale || dtype_size(p.x_dtype) != 2 || p.in_features % 8 != 0 ||
      !rows_aligned(p.x, p.in_features, DType::f32) || !rows_aligned(p.norm.weight, p.in_features, DType::f32)) {
    return false;
  }
  if (dtype_is_packed(weight_dtype)) return gemv_packed_stages_x(p, context);
  return p.x_dtype == weight_dtype && gemv_is_aligned(p) && gemv_stages_x(p, context);
}

}  // namespace

void check_linear_types(const char* name, DType x, DType weight, DType out, bool accumulate) {
  check_float_types(name, {{"a tensor", x}, {"a tensor", out}});
  if (!dtype_is_packed(weight)) check_float_types(name, {{"a weight", weight}});
  if (accumulate && out != DType::f32) {
    fail(ErrorCode::invalid_argument, "%s: accumulates into out of type f32 only, not %s", name, dtype_name(out));
  }
}

size_t x_scratch_bytes(const LinearParams& p) { return normed_bytes(p) + padded_bytes(p); }

void apply_norm(LinearParams* p, Context& context) {
  if (!p->norm.weight) return;
  RmsNormParams norm;
  norm.x = p->x;
  norm.weight = p->norm.weight;
  norm.out = p->x_scratch;
  norm.out_dtype = p->x_dtype;
  norm.num_tokens = p->num_tokens;
  norm.hidden_size = p->in_features;
  norm.eps = p->norm.eps;
  rms_norm(norm, context);
  p->x = p->x_scratch;
  p->x_scratch = static_cast<char*>(p->x_scratch) + normed_bytes(*p);
  p->norm = {};
}

void linear(LinearParams p, Context& context) {
  if (p.num_tokens <= 0 || p.all_features() <= 0 || (p.accumulate && p.in_features <= 0)) return;
  if (p.norm.weight && !normalizes_x(p, context)) apply_norm(&p, context);
  if (!suits_gemm(p) && !has_row_outputs(p)) {
    for (int i = 0; i < p.num_outputs; ++i) linear(p.single(i), context);
    return;
  }
  if (dtype_is_packed(p.weight().dtype)) return linear_packed(p, context);
  if (suits_gemm(p) || p.row_scale) return gemm_each(p, context);
  gemv(p, context);
}

void matmul(const MatmulParams& p, Context& context) {
  check_linear_types("matmul", p.x_dtype, p.weight.dtype, p.out_dtype, p.accumulate);
  LinearParams product;
  product.x = p.x;
  product.norm = p.norm;
  product.x_dtype = p.x_dtype;
  product.num_tokens = p.num_tokens;
  product.in_features = p.in_features;
  product.accumulate = p.accumulate;
  for (int i = 0; i < p.num_outputs(); ++i) product.add({p.output(i), {}, p.out_dtype});
  const size_t scratch_bytes = x_scratch_bytes(product);
  if (scratch_bytes > 0) product.x_scratch = context.scratch(scratch_bytes);
  linear(product, context);
}

}  // namespace diffqkv::cuda
