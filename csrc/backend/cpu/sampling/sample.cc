// Draws a token: repetition penalty, biases, mask, temperature, top-k, top-p, min-p, one uniform number (ops.h).
// Greedy is one pass over the logits. Top-k keeps a heap. Top-p sorts only as many candidates as
// its mass needs. Bound by exp if nothing restricts the vocabulary.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/sampling/sampler.h"
#include "backend/error.h"

namespace diffqkv::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Philox-4x32-10: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The
// first 53 of 128 bits make a float64 in [0, 1).
double philox_uniform(uint64_t seed, uint64_t step) {
  uint32_t counter[4] = {static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32), 0, 0};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * counter[2];
    const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
                              static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    std::copy(next, next + 4, counter);
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return static_cast<double>((uint64_t{counter[0]} << 21) | (counter[1] >> 11)) * 0x1p-53;
}

void check_token(const char* name, int64_t index, int32_t token, int64_t vocab_size) {
  if (token >= 0 && token < vocab_size) return;
  fail(ErrorCode::invalid_argument, "sample: %s[%lld] is %d; it must be a token from 0 to %lld", name,
       static_cast<long long>(index), token, static_cast<long long>(vocab_size - 1));
}

void check_tokens(const SampleRow& row, int64_t vocab_size) {
  for (int64_t i = 0; i < row.history_len; ++i) check_token("history", i, row.history[i], vocab_size);
  for (int64_t i = 0; i < row.num_biases; ++i) check_token("biases", i, row.biases[i].token, vocab_size);
}

}  // namespace

// The penalty applies once to each distinct token, however often it occurs.
void Sampler::penalize(const SampleRow& row) {
  if (row.repetition_penalty == 1) return;
  seen_.assign((logits_.size() + 63) / 64, 0);
  for (int64_t i = 0; i < row.history_len; ++i) {
    const int32_t token = row.history[i];
    uint64_t& word = seen_[token / 64];
    const uint64_t bit = uint64_t{1} << (token % 64);
    if (word & bit) continue;
    word |= bit;
    float& logit = logits_[token];
    logit = logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
  }
}

void Sampler::add_biases(const SampleRow& row) {
  for (int64_t i = 0; i < row.num_biases; ++i) {
    const LogitBias& bias = row.biases[i];
    float& logit = logits_[bias.token];
    logit = bias.bias == kMinusInfinity ? kMinusInfinity : logit + bias.bias;
  }
}

void Sampler::forbid(const uint32_t* allowed) {
  if (allowed == nullptr) return;
  const size_t vocab_size = logits_.size();
  for (size_t first = 0; first < vocab_size; first += 32) {
    const uint32_t word = allowed[first / 32];
    if (word == UINT32_MAX) continue;
    const size_t count = std::min<size_t>(32, vocab_size - first);
    if (word == 0) {
      std::fill_n(logits_.data() + first, count, kMinusInfinity);
      continue;
    }
    for (size_t i = 0; i < count; ++i) {
      if ((word >> i & 1) == 0) logits_[first + i] = kMinusInfinity;
    }
  }
}

// Of equal logits at the border, the lower tokens stay. Leaves candidates_ in order of tokens, without
// those of -infinity, whose weight is 0.
void Sampler::keep_top_k(int64_t top_k) {
  candidates_.clear();
  const int32_t vocab_size = static_cast<int32_t>(logits_.size());
  const auto list_all = [&] {
    for (int32_t token = 0; token < vocab_size; ++token) {
      if (logits_[token] != kMinusInfinity) candidates_.push_back({logits_[token], token, 0});
    }
  };
  if (top_k == 0 || top_k >= vocab_size) {
    list_all();
    return;
  }
  const auto by_token = [](const Candidate& a, const Candidate& b) { return a.token < b.token; };
  if (top_k <= 4096) {
    // A heap with the worst candidate on top. Tokens come in rising order, so an equal logit never
    // replaces one.
    const size_t k = static_cast<size_t>(top_k);
    for (int32_t token = 0; token < vocab_size; ++token) {
      if (logits_[token] == kMinusInfinity) continue;
      if (candidates_.size() == k) {
        if (logits_[token] <= candidates_.front().logit) continue;
        std::pop_heap(candidates_.begin(), candidates_.end(), before);
        candidates_.pop_back();
      }
      candidates_.push_back({logits_[token], token, 0});
      std::push_heap(candidates_.begin(), candidates_.end(), before);
    }
  } else {
    list_all();
    if (static_cast<int64_t>(candidates_.size()) <= top_k) return;
    std::nth_element(candidates_.begin(), candidates_.begin() + top_k, candidates_.end(), before);
    candidates_.resize(static_cast<size_t>(top_k));
  }
  std::sort(candidates_.begin(), candidates_.end(), by_token);
}

