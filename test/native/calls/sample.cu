// Calls of sample, whose plain form runs on the host.
#include <algorithm>
#include <bit>
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
  std::vector<uint32_t> allowed = {};  // SampleRow::allowed; empty: null
  std::vector<LogitBias> biases = {};
};

// The mask that allows one token in `step` from `first` to last - 1. It also has all bits beyond the vocabulary.
std::vector<uint32_t> mask_of(int64_t vocab_size, int64_t first, int64_t last, int64_t step = 1) {
  std::vector<uint32_t> words(static_cast<size_t>((vocab_size + 31) / 32), 0);
  for (int64_t token = 0; token < static_cast<int64_t>(words.size()) * 32; ++token) {
    const bool is_allowed = token >= vocab_size || (token >= first && token < last && (token - first) % step == 0);
    if (is_allowed) words[static_cast<size_t>(token / 32)] |= 1u << token % 32;
  }
  return words;
}

// A bias of one token in `step` from `first` to last - 1, from -2 to 2.
std::vector<LogitBias> biases_of(int32_t first, int32_t last, int32_t step = 1) {
  std::vector<LogitBias> biases;
  for (int32_t token = first; token < last; token += step)
    biases.push_back({token, static_cast<float>(token * 37 % 17 - 8) / 4});
  return biases;
}

SampleRow row_of(Call& call, const SampleCase& c, const int32_t* history, size_t history_len) {
  SampleRow row;
  if (!c.allowed.empty()) {
    const std::vector<int32_t> words(c.allowed.begin(), c.allowed.end());
    row.allowed = reinterpret_cast<const uint32_t*>(add_integers(call, "allowed", words));
  }
  if (!c.biases.empty()) {
    std::vector<int32_t> words;
    for (const LogitBias& bias : c.biases) {
      words.push_back(bias.token);
      words.push_back(std::bit_cast<int32_t>(bias.bias));
    }
    row.biases = reinterpret_cast<const LogitBias*>(add_integers(call, "biases", words));
    row.num_biases = static_cast<int64_t>(c.biases.size());
  }
  row.history = history;
  row.history_len = static_cast<int64_t>(history_len);
  row.seed = 11;
  row.step = 3;
  row.top_k = c.top_k;
  row.temperature = c.temperature;
  row.top_p = c.top_p;
  row.min_p = c.min_p;
  row.repetition_penalty = c.penalty;
  return row;
}

// A row of logits for each case; all have the vocabulary of the first. Rows whose vocabulary is 0 draw nothing.
Call rows_call(const std::vector<SampleCase>& cases) {
  const size_t num_rows = cases.size();
  Call call;
  SampleParams p;
  p.num_rows = static_cast<int64_t>(num_rows);
  p.vocab_size = cases[0].vocab_size;
  p.logits =
      reinterpret_cast<const float*>(add_random(call, "logits", kF32, count_of({p.num_rows, p.vocab_size}), 3, 1));
  p.out_tokens = reinterpret_cast<int32_t*>(add_output(call, "out_tokens", DType::i32, num_rows, Comparison::bits));
  p.out_invalid = reinterpret_cast<int32_t*>(add_output(call, "out_invalid", DType::i32, num_rows, Comparison::bits));
  const int32_t* history = add_integers(call, "history", {3, 5, 5, 0});
  std::vector<SampleRow> rows;
  for (size_t i = 0; i < num_rows; ++i) {
    rows.push_back(row_of(call, cases[i], history, 4));
    rows[i].seed += i;
    rows[i].draws = cases[i].vocab_size > 0;
  }
  p.rows = call.sample_rows.emplace_back(rows).data();
  set_operator(call, sample, p);
  return call;
}

Call sample_call(const SampleCase& c) { return rows_call({c}); }

