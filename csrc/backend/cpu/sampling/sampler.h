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

  void penalize(const SampleParams& p);
  void keep_top_k(const SampleParams& p);
  void compute_weights(const SampleParams& p, float largest);
  void keep_top_p(double top_p);

  std::vector<float> logits_;   // after the penalty
  std::vector<uint64_t> seen_;  // bit set of tokens in the history
  std::vector<Candidate> candidates_;
};

}  // namespace diffqkv::cpu
