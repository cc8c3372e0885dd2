// Log probabilities of tokens (ops.h). One block for each row. Bound by latency.
#include <device/numbers.h>

#include "finding.h"
#include "kernels.h"
#include "launch.h"
#include "reductions.h"

namespace diffqkv::cuda {
namespace {

constexpr int kThreads = 32;

// A placeholder with the right results: one warp, which reads the row once for each of its outputs.
__global__ void __launch_bounds__(kThreads) log_probs_kernel(LogProbsParams p, Finding* finding) {
  const int64_t row = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x);
  const float* logits = p.logits + row * p.vocab_size;
  float largest = -infinity();
  for (int64_t i = lane; i < p.vocab_size; i += kThreads) largest = max_number(ld_global(logits + i), largest);
  largest = warp_max(largest);
  float sum = 0;
  for (int64_t i = lane; i < p.vocab_size; i += kThreads) sum += expf(ld_global(logits + i) - largest);
  const float normalizer = largest + logf(warp_sum(sum));
  const int token = ld_global(p.tokens + row);
  const bool is_valid = token >= 0 && token < p.vocab_size;
  if (lane == 0) {
    if (!is_valid) report(finding, Finding::token, static_cast<int>(row), token, static_cast<int>(p.vocab_size));
    st_global(p.out + row, ld_global(logits + (is_valid ? token : 0)) - normalizer);
  }
}

}  // namespace

void log_probs(const LogProbsParams& p, Context& context) {
  if (p.num_rows <= 0) return;
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>(p.num_rows);
  shape.threads = kThreads;
  launch("log_probs", log_probs_kernel, shape, context.stream, p, context.finding);
}

}  // namespace diffqkv::cuda
