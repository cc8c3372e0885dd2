// Calls of sample, whose plain form runs on the host.
#include <algorithm>
#include <limits>
#include <numeric>

#include "calls/plain.h"

namespace diffqkv::cuda {
namespace {

struct SampleCase {
  int64_t vocab_size;
  float temperature = 0;
  int64_t top_k = 0;
  float top_p = 1, min_p = 0, penalty = 1;
};

Call sample_call(const SampleCase& c) {
  Call call;
  SampleParams p;
  p.logits = reinterpret_cast<const float*>(add_random(call, "logits", DType::f32, count_of({c.vocab_size}), 3, 1));
  p.out_token = reinterpret_cast<int32_t*>(add_output(call, "out_token", DType::i32, 1, Comparison::bits));
  p.history = add_integers(call, "history", {3, 5, 5, 0});
  p.history_len = 4;
  p.vocab_size = c.vocab_size;
  p.temperature = c.temperature;
  p.top_k = c.top_k;
  p.top_p = c.top_p;
  p.min_p = c.min_p;
  p.repetition_penalty = c.penalty;
  p.seed = 11;
  p.step = 3;
  set_operator(call, sample, p);
  return call;
}

// The call with other first logits and another history.
Call call_of(const SampleCase& c, const std::vector<float>& first_logits, const std::vector<int32_t>& history) {
  Call call = with_integers(sample_call(c), sample, &SampleParams::history, history);
  Tensor& logits = call.tensor("logits");
  std::vector<float> values = floats_of_bytes(kF32, logits.memory.values());
  std::copy(first_logits.begin(), first_logits.end(), values.begin());
  logits.memory.upload(bytes_of_floats(kF32, values));
  return changed(std::move(call), sample,
                 [&](Call&, SampleParams& p) { p.history_len = static_cast<int64_t>(history.size()); });
}

// Philox-4x32-10 (Salmon et al., SC 2011), keyed by `seed` at counter `step`: the first 53 bits as a number in [0, 1).
double uniform(uint64_t seed, uint64_t step) {
  uint32_t counter[4] = {static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32), 0, 0};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xd2511f53} * counter[0], b = uint64_t{0xcd9e8d57} * counter[2];
    const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
                              static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    std::copy(next, next + 4, counter);
    key[0] += 0x9e3779b9u;
    key[1] += 0xbb67ae85u;
  }
  return static_cast<double>((uint64_t{counter[0]} << 32 | counter[1]) >> 11) * 0x1p-53;
}

// test/operators/reference_sampling.ts in C++.
int32_t sampled_token(const SampleParams& p) {
  const std::vector<float> given = download(p.logits, p.vocab_size);
  std::vector<double> logits(given.begin(), given.end());
  const double penalty = static_cast<double>(p.repetition_penalty);
  std::vector<int32_t> history = download(p.history, p.history_len);
  std::sort(history.begin(), history.end());
  history.erase(std::unique(history.begin(), history.end()), history.end());
  for (const int32_t token : history) {
    double& logit = logits[static_cast<size_t>(token)];
    logit = static_cast<double>(static_cast<float>(logit > 0 ? logit / penalty : logit * penalty));
  }
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto logit_of = [&](int32_t token) { return logits[static_cast<size_t>(token)]; };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logit_of(a) > logit_of(b); });
  const double top = logit_of(order[0]);
  if (p.temperature == 0) return order[0];
  if (p.top_k > 0 && p.top_k < p.vocab_size) order.resize(static_cast<size_t>(p.top_k));
  const auto weight = [&](int32_t token) {
    return std::exp((logit_of(token) - top) / static_cast<double>(p.temperature));
  };
  if (p.top_p < 1) {
    double all = 0, sum = 0;
    for (const int32_t token : order) all += weight(token);
    size_t kept = 0;
    while (kept < order.size() && sum < static_cast<double>(p.top_p) * all) sum += weight(order[kept++]);
    order.resize(std::max<size_t>(kept, 1));
  }
  std::erase_if(order, [&](int32_t token) { return weight(token) < static_cast<double>(p.min_p); });
  std::sort(order.begin(), order.end());
  double mass = 0, sum = 0;
  for (const int32_t token : order) mass += weight(token);
  const double drawn = uniform(p.seed, p.step) * mass;
  for (const int32_t token : order) {
    sum += weight(token);
    if (sum > drawn) return token;
  }
  return order.back();
}

}  // namespace

