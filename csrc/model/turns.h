// One step of continuous batching: sessions that each have the next token, or the next part of a prompt, to do.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <vector>

#include "model/session.h"

namespace diffqkv {

struct Turn {
  std::shared_ptr<Session> session;
  std::vector<int32_t> tokens;
  std::optional<SamplingOptions> sampling;  // none: the tokens are appended, and none is drawn
  uint64_t draw = 0;                        // counts the tokens that one generate call draws
  std::shared_ptr<const CancelFlag> cancel;

  // What came of it. A long prompt is not done in one step: it advances by a chunk, and what the prefix cache holds.
  int64_t consumed = 0;
  int32_t token = -1;        // where all tokens are consumed, and one is to be drawn: the next one
  std::exception_ptr error;  // then the session is as it was
};

// Each turn's session is another one, all of one model. Decode turns (one token) run together, kDecodeBatch at a time; prompts one
// by one. What is wrong with one turn is its own error, and disturbs no other.
// `cancel` ends all of them.
void run_turns(Model& model, std::vector<Turn>& turns, const CancelFlag& cancel);

}  // namespace diffqkv
