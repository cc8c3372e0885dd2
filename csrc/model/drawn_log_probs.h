// Log probabilities of the tokens that a step draws. They are those of the model's own distribution:
// of the logits before penalties, biases, masks and the temperature.
#pragma once

#include <cstdint>
#include <vector>

#include "model/model.h"

namespace diffqkv {

struct TokenLogProbs {
  float log_prob = 0;
  // The most likely tokens, the most likely first.
  std::vector<int32_t> top_tokens;
  std::vector<float> top;
};

class DrawnLogProbs {
 public:
  explicit DrawnLogProbs(Model& model) : model_(model) {}

  // Enqueues the log probabilities after `row` of Workspace::logits: of `token`, which is in device
  // memory, and of the top_n most likely tokens.
  void enqueue(size_t row, const int32_t* token, int64_t top_n);
  // Waits for those of a row. The first call downloads all of them.
  TokenLogProbs read(size_t row, int64_t top_n);

 private:
  Model& model_;
  std::vector<uint8_t> host_;
};

}  // namespace diffqkv