void reference(const SampleParams& p, Context&) {
  const int32_t token = sampled_token(p);
  check_cuda(cudaMemcpy(p.out_token, &token, sizeof(token), cudaMemcpyHostToDevice), "upload");
}

OperatorCalls sample_calls() {
  OperatorCalls calls;
  calls.seeded.add("greedy token", sample_call, {.vocab_size = 5000, .penalty = 1.2f});
  calls.seeded.add(
      "sampled token", sample_call,
      {.vocab_size = 5000, .temperature = 0.8f, .top_k = 40, .top_p = 0.9f, .min_p = 0.01f, .penalty = 1.1f});
  calls.small.add("sampled token, all tokens", sample_call, {.vocab_size = 3000, .temperature = 1.5f});
  calls.small.add("sampled token, top-k", sample_call, {.vocab_size = 300, .temperature = 1, .top_k = 7});
  calls.small.add("sampled token, top-p", sample_call, {.vocab_size = 5000, .temperature = 1, .top_p = 0.95f});
  calls.small.add("sampled token, min-p", sample_call, {.vocab_size = 5000, .temperature = 2, .min_p = 0.1f});

  const int64_t vocab = kSigmaVocabSize;
  calls.sigma.add("Sigma: greedy token", sample_call, {.vocab_size = vocab});
  calls.sigma.add("Sigma: sampled token, all tokens", sample_call, {.vocab_size = vocab, .temperature = 1});
  calls.sigma.add("Sigma: sampled token, top-k 40, top-p 0.9", sample_call,
                  {.vocab_size = vocab, .temperature = 0.8f, .top_k = 40, .top_p = 0.9f});
  calls.sigma.add("Sigma: sampled token, top-p 0.9", sample_call,
                  {.vocab_size = vocab, .temperature = 1, .top_p = 0.9f, .penalty = 1.1f});

  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const std::vector<int32_t> history = {3, 5, 5, 0}, bad_history = {3, 6000, 5};
  const auto token = [&](const std::string& name, const SampleCase& c, const std::vector<float>& logits,
                         const std::vector<int32_t>& tokens, bool reports = false) {
    calls.ptx.add("sampling: " + name, [=] { return call_of(c, logits, tokens); }).is_rejected = reports;
  };
  token("zeros of both signs", {.vocab_size = 700, .penalty = 1.3f}, {0.0f, -0.0f, 20.0f, -3.0f}, history);
  token("a logit of NaN", {.vocab_size = 700}, {1, nan}, {}, true);
  token("a logit of infinity", {.vocab_size = 700, .temperature = 1}, {1, infinity}, {});
  token("no logit", {.vocab_size = 3, .temperature = 1}, {-infinity, -infinity, -infinity}, {}, true);
  token("a history that is none", {.vocab_size = 700, .penalty = 1.3f}, {}, bad_history, true);
  token("a single token", {.vocab_size = 1, .temperature = 1}, {}, {});
  token("equal logits", {.vocab_size = 6, .temperature = 1, .top_k = 3, .top_p = 0.5f}, {1, 1, 1, 1, 1, 1}, {});
  token("cold", {.vocab_size = 3000, .temperature = 0.05f, .top_p = 0.9f}, {}, history);
  token("hot", {.vocab_size = 20000, .temperature = 30, .top_p = 0.999f, .min_p = 0.001f}, {}, history);
  token("most are kept", {.vocab_size = 9000, .temperature = 2, .top_k = 8000}, {}, history);
  token("everything",
        {.vocab_size = 9000, .temperature = 0.7f, .top_k = 500, .top_p = 0.8f, .min_p = 0.05f, .penalty = 1.1f}, {},
        history);
  return calls;
}

}  // namespace diffqkv::cuda
