// Log probabilities of tokens (ops.h), in float64. A thread has whole rows. Bound by exp.
#include "backend/cpu/sampling/log_probs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "backend/error.h"

namespace diffqkv::cpu {
namespace {

// log(sum of exp(logits)); NaN if a logit is NaN or none is finite.
double log_sum_exp(const float* logits, int64_t vocab_size) {
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < vocab_size; ++i) largest = std::max(largest, logits[i]);
  double sum = 0;
  for (int64_t i = 0; i < vocab_size; ++i) sum += std::exp(static_cast<double>(logits[i]) - largest);
  return largest + std::log(sum);
}

void top_row(const LogProbsParams& p, int64_t row, double normalizer) {
  const float* logits = p.logits + row * p.vocab_size;
  std::vector<int32_t> order(static_cast<size_t>(p.vocab_size));
  for (int64_t i = 0; i < p.vocab_size; ++i) order[static_cast<size_t>(i)] = static_cast<int32_t>(i);
  std::partial_sort(order.begin(), order.begin() + p.top_n, order.end(), [&](int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  });
  for (int64_t n = 0; n < p.top_n; ++n) {
    const int32_t token = order[static_cast<size_t>(n)];
    p.out_top_tokens[row * p.top_n + n] = token;
    p.out_top[row * p.top_n + n] = static_cast<float>(logits[token] - normalizer);
  }
}

}  // namespace

void log_probs(const LogProbsParams& p) {
  for (int64_t row = 0; row < p.num_rows; ++row) {
    if (p.tokens[row] < 0 || p.tokens[row] >= p.vocab_size) {
      fail(ErrorCode::invalid_argument, "log_probs: tokens[%lld] is %d; it must be a token from 0 to %lld",
           static_cast<long long>(row), p.tokens[row], static_cast<long long>(p.vocab_size - 1));
    }
    const float* logits = p.logits + row * p.vocab_size;
    const double normalizer = log_sum_exp(logits, p.vocab_size);
    p.out[row] = static_cast<float>(logits[p.tokens[row]] - normalizer);
    if (p.top_n > 0) top_row(p, row, normalizer);
  }
}

}  // namespace diffqkv::cpu