// The call with other first logits and another history.
Call call_of(const SampleCase& c, const std::vector<float>& first_logits, const std::vector<int32_t>& history) {
  return changed(sample_call(c), sample, [&](Call& call, SampleParams& p) {
    Tensor& logits = call.tensor("logits");
    std::vector<float> values = floats_of_bytes(kF32, logits.memory.values());
    std::copy(first_logits.begin(), first_logits.end(), values.begin());
    logits.memory.upload(bytes_of_floats(kF32, values));
    const SampleRow row = row_of(call, c, add_integers(call, "other integers", history), history.size());
    p.rows = call.sample_rows.emplace_back(std::vector<SampleRow>{row}).data();
  });
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

struct Sampled {
  int32_t token, invalid;
};

// test/operators/reference_sampling.ts in C++.
Sampled sampled(const SampleRow& row, const std::vector<float>& given) {
  std::vector<double> logits(given.begin(), given.end());
  const double penalty = static_cast<double>(row.repetition_penalty);
  std::vector<int32_t> history = download(row.history, row.history_len);
  std::sort(history.begin(), history.end());
  history.erase(std::unique(history.begin(), history.end()), history.end());
  for (const int32_t token : history) {
    double& logit = logits[static_cast<size_t>(token)];
    logit = static_cast<double>(static_cast<float>(logit > 0 ? logit / penalty : logit * penalty));
  }
  for (const LogitBias& bias : download(row.biases, row.num_biases)) {
    double& logit = logits[static_cast<size_t>(bias.token)];
    logit = std::isinf(bias.bias) ? static_cast<double>(bias.bias) : static_cast<float>(logit) + bias.bias;
  }
  if (row.allowed != nullptr) {
    const std::vector<uint32_t> words = download(row.allowed, static_cast<int64_t>((logits.size() + 31) / 32));
    for (size_t i = 0; i < logits.size(); ++i)
      if ((words[i / 32] >> i % 32 & 1) == 0) logits[i] = -std::numeric_limits<double>::infinity();
  }
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) return {0, 1 + static_cast<int32_t>(i)};
  }
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto logit_of = [&](int32_t token) { return logits[static_cast<size_t>(token)]; };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logit_of(a) > logit_of(b); });
  const double top = logit_of(order[0]);
  if (top == -std::numeric_limits<double>::infinity()) return {0, SampleParams::kNoLogit};
  if (row.temperature == 0) return {order[0], 0};
  if (row.top_k > 0 && row.top_k < static_cast<int64_t>(order.size())) order.resize(static_cast<size_t>(row.top_k));
  const auto weight = [&](int32_t token) {
    const double logit = logit_of(token);
    return logit == top ? 1.0 : std::exp((logit - top) / static_cast<double>(row.temperature));
  };
  if (row.top_p < 1) {
    double all = 0, sum = 0;
    for (const int32_t token : order) all += weight(token);
    size_t kept = 0;
    while (kept < order.size() && sum < static_cast<double>(row.top_p) * all) sum += weight(order[kept++]);
    order.resize(std::max<size_t>(kept, 1));
  }
  std::erase_if(order, [&](int32_t token) { return weight(token) < static_cast<double>(row.min_p); });
  std::sort(order.begin(), order.end());
  double mass = 0, sum = 0;
  for (const int32_t token : order) mass += weight(token);
  const double drawn = uniform(row.seed, row.step) * mass;
  for (const int32_t token : order) {
    sum += weight(token);
    if (sum > drawn) return {token, 0};
  }
  return {order.back(), 0};
}

}  // namespace

void reference(const SampleParams& p, Context&) {
  const std::vector<SampleRow> rows = download(p.rows, p.num_rows);
  for (int64_t i = 0; i < p.num_rows; ++i) {
    const SampleRow& row = rows[static_cast<size_t>(i)];
    if (row.draws == 0) continue;
    const Sampled result = sampled(row, download(p.logits + i * p.vocab_size, p.vocab_size));
    check_cuda(cudaMemcpy(p.out_tokens + i, &result.token, sizeof(int32_t), cudaMemcpyHostToDevice), "upload");
    check_cuda(cudaMemcpy(p.out_invalid + i, &result.invalid, sizeof(int32_t), cudaMemcpyHostToDevice), "upload");
  }
}

