// The sample operator. It keeps its scratch memory between calls.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/ops.h"

namespace diffqkv::cpu {

class Sampler {
 public:
  void sample(const SampleParams& p);

 private:
  struct Candidate {
    float logit;
    int32_t token;
    double weight;  // exp((logit - largest) / temperature)
  };
  static bool before(const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
  }

  void sample_row(const SampleParams& p, int64_t i);
  void penalize(const SampleRow& row);
  void add_biases(const SampleRow& row);
  void forbid(const uint32_t* allowed);
  int32_t draw(const SampleRow& row, int32_t best);
  void keep_top_k(int64_t top_k);
  void compute_weights(double temperature, float largest);
  void keep_top_p(double top_p);

  // Of the row that is being sampled.
  std::vector<float> logits_;   // after penalty, biases and mask
  std::vector<uint64_t> seen_;  // bit set of tokens in the history
  std::vector<Candidate> candidates_;
};

}  // namespace diffqkv::cpu