// If the largest logit is +inf, the candidates that equal it have weight 1, all others 0.
void Sampler::compute_weights(double temperature, float largest) {
  const int64_t count = static_cast<int64_t>(candidates_.size());
  Candidate* candidates = candidates_.data();
#pragma omp parallel for schedule(static) if (count > 4096)
  for (int64_t i = 0; i < count; ++i) {
    Candidate& c = candidates[i];
    c.weight = c.logit == largest ? 1.0 : std::exp((static_cast<double>(c.logit) - largest) / temperature);
  }
}

// Keeps the smallest set of the most likely tokens whose mass reaches top_p, at least one token.
// Sorts increasingly long prefixes until their mass suffices.
void Sampler::keep_top_p(double top_p) {
  double total = 0;
  for (const Candidate& c : candidates_) total += c.weight;
  const double wanted = top_p * total;
  double mass = 0;
  size_t kept = 0;
  size_t sorted = 0;
  while (kept < candidates_.size() && (kept == 0 || mass < wanted)) {
    if (kept == sorted) {
      sorted = std::min(candidates_.size(), std::max<size_t>(64, sorted * 4));
      std::nth_element(candidates_.begin() + kept, candidates_.begin() + (sorted - 1), candidates_.end(), before);
      std::sort(candidates_.begin() + kept, candidates_.begin() + sorted, before);
    }
    mass += candidates_[kept].weight;
    ++kept;
  }
  candidates_.resize(kept);
  std::sort(candidates_.begin(), candidates_.end(),
            [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
}

void Sampler::sample(const SampleParams& p) {
  for (int64_t i = 0; i < p.num_rows; ++i) {
    if (p.rows[i].draws != 0) sample_row(p, i);
  }
}

void Sampler::sample_row(const SampleParams& p, int64_t i) {
  const SampleRow& row = p.rows[i];
  const float* logits = p.logits + i * p.vocab_size;
  check_tokens(row, p.vocab_size);
  logits_.assign(logits, logits + p.vocab_size);
  penalize(row);
  add_biases(row);
  forbid(row.allowed);
  int64_t best = 0;
  bool has_nan = false;
  for (int64_t j = 0; j < p.vocab_size; ++j) {
    has_nan |= std::isnan(logits_[j]);
    if (logits_[j] > logits_[best]) best = j;
  }
  p.out_tokens[i] = 0;
  p.out_invalid[i] = 0;
  if (has_nan) {
    const auto nan = std::find_if(logits_.begin(), logits_.end(), [](float logit) { return std::isnan(logit); });
    p.out_invalid[i] = 1 + static_cast<int32_t>(nan - logits_.begin());
  } else if (logits_[best] == kMinusInfinity) {
    p.out_invalid[i] = SampleParams::kNoLogit;
  } else {
    p.out_tokens[i] = row.temperature == 0 ? static_cast<int32_t>(best) : draw(row, static_cast<int32_t>(best));
  }
}

// `best`: the most likely token.
int32_t Sampler::draw(const SampleRow& row, int32_t best) {
  keep_top_k(row.top_k);
  compute_weights(row.temperature, logits_[best]);
  if (row.top_p < 1) keep_top_p(row.top_p);
  // min-p is relative to the largest probability, whose weight is 1. The weights are in order of
  // tokens.
  double mass = 0;
  for (Candidate& c : candidates_) {
    if (c.weight < static_cast<double>(row.min_p)) c.weight = 0;
    mass += c.weight;
  }
  const double drawn = philox_uniform(row.seed, row.step) * mass;
  double sum = 0;
  int32_t token = best;
  for (const Candidate& c : candidates_) {
    if (c.weight == 0) continue;
    sum += c.weight;
    token = c.token;
    if (sum > drawn) break;
  }
  return token;
}

}  // namespace diffqkv::cpu