OperatorCalls sample_calls() {
  OperatorCalls calls;
  calls.seeded.add("greedy token", sample_call, {.vocab_size = 5000, .penalty = 1.2f});
  calls.seeded.add(
      "sampled token", sample_call,
      {.vocab_size = 5000, .temperature = 0.8f, .top_k = 40, .top_p = 0.9f, .min_p = 0.01f, .penalty = 1.1f});
  const std::vector<SampleCase> rows = {{.vocab_size = 5000},
                                        {.vocab_size = 5000, .temperature = 1, .top_p = 0.9f},
                                        {.vocab_size = 0},
                                        {.vocab_size = 5000, .temperature = 0.8f, .top_k = 40, .penalty = 1.1f}};
  calls.seeded.add("sampled tokens of several rows", [rows] { return rows_call(rows); });
  const std::vector<SampleCase> all = {{.vocab_size = 9003, .temperature = 1, .penalty = 1.1f},
                                       {.vocab_size = 9003, .temperature = 0.5f, .top_k = 3000, .top_p = 0.99f}};
  calls.seeded.add("sampled tokens of rows that are not aligned", [all] { return rows_call(all); });
  const std::vector<SampleCase> limited = {
      {.vocab_size = 9003, .allowed = mask_of(9003, 1200, 1300)},
      {.vocab_size = 9003, .temperature = 1, .penalty = 1.1f, .biases = biases_of(0, 9003, 5)},
      {.vocab_size = 9003},
      {.vocab_size = 9003, .temperature = 2, .allowed = mask_of(9003, 1, 9003, 3)},
      {.vocab_size = 9003,
       .temperature = 1,
       .top_k = 40,
       .penalty = 1.2f,
       .allowed = mask_of(9003, 5, 9003, 1700),
       .biases = biases_of(0, 9)},
      {.vocab_size = 9003, .temperature = 2, .top_p = 0.9f, .allowed = mask_of(9003, 0, 4000, 2)}};
  calls.seeded.add("sampled tokens of rows with masks and biases", [limited] { return rows_call(limited); });
  calls.small.add("sampled token, all tokens", sample_call, {.vocab_size = 3000, .temperature = 1.5f});
  calls.small.add("sampled token, top-k", sample_call, {.vocab_size = 300, .temperature = 1, .top_k = 7});
  calls.small.add("sampled token, top-p", sample_call, {.vocab_size = 5000, .temperature = 1, .top_p = 0.95f});
  calls.small.add("sampled token, min-p", sample_call, {.vocab_size = 5000, .temperature = 2, .min_p = 0.1f});

  calls.small.add("sampled token, fewer allowed tokens than top-k", sample_call,
                  {.vocab_size = 9000, .temperature = 1, .top_k = 5000, .allowed = mask_of(9000, 0, 9000, 4)});

  const int64_t vocab = kSigmaVocabSize;
  calls.sigma.add("Sigma: greedy token", sample_call, {.vocab_size = vocab});
  calls.sigma.add("Sigma: sampled token, all tokens", sample_call, {.vocab_size = vocab, .temperature = 1});
  calls.sigma.add("Sigma: sampled token, top-k 40, top-p 0.9", sample_call,
                  {.vocab_size = vocab, .temperature = 0.8f, .top_k = 40, .top_p = 0.9f});
  calls.sigma.add(
      "Sigma: sampled token, mask and biases", sample_call,
      {.vocab_size = vocab, .temperature = 1, .allowed = mask_of(vocab, 0, vocab, 7), .biases = biases_of(0, 2000)});
  calls.sigma.add("Sigma: sampled token, top-p 0.9", sample_call,
                  {.vocab_size = vocab, .temperature = 1, .top_p = 0.9f, .penalty = 1.1f});

  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const std::vector<int32_t> history = {3, 5, 5, 0}, bad_history = {3, 6000, 5};
  const auto token = [&](const std::string& name, const SampleCase& c, const std::vector<float>& logits,
                         const std::vector<int32_t>& tokens, bool reports = false) {
    calls.ptx.add("sampling: " + name, [=] { return call_of(c, logits, tokens); }).is_rejected = reports;
  };
  token("zeros of both signs", {.vocab_size = 700, .penalty = 1.3f}, {0.0f, -0.0f, 20.0f, -3.0f}, history);
  token("a logit of NaN", {.vocab_size = 700}, {1, nan}, {});
  token("a logit of infinity", {.vocab_size = 700, .temperature = 1}, {1, infinity}, {});
  token("no logit", {.vocab_size = 3, .temperature = 1}, {-infinity, -infinity, -infinity}, {});
  token("a history that is none", {.vocab_size = 700, .penalty = 1.3f}, {}, bad_history, true);
  token("a mask without tokens", {.vocab_size = 700, .temperature = 1, .allowed = mask_of(700, 0, 0)}, {}, history);
  token("a forbidden logit of NaN", {.vocab_size = 700, .allowed = mask_of(700, 2, 700)}, {1, nan}, {});
  token("forbidden logits of infinity",
        {.vocab_size = 700, .temperature = 1, .allowed = mask_of(700, 1, 700), .biases = {{2, -infinity}}},
        {infinity, 1, infinity}, {});
  token(
      "equal biased logits",
      {.vocab_size = 6, .temperature = 1, .top_k = 3, .allowed = mask_of(6, 1, 6), .biases = {{0, 9}, {2, -1}, {5, 1}}},
      {1, 1, 2, 1, 1, 0}, {});
  token("a bias of no token", {.vocab_size = 700, .biases = {{5, 1}, {700, 1}, {701, 1}}}, {}, history, true);
  token("a bias of a negative token", {.vocab_size = 700, .biases = {{-1, 1}, {5, 1}}}, {}, history, true);
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
