// h = x, or h = residual += x; out (+)= h / sqrt(mean(h^2) + eps) * weight. A block a token, a thread eight elements at
// once where all rows are aligned to 16 bytes. A thread keeps h in registers, up to 4,096 of a token; what is beyond is
// read again. Squares are summed in f32 by each thread, then in f64. Bound by memory, and at one token by the time of a launch.
#include "element_types.h"
#include "norm_scale.h"
#include "reductions.h"

namespace diffqkv::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kVector = 8, kKept = 2;  // elements at once; vectors of h that a thread keeps

// The same bits in every thread.
__device__ __forceinline__ double block_sum(double x, double* shared) {
  x = warp_sum(x);
  if (lane_index() == 0) st_shared(shared + warp_index(), x);
  __syncthreads();
  double total = 0;
  for (int warp = 0; warp < kWarps; ++warp) total += ld_shared(shared + warp);
  __syncthreads();
  return total;
}

template <int kElements>
__global__ void __launch_bounds__(kThreads, 4) rms_norm_kernel(RmsNormParams p) {
  double* shared = reinterpret_cast<double*>(dynamic_shared());
  const int thread = threadIdx.x;
  const int64_t n = p.hidden_size, row = blockIdx.x * n;
  // h where it is not kept: the residual in its own type, rounded, if there is one.
  const void* h_data = p.residual ? p.residual : p.x;
  const DType h_dtype = p.residual ? p.residual_dtype : p.x_dtype;
  float kept[kKept][kElements] = {};
  // use(i, h, whether h is kept from one call to the next) for the elements of this thread.
  const auto for_each = [&](const auto& use) {
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int64_t i = (j * kThreads + thread) * kElements;
      if (i < n) use(i, kept[j], true);
    }
    for (int64_t i = (kKept * kThreads + thread) * kElements; i < n; i += kThreads * kElements) {
      float h[kElements];
      use(i, h, false);
    }
  };
  float squares = 0;
  for_each([&](int64_t i, float(&h)[kElements], bool) {
    load_any(p.x, p.x_dtype, row + i, h);
    if (p.residual) {
      float residual[kElements];
      load_any(p.residual, p.residual_dtype, row + i, residual);
#pragma unroll
      for (int j = 0; j < kElements; ++j) h[j] += residual[j];
      store_any(p.residual, p.residual_dtype, row + i, h);
    }
#pragma unroll
    for (int j = 0; j < kElements; ++j) squares = __fmaf_rn(h[j], h[j], squares);
  });
  double total = block_sum(squares, shared);
  if (!squares_are_in_range(total)) {
    double exact = 0;
    for_each([&](int64_t i, float(&h)[kElements], bool is_kept) {
      if (!is_kept) load_any(h_data, h_dtype, row + i, h);
#pragma unroll
      for (int j = 0; j < kElements; ++j) exact += static_cast<double>(h[j]) * h[j];
    });
    total = block_sum(exact, shared);
  }
  const float scale = norm_scale(total, n, p.eps);
  for_each([&](int64_t i, float(&h)[kElements], bool is_kept) {
    if (!is_kept) load_any(h_data, h_dtype, row + i, h);
    float weight[kElements];
    load_any(p.weight, p.weight_dtype, i, weight);
#pragma unroll
    for (int j = 0; j < kElements; ++j) h[j] = h[j] * scale * weight[j];
    if (p.accumulate) {
      float before[kElements];
      load_elements(static_cast<const float*>(p.out) + row + i, before);
#pragma unroll
      for (int j = 0; j < kElements; ++j) h[j] += before[j];
    }
    store_any(p.out, p.out_dtype, row + i, h);
  });
}

}  // namespace

void rms_norm(const RmsNormParams& p, Context& context) {
  check_float_types("rms_norm", {{"x", p.x_dtype},
                                 {"residual", p.residual ? p.residual_dtype : DType::f32},
                                 {"weight", p.weight_dtype},
                                 {"out", p.out_dtype}});
  if (p.accumulate) require_accumulator_type("rms_norm: out", p.out_dtype);
  if (p.num_tokens <= 0 || p.hidden_size <= 0) return;
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>(p.num_tokens);
  shape.threads = kThreads;
  shape.shared_bytes = kWarps * sizeof(double);
  bool vectors = p.hidden_size % kVector == 0;
  for (const void* data : {p.x, static_cast<const void*>(p.residual), p.weight, static_cast<const void*>(p.out)})
    vectors &= is_aligned<uint32_t, 4>(data);
  launch("rms_norm", vectors ? rms_norm_kernel<kVector> : rms_norm_kernel<1>, shape, context.stream, p);
}

}  // namespace diffqkv::cuda
