// Rotate-half RoPE (ops.h has the formula). A block a token. Bound by memory, and at one token by the time of a
// launch.
#include "finding.h"
#include "rotary.h"

namespace diffqkv::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads, 4) rope_kernel(RopeParams p, Finding* finding) {
  const int t = blockIdx.x, position = ld_global(p.positions + t);
  if (position < 0 && threadIdx.x == 0) report(finding, Finding::position, t, position, 0x7fffffff);
  const int64_t at = t * p.num_heads * p.head_dim;
  rotate_heads(p.x, p.dtype, at, p.out, p.dtype, at, static_cast<int>(p.num_heads), static_cast<int>(p.head_dim),
               position < 0 ? 0 : position, p.inv_freq, p.scale);
}

}  // namespace

void rope(const RopeParams& p, Context& context) {
  check_float_types("rope", {{"tensors", p.dtype}});
  if (p.num_tokens <= 0 || p.num_heads <= 0 || p.head_dim <= 0) return;
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>(p.num_tokens);
  shape.threads = kThreads;
  launch("rope", rope_kernel, shape, context.stream, p, context.finding);
}

}  // namespace diffqkv::cuda
