// Calls of log_probs, whose plain form runs on the host.
#include <algorithm>
#include <limits>
#include <numeric>

#include "calls/plain.h"

namespace diffqkv::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct LogProbsCase {
  std::vector<int32_t> tokens;
  int64_t vocab_size, top_n = 0;
  std::vector<float> first_logits = {};  // instead of random ones
};

Call log_probs_call(const LogProbsCase& c) {
  Call call;
  LogProbsParams p;
  p.num_rows = static_cast<int64_t>(c.tokens.size());
  p.vocab_size = c.vocab_size;
  p.top_n = c.top_n;
  const size_t num_logits = count_of({p.num_rows, p.vocab_size}), num_top = count_of({p.num_rows, p.top_n});
  std::vector<float> logits = floats_of_bytes(kF32, random_bytes(kF32, num_logits, 3, 1));
  std::copy(c.first_logits.begin(), c.first_logits.end(), logits.begin());
  p.logits = reinterpret_cast<const float*>(add_tensor(call, "logits", kF32, bytes_of_floats(kF32, logits)));
  p.tokens = add_integers(call, "tokens", c.tokens);
  p.out = reinterpret_cast<float*>(add_output(call, "out", kF32, c.tokens.size(), Comparison::values));
  if (p.top_n > 0) {
    p.out_top_tokens =
        reinterpret_cast<int32_t*>(add_output(call, "out_top_tokens", DType::i32, num_top, Comparison::bits));
    p.out_top = reinterpret_cast<float*>(add_output(call, "out_top", kF32, num_top, Comparison::values, p.top_n));
  }
  set_operator(call, log_probs, p);
  return call;
}

// Tokens 0, 7, 14 and so on.
Call random_call(int64_t num_rows, int64_t vocab_size, int64_t top_n) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < num_rows; ++i) tokens.push_back(static_cast<int32_t>(i * 7 % vocab_size));
  return log_probs_call({tokens, vocab_size, top_n});
}

template <typename T>
void upload(T* to, const std::vector<T>& values) {
  check_cuda(cudaMemcpy(to, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "upload");
}

}  // namespace

void reference(const LogProbsParams& p, Context&) {
  const std::vector<int32_t> tokens = download(p.tokens, p.num_rows);
  std::vector<float> out, out_top;
  std::vector<int32_t> out_top_tokens;
  for (int64_t row = 0; row < p.num_rows; ++row) {
    const std::vector<float> logits = download(p.logits + row * p.vocab_size, p.vocab_size);
    const double largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const float logit : logits) sum += std::exp(logit - largest);
    const auto log_prob = [&](int32_t token) {
      return static_cast<float>(logits[static_cast<size_t>(token)] - largest - std::log(sum));
    };
    out.push_back(log_prob(tokens[static_cast<size_t>(row)]));
    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    if (!std::isnan(sum)) {
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
      });
    }
    for (int64_t n = 0; n < p.top_n; ++n) {
      out_top_tokens.push_back(order[static_cast<size_t>(n)]);
      out_top.push_back(log_prob(out_top_tokens.back()));
    }
  }
  upload(p.out, out);
  if (p.top_n == 0) return;
  upload(p.out_top_tokens, out_top_tokens);
  upload(p.out_top, out_top);
}

OperatorCalls log_probs_calls() {
  OperatorCalls calls;
  calls.seeded.add("log_probs, the most likely tokens", [] { return random_call(2, 5000, 20); });
  calls.seeded.add("log_probs of rows that are not aligned", [] { return random_call(3, 2601, 3); });
  calls.small.add("log_probs", [] { return random_call(3, 10000, 0); });
  calls.sigma.add("Sigma: log_probs of 64 rows", [] { return random_call(64, kSigmaVocabSize, 0); });
  calls.sigma.add("Sigma: log_probs, the most likely tokens", [] { return random_call(16, kSigmaVocabSize, 20); });

  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto logits = [&](const std::string& name, const std::vector<float>& first, int64_t vocab_size = 700) {
    calls.ptx.add("log_probs: " + name, log_probs_call,
                  {std::vector<int32_t>(2, vocab_size > 1), vocab_size, std::min<int64_t>(vocab_size, 20), first});
  };
  logits("a logit of NaN", {1, nan});
  logits("a logit of infinity", {1, kInfinity});
  logits("no logit", {-kInfinity, -kInfinity, -kInfinity}, 3);
  logits("an impossible token", {-kInfinity, 1, 2, 4}, 4);
  logits("equal logits of both signs", {0.0f, -0.0f, 0.0f, -0.0f, 9, 9, 9, -9});
  logits("a single token", {3}, 1);
  calls.ptx.add_rejected("log_probs of a token that is none", [] { return log_probs_call({{0, 700}, 700}); });
  calls.ptx.add_rejected("log_probs of a negative token", [] { return log_probs_call({{-1, 0}, 700}); });
  return calls;
}

}  // namespace diffqkv::cuda
