// One batch step. It is the only way to the forward pass: Session.prefill and Session.decode are
// a batch of one item, and lib/scheduler.ts makes the items of concurrent generations.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <vector>

#include "model/drawn_log_probs.h"
#include "model/session.h"

namespace diffqkv {

// How much of a prompt one step appends.
enum class Chunks {
  next,  // one chunk of Workspace::prefill_chunk tokens, so that other sequences decode before the next chunk
  all,
};

struct BatchItem {
  std::shared_ptr<Session> session;
  std::vector<int32_t> tokens;  // to append to the session; one token is a decode step
  Chunks chunks = Chunks::next;
  std::optional<SamplingOptions> sampling;   // if set, the token that follows is drawn
  std::vector<uint32_t> allowed;             // SampleRow::allowed; empty: all tokens
  std::vector<LogitBias> biases;             // SampleRow::biases
  uint64_t draw = 0;                         // tokens that the generation has drawn before
  bool continues = false;                    // the token drawn is likely to be appended, and one more to be drawn
  bool wants_logits = false;                 // of the last token
  std::optional<int64_t> num_top_log_probs;  // if set, log_probs is computed, with so many of the likeliest tokens
  // An item with rows draws nothing and is computed as a whole, whatever the prefix cache has.
  RowOutput rows = RowOutput::none;
  std::vector<int32_t> targets;  // RowOutput::log_probs: for each of `tokens`
  // `tokens` are the token to append and proposals for those that follow it, up to kDecodeBatch
  // together. Each is a row of a decode pass, so the logits after it are those of a decode step. The
  // rows are drawn with `draw`, draw + 1 and so on, and a row counts if the token that was drawn
  // before it is its own. Requires `sampling`, without `wants_logits`, `allowed` and `biases`.
  bool verifies = false;
  std::vector<std::vector<LogitBias>> row_biases;  // of `verifies`: SampleRow::biases of each row; empty: none
  std::shared_ptr<const CancelFlag> cancel;        // ends this item: before it begins, or within a prompt

  // Results. `token` and `logits` are set when all tokens are in the cache.
  int64_t consumed = 0;  // tokens appended, including those found in the prefix cache
  std::optional<int32_t> token;
  std::vector<int32_t> drawn;            // of `verifies`, instead of `token`: what followed each token appended
  std::vector<TokenLogProbs> log_probs;  // of `token`, or of each of `drawn`
  std::vector<float> logits;             // [vocab_size]
  std::vector<double> row_values;        // of add_row_values, for the tokens of this step
  std::exception_ptr error;              // if set, the session is as before the step and `consumed` is 0
};

// Runs on the executor thread. Each item has a different session of `model`. Items of one token and
// those that verify run together, up to kDecodeBatch rows in one forward pass, then the prompts one
// after another. An error of one item does not affect the others. `cancel` ends all items with
// ErrorCode::aborted.
void run_batch(Model& model, std::vector<BatchItem>& items, const CancelFlag& cancel);

}  // namespace diffqkv
