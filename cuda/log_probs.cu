// Log probabilities of tokens (ops.h): (logit - largest) - log(sum of exp(logit - largest)). A block for each row, which
// reads it once for the largest logit and the sum together: a thread rescales its sum whenever it finds a larger logit.
//
// The most likely tokens are found one after another. Each thread knows the most likely one of its own tokens. The
// block takes the first of these, and the warp of its thread looks for the next among that thread's tokens, 1 / 512 of the
// row. Sums are in a fixed order, so a result does not depend on the order of threads. Bound by latency.
#include <cmath>

#include "element_types.h"
#include "finding.h"
#include "reductions.h"

namespace diffqkv::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kVector = 4;
constexpr uint64_t kNoKey = 0;

// The sum of exp(logit - largest).
struct Part {
  float largest, sum;
};

struct Shared {
  Part parts[kWarps];
  uint64_t keys[2][kWarps];  // in turn, so that a barrier is enough for each token
};

// The same sum relative to `largest`, which is not less.
__device__ __forceinline__ float rescaled(const Part& part, float largest) {
  return part.largest == largest ? part.sum : part.sum * expf(part.largest - largest);
}

// NaN and +infinity make the sum NaN.
template <int kElements>
__device__ __forceinline__ void add(Part& part, const float (&x)[kElements]) {
  float largest = part.largest;
#pragma unroll
  for (int j = 0; j < kElements; ++j) largest = x[j] > largest ? x[j] : largest;
  float sum = rescaled(part, largest);
#pragma unroll
  for (int j = 0; j < kElements; ++j) sum += x[j] == -infinity() ? 0.0f : expf(x[j] - largest);
  part = {largest, sum};
}

// The part of the block, the same bits in every thread.
__device__ __forceinline__ Part block_part(Part part, Shared* shared) {
  const float warp_largest = warp_max(part.largest);
  part = {warp_largest, warp_sum(rescaled(part, warp_largest))};
  if (lane_index() == 0) {
    st_shared(&shared->parts[warp_index()].largest, part.largest);
    st_shared(&shared->parts[warp_index()].sum, part.sum);
  }
  __syncthreads();
  float largest = -infinity();
  for (int warp = 0; warp < kWarps; ++warp) largest = max_number(ld_shared(&shared->parts[warp].largest), largest);
  float sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) {
    sum += rescaled({ld_shared(&shared->parts[warp].largest), ld_shared(&shared->parts[warp].sum)}, largest);
  }
  return {largest, sum};
}

// Keys are in the order of likelihood, and those of equal logits in the order of their tokens, the lowest last. No key is
// kNoKey. The logit is not NaN.
__device__ __forceinline__ uint64_t key_of(float logit, uint32_t token) {
  const uint32_t bits = logit == 0.0f ? 0u : bit_cast<uint32_t>(logit);
  const uint32_t high = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(high) << 32 | ~token;
}
__device__ __forceinline__ uint32_t token_of(uint64_t key) { return ~static_cast<uint32_t>(key); }
__device__ __forceinline__ float logit_of(uint64_t key) {
  const uint32_t high = static_cast<uint32_t>(key >> 32);
  return bit_cast<float>(high & 0x80000000u ? high & 0x7fffffffu : ~high);
}
__device__ __forceinline__ uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }
__device__ __forceinline__ uint64_t warp_max(uint64_t key) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const uint32_t low = __shfl_xor_sync(kAllLanes, static_cast<uint32_t>(key), mask);
    const uint32_t high = __shfl_xor_sync(kAllLanes, static_cast<uint32_t>(key >> 32), mask);
    key = larger(key, static_cast<uint64_t>(high) << 32 | low);
  }
  return key;
}

// The most likely token below the key `taken` among those of a thread, for all lanes of a warp.
template <int kElements>
__device__ __forceinline__ uint64_t next_key(const float* logits, int64_t vocab_size, int thread, uint64_t taken) {
  uint64_t next = kNoKey;
#pragma unroll 1
  for (int64_t i = (int64_t{lane_index()} * kThreads + thread) * kElements; i < vocab_size;
       i += int64_t{kWarpSize} * kThreads * kElements) {
    float x[kElements];
    load_elements(logits + i, x);
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      const uint64_t key = key_of(x[j], static_cast<uint32_t>(i + j));
      if (key < taken) next = larger(next, key);
    }
  }
  return warp_max(next);
}

// vocab_size is a multiple of kElements.
template <int kElements>
__global__ void __launch_bounds__(kThreads, 2) log_probs_kernel(LogProbsParams p, Finding* finding) {
  wait_for_previous_kernel();
  start_next_kernel();
  Shared* shared = reinterpret_cast<Shared*>(dynamic_shared());
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.x;
  const float* logits = p.logits + row * p.vocab_size;
  Part part = {-infinity(), 0.0f};
  float best = -infinity();
  int64_t best_token = -1;
#pragma unroll 4
  for (int64_t i = int64_t{thread} * kElements; i < p.vocab_size; i += kThreads * kElements) {
    float x[kElements];
    load_elements(logits + i, x);
    add(part, x);
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      if (best_token >= 0 && !(x[j] > best)) continue;
      best = x[j];
      best_token = i + j;
    }
  }
  part = block_part(part, shared);
  const float log_sum = logf(part.sum);
  if (thread == 0) {
    int token = ld_global(p.tokens + row);
    if (token < 0 || token >= p.vocab_size) {
      report(finding, Finding::token, static_cast<int>(row), token, static_cast<int>(p.vocab_size));
      token = 0;
    }
    st_global(p.out + row, ld_global(logits + token) - part.largest - log_sum);
  }
  int32_t* top_tokens = p.out_top_tokens + row * p.top_n;
  float* top = p.out_top + row * p.top_n;
  if (!(part.sum > 0)) {  // 0 if all logits are -infinity
    if (thread < p.top_n) {
      st_global(top_tokens + thread, thread);
      st_global(top + thread, log_sum - log_sum);
    }
    return;
  }
  uint64_t key = best_token >= 0 ? key_of(best, static_cast<uint32_t>(best_token)) : kNoKey;
  for (int n = 0; n < p.top_n; ++n) {
    uint64_t* keys = shared->keys[n % 2];
    const uint64_t warp_key = warp_max(key);
    if (lane_index() == 0) st_shared(keys + warp_index(), warp_key);
    __syncthreads();
    uint64_t taken = kNoKey;
    for (int warp = 0; warp < kWarps; ++warp) taken = larger(taken, ld_shared(keys + warp));
    if (thread == 0) {
      st_global(top_tokens + n, static_cast<int32_t>(token_of(taken)));
      st_global(top + n, logit_of(taken) - part.largest - log_sum);
    }
    const int owner = static_cast<int>(token_of(taken) / kElements % kThreads);
    if (warp_index() != owner / kWarpSize) continue;
    const uint64_t next = next_key<kElements>(logits, p.vocab_size, owner, taken);
    if (thread == owner) key = next;
  }
}

}  // namespace

void log_probs(const LogProbsParams& p, Context& context) {
  if (p.num_rows <= 0) return;
  LaunchShape shape;
  shape.waits = true;
  shape.grid[0] = static_cast<unsigned>(p.num_rows);
  shape.threads = kThreads;
  shape.shared_bytes = sizeof(Shared);
  const bool vectors = p.vocab_size % kVector == 0 && is_aligned<float, kVector>(p.logits);
  launch("log_probs", vectors ? log_probs_kernel<kVector> : log_probs_kernel<1>, shape, context.stream, p,
         context.finding);
}

}  // namespace diffqkv::cuda
