// out = silu(gate) * up, silu(x) = x / (1 + exp(-x)). A thread takes 16 bytes at once where all three tensors are aligned
// to them. Bound by memory.
#include <algorithm>

#include "linear.h"

namespace diffqkv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 4;

// Vectors of kElements, and what is left after the last whole one element by element. out may be gate or up.
template <typename T, int kElements>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) silu_mul_kernel(SiluMulParams p) {
  using Vector = Elements<T, kElements>;
  const T* gate = static_cast<const T*>(p.gate);
  const T* up = static_cast<const T*>(p.up);
  T* out = static_cast<T*>(p.out);
  const int block = blockIdx.x, num_blocks = gridDim.x, thread = threadIdx.x;
  const int64_t first = int64_t{block} * kThreads + thread;
  const int64_t step = int64_t{num_blocks} * kThreads, num_vectors = p.count / kElements;
  for (int64_t i = first; i < num_vectors; i += step) {
    const Vector a = ld_global(reinterpret_cast<const Vector*>(gate) + i),
                 b = ld_global(reinterpret_cast<const Vector*>(up) + i);
    Vector result;
#pragma unroll
    for (int j = 0; j < kElements; ++j) result.v[j] = from_float<T>(silu(to_float(a.v[j])) * to_float(b.v[j]));
    st_global(reinterpret_cast<Vector*>(out) + i, result);
  }
  for (int64_t i = num_vectors * kElements + first; i < p.count; i += step)
    st_global(out + i, from_float<T>(silu(load_float(gate + i)) * load_float(up + i)));
}

template <typename T, int kElements>
void launch_silu_mul(const SiluMulParams& p, Context& context) {
  const int64_t vectors = (p.count + kElements - 1) / kElements;
  const int64_t blocks = std::min<int64_t>((vectors + kThreads - 1) / kThreads,
                                           int64_t{context.num_multiprocessors} * kBlocksPerMultiprocessor);
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>(blocks);
  shape.threads = kThreads;
  launch("silu_mul", silu_mul_kernel<T, kElements>, shape, context.stream, p);
}

}  // namespace

void silu_mul(const SiluMulParams& p, Context& context) {
  check_float_types("silu_mul", {{"tensors", p.dtype}});
  if (p.count <= 0) return;
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  visit_float(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (aligned(p.gate) && aligned(p.up) && aligned(p.out)) return launch_silu_mul<T, 16 / sizeof(T)>(p, context);
    launch_silu_mul<T, 1>(p, context);
  });
}

}  // namespace diffqkv::cuda
