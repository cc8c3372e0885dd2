// Rotate-half RoPE (ops.h has the formula). A block a token. Bound by memory, and at one token by the time of a
// launch.
#include "rotary.h"

namespace diffqkv::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads, 4) rope_kernel(RopeParams p, Finding* finding) {
  wait_for_previous_kernel();
  start_next_kernel();
  rotate_token(p, blockIdx.x, finding);
}

}  // namespace

void rope(const RopeParams& p, Context& context) {
  check_float_types("rope", {{"tensors", p.dtype}});
  if (p.num_tokens <= 0 || p.num_heads <= 0 || p.head_dim <= 0) return;
  LaunchShape shape;
  shape.waits = true;
  shape.grid[0] = static_cast<unsigned>(p.num_tokens);
  shape.threads = kThreads;
  launch("rope", rope_kernel, shape, context.stream, p, context.finding);
}

}  // namespace diffqkv::cuda
