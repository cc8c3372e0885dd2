// out = cap * tanh(x / cap). If the tensors are aligned, a thread processes four elements at a time. Bound by memory.
#include <algorithm>
#include <cmath>

#include "element_types.h"

namespace diffqkv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 4;
constexpr int kVector = 4;

// tanh(x) within 4 ulp: near 0 the polynomial of the Cephes library, elsewhere by exp, which ends at 1 if it overflows. NaN
// stays NaN.
__device__ __forceinline__ float tanh_of(float x) {
  const float magnitude = fabsf(x);
  const float square = x * x;
  float poly = -5.70498872745e-3f;
  poly = __fmaf_rn(poly, square, 2.06390887954e-2f);
  poly = __fmaf_rn(poly, square, -5.37397155531e-2f);
  poly = __fmaf_rn(poly, square, 1.33314422036e-1f);
  poly = __fmaf_rn(poly, square, -3.33332819422e-1f);
  const float near_zero = __fmaf_rn(poly * square, magnitude, magnitude);
  const float elsewhere = __fmaf_rn(-2.0f, __frcp_rn(expf(magnitude + magnitude) + 1.0f), 1.0f);
  const float result = magnitude < 0.625f ? near_zero : elsewhere;
  return bit_cast<float>(bit_cast<uint32_t>(result) | (bit_cast<uint32_t>(x) & 0x80000000u));
}

template <int kCount>
__device__ __forceinline__ void cap_vector(const SoftcapParams& p, int64_t i) {
  float x[kCount];
  load_elements(p.x + i * kCount, x);
#pragma unroll
  for (int j = 0; j < kCount; ++j) x[j] = p.cap * tanh_of(x[j] / p.cap);
  store_elements(p.out + i * kCount, x);
}

// Vectors of kElements, then one element at a time for the rest. out may be x.
template <int kElements>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) softcap_kernel(SoftcapParams p) {
  wait_for_previous_kernel();
  start_next_kernel();
  const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t step = int64_t{gridDim.x} * kThreads, num_vectors = p.count / kElements;
  for (int64_t i = first; i < num_vectors; i += step) cap_vector<kElements>(p, i);
  for (int64_t i = num_vectors * kElements + first; i < p.count; i += step) cap_vector<1>(p, i);
}

}  // namespace

void softcap(const SoftcapParams& p, Context& context) {
  if (p.count <= 0) return;
  const bool vectors = is_aligned<float, kVector>(p.x) && is_aligned<float, kVector>(p.out);
  const int64_t threads = vectors ? (p.count + kVector - 1) / kVector : p.count;
  const int64_t blocks = std::min<int64_t>((threads + kThreads - 1) / kThreads,
                                           int64_t{context.num_multiprocessors} * kBlocksPerMultiprocessor);
  LaunchShape shape;
  shape.waits = true;
  shape.grid[0] = static_cast<unsigned>(blocks);
  shape.threads = kThreads;
  launch("softcap", vectors ? softcap_kernel<kVector> : softcap_kernel<1>, shape, context.stream, p);
}

}  // namespace diffqkv::cuda
