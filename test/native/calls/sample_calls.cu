// Calls of sampling, and their tables.
#include "calls/call.h"

namespace diffqkv::cuda {

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

namespace {

NamedCall token(const std::string& name, const SampleCase& c) {
  return {name, [c] { return sample_call(c); }};
}

}  // namespace

std::vector<NamedCall> seeded_sample_calls() {
  return {
      token("greedy token", {.vocab_size = 5000, .penalty = 1.2f}),
      token("sampled token",
            {.vocab_size = 5000, .temperature = 0.8f, .top_k = 40, .top_p = 0.9f, .min_p = 0.01f, .penalty = 1.1f})};
}

std::vector<NamedCall> more_sample_calls() {
  return {token("sampled token, all tokens", {.vocab_size = 3000, .temperature = 1.5f}),
          token("sampled token, top-k", {.vocab_size = 300, .temperature = 1, .top_k = 7}),
          token("sampled token, top-p", {.vocab_size = 5000, .temperature = 1, .top_p = 0.95f}),
          token("sampled token, min-p", {.vocab_size = 5000, .temperature = 2, .min_p = 0.1f})};
}

}  // namespace diffqkv::cuda
