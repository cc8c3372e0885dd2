// Log probabilities of tokens (ops.h). A thread has whole rows. It reads a row twice: for the largest
// logit, then for the sum of exp(logit - largest), in float32 within blocks and in float64 over them.
// Bound by exp, in vectors of 4 that every CPU has.
#include "backend/cpu/sampling/log_probs.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "backend/error.h"

namespace diffqkv::cpu {
namespace {

constexpr int64_t kLanes = 4;
typedef float F32x4 __attribute__((vector_size(16)));
typedef int32_t I32x4 __attribute__((vector_size(16)));

inline F32x4 load(const float* p) {
  F32x4 x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}
inline F32x4 larger(F32x4 a, F32x4 b) { return a > b ? a : b; }  // b if a is NaN

// exp(x) for x <= 0 within a relative error of 2^-22; 2^-125 below -87. A Taylor polynomial of degree 7
// on [-ln(2) / 2, ln(2) / 2], where its remainder is below 2^-27.
inline F32x4 exp_of(F32x4 x) {
  constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: the low bits of the sum are the rounded integer
  x = larger(x, F32x4{} - 87.0f);
  const F32x4 shifted = x * kLog2e + kRound;
  const F32x4 n = shifted - kRound;
  const F32x4 r = (x - n * kLn2High) - n * kLn2Low;
  F32x4 poly = r * (1.0f / 5040) + 1.0f / 720;
  poly = poly * r + 1.0f / 120;
  poly = poly * r + 1.0f / 24;
  poly = poly * r + 1.0f / 6;
  poly = poly * r + 0.5f;
  poly = poly * r + 1.0f;
  poly = poly * r + 1.0f;
  const I32x4 bits = reinterpret_cast<I32x4>(poly) + (reinterpret_cast<I32x4>(shifted) << 23);
  return reinterpret_cast<F32x4>(bits);
}

// log(sum of exp(logits)) = largest + log_sum. `log_sum` is NaN if a logit is NaN or +infinity, or if
// none is finite.
struct Normalizer {
  double largest, log_sum;
};

// Calls use(x) for the logits in vectors of 4, in order. `padding` fills the last one.
template <typename Use>
void for_each_vector(const float* logits, int64_t begin, int64_t end, float padding, const Use& use) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) use(load(logits + i));
  if (i == end) return;
  float rest[kLanes];
  std::fill(std::copy(logits + i, logits + end, rest), rest + kLanes, padding);
  use(load(rest));
}

Normalizer normalizer_of(const float* logits, int64_t vocab_size) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr int64_t kBlock = 256;
  F32x4 most = F32x4{} - kInfinity;
  I32x4 has_nan = {};
  for_each_vector(logits, 0, vocab_size, -kInfinity, [&](F32x4 x) {
    most = larger(x, most);
    has_nan |= x != x;
  });
  const float largest = std::max(std::max(most[0], most[1]), std::max(most[2], most[3]));
  if ((has_nan[0] | has_nan[1] | has_nan[2] | has_nan[3]) != 0 || std::isinf(largest)) return {0, kNan};
  double sum = 0;
  for (int64_t begin = 0; begin < vocab_size; begin += kBlock) {
    F32x4 sums = {};
    for_each_vector(logits, begin, std::min(begin + kBlock, vocab_size), -kInfinity,
                    [&](F32x4 x) { sums += exp_of(x - largest); });
    for (int64_t lane = 0; lane < kLanes; ++lane) sum += sums[lane];
  }
  return {largest, std::log(sum)};
}

float log_prob(float logit, const Normalizer& normalizer) {
  return static_cast<float>(logit - normalizer.largest - normalizer.log_sum);
}

// Keeps the top_n tokens seen so far in order. Tokens come in rising order, so an equal logit comes after.
void write_top(const LogProbsParams& p, int64_t row, const Normalizer& normalizer) {
  const float* logits = p.logits + row * p.vocab_size;
  int32_t* tokens = p.out_top_tokens + row * p.top_n;
  const bool is_ordered = !std::isnan(normalizer.log_sum);
  int64_t kept = 0;
  for (int64_t token = 0; token < (is_ordered ? p.vocab_size : p.top_n); ++token) {
    if (kept == p.top_n && !(logits[token] > logits[tokens[kept - 1]])) continue;
    int64_t place = kept == p.top_n ? kept - 1 : kept++;
    for (; is_ordered && place > 0 && logits[token] > logits[tokens[place - 1]]; --place) {
      tokens[place] = tokens[place - 1];
    }
    tokens[place] = static_cast<int32_t>(token);
  }
  for (int64_t n = 0; n < p.top_n; ++n) p.out_top[row * p.top_n + n] = log_prob(logits[tokens[n]], normalizer);
}

}  // namespace

void log_probs(const LogProbsParams& p) {
  for (int64_t row = 0; row < p.num_rows; ++row) {
    if (p.tokens[row] >= 0 && p.tokens[row] < p.vocab_size) continue;
    fail(ErrorCode::invalid_argument, "token %d at index %lld is outside the vocabulary [0, %lld)", p.tokens[row],
         static_cast<long long>(row), static_cast<long long>(p.vocab_size));
  }
#pragma omp parallel for schedule(static) if (p.num_rows * p.vocab_size > 16384)
  for (int64_t row = 0; row < p.num_rows; ++row) {
    const float* logits = p.logits + row * p.vocab_size;
    const Normalizer normalizer = normalizer_of(logits, p.vocab_size);
    p.out[row] = log_prob(logits[p.tokens[row]], normalizer);
    if (p.top_n > 0) write_top(p, row, normalizer);
  }
}

}  // namespace diffqkv::cpu
