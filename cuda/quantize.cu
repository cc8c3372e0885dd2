// out = x / scale, rounded, with a scale for each row: the largest magnitude over what the type holds. A warp a row, which
// it reads twice, the second time from the L1. Bound by memory.
#include "quantize_row.h"

namespace diffqkv::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarpSize;

template <typename Out>
__global__ void __launch_bounds__(kThreads, 8) quantize_kernel(QuantizeParams p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (row >= p.num_rows) return;
  const int64_t first = row * p.head_dim;
  quantize_row<Out>(
      static_cast<int>(p.head_dim), [&](int d) { return load_any(p.x, p.x_dtype, first + d); },
      [&](int d) { return static_cast<Out*>(p.out) + first + d; }, static_cast<bf16*>(p.scales) + row);
}

}  // namespace

void quantize(const QuantizeParams& p, Context& context) {
  check_float_types("quantize", {{"x", p.x_dtype}});
  if (!is_quantized(p.out_dtype)) {
    fail(ErrorCode::invalid_argument, "quantize: out of type %s; i8 and f8e4m3 are known", dtype_name(p.out_dtype));
  }
  if (p.num_rows <= 0) return;
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>((p.num_rows + kWarps - 1) / kWarps);
  shape.threads = kThreads;
  visit_quantized(p.out_dtype,
                  [&](auto out) { launch("quantize", quantize_kernel<decltype(out)>, shape, context.stream, p); });
}

}  // namespace diffqkv::cuda
