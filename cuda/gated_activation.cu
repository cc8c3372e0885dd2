// out = activation(gate) * up, or activation(up) without a gate. A thread takes 16 bytes at once where all tensors are
// aligned to them. Bound by memory.
#include <algorithm>

#include "activation.h"
#include "linear.h"

namespace diffqkv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 4;

// Elements i * kCount to i * kCount + kCount - 1.
template <typename T, typename Out, int kCount>
__device__ __forceinline__ void activate_vector(const GatedActivationParams& p, int64_t i) {
  float x[kCount], up[kCount];
  load_elements(static_cast<const T*>(p.up) + i * kCount, up);
  if (p.gate) {
    load_elements(static_cast<const T*>(p.gate) + i * kCount, x);
    activate(p.activation, x);
#pragma unroll
    for (int j = 0; j < kCount; ++j) x[j] *= up[j];
    store_elements(static_cast<Out*>(p.out) + i * kCount, x);
  } else {
    activate(p.activation, up);
    store_elements(static_cast<Out*>(p.out) + i * kCount, up);
  }
}

// Vectors of kElements, and what is left after the last whole one element by element. out may be gate or up.
template <typename T, typename Out, int kElements>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) gated_activation_kernel(GatedActivationParams p) {
  wait_for_previous_kernel();
  start_next_kernel();
  const int block = blockIdx.x, num_blocks = gridDim.x, thread = threadIdx.x;
  const int64_t first = int64_t{block} * kThreads + thread;
  const int64_t step = int64_t{num_blocks} * kThreads, num_vectors = p.count / kElements;
  for (int64_t i = first; i < num_vectors; i += step) activate_vector<T, Out, kElements>(p, i);
  for (int64_t i = num_vectors * kElements + first; i < p.count; i += step) activate_vector<T, Out, 1>(p, i);
}

template <typename T, typename Out, int kElements>
void launch_gated_activation(const GatedActivationParams& p, Context& context) {
  const int64_t vectors = (p.count + kElements - 1) / kElements;
  const int64_t blocks = std::min<int64_t>((vectors + kThreads - 1) / kThreads,
                                           int64_t{context.num_multiprocessors} * kBlocksPerMultiprocessor);
  LaunchShape shape;
  shape.waits = true;
  shape.grid[0] = static_cast<unsigned>(blocks);
  shape.threads = kThreads;
  launch("gated_activation", gated_activation_kernel<T, Out, kElements>, shape, context.stream, p);
}

}  // namespace

void gated_activation(const GatedActivationParams& p, Context& context) {
  check_float_types("gated_activation", {{"tensors", p.dtype}});
  if (p.count <= 0) return;
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  visit_float(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (aligned(p.gate) && aligned(p.up) && aligned(p.out))
      return launch_gated_activation<T, T, 16 / sizeof(T)>(p, context);
    launch_gated_activation<T, T, 1>(p, context);
  });
}

void gated_activation_to_bf16(const GatedActivationParams& p, Context& context) {
  if (p.count > 0) launch_gated_activation<float, bf16, 4>(p, context);
}

}  // namespace diffqkv::cuda
