// out[t, :] = x[t, :] + bias. One block per token. If the rows are aligned, a thread processes four elements at a time.
// Bound by memory; the bias is read from the L2 cache after the first token.
#include "element_types.h"

namespace diffqkv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 4;

template <typename T, int kElements>
__global__ void __launch_bounds__(kThreads, 4) add_bias_kernel(AddBiasParams p) {
  wait_for_previous_kernel();
  start_next_kernel();
  using Vector = Elements<T, kElements>;
  using BiasVector = Elements<float, kElements>;
  const int64_t row = int64_t{blockIdx.x} * p.num_features;
  const T* x = static_cast<const T*>(p.x) + row;
  T* out = static_cast<T*>(p.out) + row;
  for (int64_t i = static_cast<int>(threadIdx.x) * kElements; i < p.num_features; i += kThreads * kElements) {
    const Vector a = ld_global(reinterpret_cast<const Vector*>(x + i));
    const BiasVector b = ld_global(reinterpret_cast<const BiasVector*>(p.bias + i));
    Vector result;
#pragma unroll
    for (int j = 0; j < kElements; ++j) result.v[j] = from_float<T>(to_float(a.v[j]) + b.v[j]);
    st_global(reinterpret_cast<Vector*>(out + i), result);
  }
}

}  // namespace

void add_bias(const AddBiasParams& p, Context& context) {
  check_float_types("add_bias", {{"x", p.dtype}});
  if (p.num_tokens <= 0 || p.num_features <= 0) return;
  LaunchShape shape;
  shape.waits = true;
  shape.grid[0] = static_cast<unsigned>(p.num_tokens);
  shape.threads = kThreads;
  visit_float(p.dtype, [&](auto element) {
    using T = decltype(element);
    const bool vectors = p.num_features % kVector == 0 && is_aligned<T, kVector>(p.x) &&
                         is_aligned<T, kVector>(p.out) && is_aligned<float, kVector>(p.bias);
    launch("add_bias", vectors ? add_bias_kernel<T, kVector> : add_bias_kernel<T, 1>, shape, context.stream, p);
  });
}

}  // namespace diffqkv::cuda
