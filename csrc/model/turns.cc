#include "model/turns.h"

#include <algorithm>
#include <span>

namespace diffqkv {
namespace {

// Whether two sessions can decode in one forward pass.
bool alike(const SessionOptions& a, const SessionOptions& b) {
  return a.k_type == b.k_type && a.v_type == b.v_type && a.selective_top_k == b.selective_top_k &&
         a.renormalize == b.renormalize;
}

using Turns = std::span<Turn* const>;

class Step {
 public:
  Step(Model& model, const CancelFlag& cancel)
      : model_(model), backend_(*model.backend()), ws_(model.workspace()), cancel_(cancel) {}

  void run_prompt(Turn& turn) {
    Session& session = *turn.session;
    Turn* const self = &turn;
    const int64_t before = session.kv_len(), num_tokens = static_cast<int64_t>(turn.tokens.size());
    try {
      turn.consumed = session.begin(turn.tokens.data(), num_tokens);
      const int64_t size = std::min(kPrefillChunk, num_tokens - turn.consumed);
      const bool last = turn.consumed + size == num_tokens;
      forward(session.options(), {session.prepare(size)}, turn.tokens.data() + turn.consumed, last && turn.sampling,
              turn.cancel.get());
      // An abort after the last chunk counts.
      if (!last) backend_.synchronize();
      if (turn.cancel && turn.cancel->load()) fail(ErrorCode::aborted, "the prefill was aborted");
      session.commit(turn.tokens.data() + turn.consumed, size);
      turn.consumed += size;
      if (last && turn.sampling) draw({&self, 1});
    } catch (...) {
      turn.error = std::current_exception();
    }
    if (turn.error) turn.consumed = 0, session.truncate(before);
  }

  void run_decodes(Turns turns) {
    std::vector<Turn*> ready;
    std::vector<ForwardSequence> sequences;
    std::vector<int32_t> tokens;
    guarded(turns, [&] { ready.reserve(turns.size()), sequences.reserve(turns.size()), tokens.reserve(turns.size()); });
    for (Turn* turn : turns) {
      if (turn->error) continue;
      guarded({&turn, 1}, [&] {
        turn->session->begin(turn->tokens.data(), 1);
        sequences.push_back(turn->session->prepare(1));
        ready.push_back(turn);
        tokens.push_back(turn->tokens[0]);
      });
    }
    if (ready.empty()) return;
    const bool draws = std::any_of(ready.begin(), ready.end(), [](Turn* turn) { return turn->sampling.has_value(); });
    guarded(ready, [&] { forward(ready[0]->session->options(), sequences, tokens.data(), draws, nullptr); });
    if (ready[0]->error) return drop_rows(ready);
    for (Turn* turn : ready) {
      const int64_t before = turn->session->kv_len();
      guarded({&turn, 1}, [&] { turn->session->commit(turn->tokens.data(), 1), turn->consumed = 1; });
      if (turn->error) turn->session->truncate(before);
    }
    if (draws) draw(ready);
  }

 private:
  // What `body` throws becomes the error of the turns.
  template <typename Body>
  static void guarded(Turns turns, Body&& body) {
    try {
      body();
    } catch (...) {
      for (Turn* turn : turns) turn->error = std::current_exception();
    }
  }

  static void drop_rows(Turns turns) {
    for (Turn* turn : turns) {
      turn->session->truncate(turn->session->kv_len() - turn->consumed);
      turn->consumed = 0;
    }
  }

  void forward(const SessionOptions& options, std::vector<ForwardSequence> sequences, const int32_t* tokens,
               bool logits, const CancelFlag* cancel) {
    ForwardStep step;
    step.sequences = std::move(sequences);
    step.tokens = tokens;
    step.logits = logits;
    step.selective_top_k = options.selective_top_k;
    step.renormalize = options.renormalize;
    step.cancels = {&cancel_};
    if (cancel) step.cancels.push_back(cancel);
    run_forward(backend_, model_.config(), model_.weights(), ws_, step);
  }

  // The next token of each, from the rows of logits in their order.
  void draw(Turns turns) {
    try {
      sample(turns, 0);
    } catch (...) {
      if (turns.size() == 1) {
        turns[0]->error = std::current_exception();
        return drop_rows(turns);
      }
      // One row of logits that cannot be drawn from is the error of its turn alone.
      for (size_t i = 0; i < turns.size(); i++) {
        if (turns[i]->error) continue;
        if (turns[i]->sampling) guarded(turns.subspan(i, 1), [&] { sample(turns.subspan(i, 1), i); });
        if (turns[i]->error) drop_rows(turns.subspan(i, 1));
      }
    }
  }

  void sample(Turns turns, size_t first_row) {
    const int64_t vocab_size = model_.config().vocab_size;
    int32_t tokens[kDecodeBatch];
    for (size_t i = 0; i < turns.size(); i++) {
      if (!turns[i]->sampling || turns[i]->error) continue;
      const float* logits = ws_.logits.as<float>() + static_cast<int64_t>(first_row + i) * vocab_size;
      turns[i]->session->sample(logits, *turns[i]->sampling, turns[i]->draw, ws_.out_tokens.as<int32_t>() + i);
    }
    backend_.download(tokens, ws_.out_tokens.data(), turns.size() * sizeof(int32_t));
    for (size_t i = 0; i < turns.size(); i++) {
      if (turns[i]->sampling && !turns[i]->error) turns[i]->token = tokens[i];
    }
  }

  Model& model_;
  Backend& backend_;
  Workspace& ws_;
  const CancelFlag& cancel_;
};

}  // namespace

void run_turns(Model& model, std::vector<Turn>& turns, const CancelFlag& cancel) {
  Step step(model, cancel);
  // Everything that asks for memory comes before the first turn: what fails later is some turn's error.
  std::vector<std::vector<Turn*>> groups;
  std::vector<Turn*> prompts;
  for (Turn& turn : turns) {
    try {
      if (turn.cancel && turn.cancel->load()) fail(ErrorCode::aborted, "the call was aborted before it began");
      if (turn.sampling) check_sampling(*turn.sampling);
      if (turn.tokens.size() > 1) {
        prompts.push_back(&turn);
        continue;
      }
      const auto group = std::find_if(groups.begin(), groups.end(), [&](const std::vector<Turn*>& others) {
        return static_cast<int64_t>(others.size()) < kDecodeBatch &&
               alike(turn.session->options(), others[0]->session->options());
      });
      if (group != groups.end()) {
        group->push_back(&turn);
      } else {
        groups.push_back({&turn});
      }
    } catch (...) {
      turn.error = std::current_exception();
    }
  }
  for (const std::vector<Turn*>& group : groups) step.run_decodes(group);
  for (Turn* turn : prompts) step.run_prompt(*turn);
}

}  // namespace diffqkv
