#include "model/batch.h"

#include <algorithm>
#include <array>
#include <span>
#include <string>

namespace diffqkv {
namespace {

struct RunningItem {
  BatchItem* item;
  int64_t kv_len_before;
};

using Items = std::span<RunningItem>;

bool is_prompt(const BatchItem& item) { return item.tokens.size() > 1; }

int64_t remaining(const BatchItem& item) { return static_cast<int64_t>(item.tokens.size()) - item.consumed; }

int64_t chunk_size(const BatchItem& item) { return std::min(kPrefillChunk, remaining(item)); }

// Whether two sessions can decode in one forward pass.
bool can_share_pass(const Session& a, const Session& b) {
  return a.rope_length(1) == b.rope_length(1) && a.types() == b.types() &&
         a.options().selective_top_k == b.options().selective_top_k &&
         a.options().renormalize == b.options().renormalize;
}

class Batch {
 public:
  Batch(Model& model, const CancelFlag& cancel)
      : model_(model), backend_(*model.backend()), workspace_(model.workspace()), cancel_(cancel) {}

  // Appends the tokens of one prompt, or one token of each of several sequences.
  void run(Items items) {
    for (RunningItem& running : items) {
      BatchItem& item = *running.item;
      guarded({&running, 1}, [&] {
        const auto num_tokens = static_cast<int64_t>(item.tokens.size());
        item.session->check_tokens(item.tokens.data(), num_tokens);
        if (item.session->must_recompute(num_tokens)) recompute(item);
        item.consumed = item.session->begin(item.tokens.data(), num_tokens);
      });
    }
    bool has_more = true;
    while (has_more) {
      run_chunk(items);
      has_more = std::any_of(items.begin(), items.end(), [](const RunningItem& running) {
        const BatchItem& item = *running.item;
        return !item.error && item.chunks == Chunks::all && remaining(item) > 0;
      });
    }
  }

 private:
  // An exception of `body` becomes the error of the items, and their sessions are restored.
  template <typename Body>
  static void guarded(Items items, Body&& body) {
    try {
      body();
    } catch (...) {
      for (const auto& [item, kv_len_before] : items) {
        if (item->error) continue;
        item->error = std::current_exception();
        item->session->truncate(kv_len_before);
        item->consumed = 0;
      }
    }
  }

  // Computes the cache of a session again, with the frequencies for the length after the step. Runs in
  // this step as a whole, also with Chunks::next.
  void recompute(const BatchItem& item) {
    Session& session = *item.session;
    const std::unique_ptr<Session> fresh = session.restarted(static_cast<int64_t>(item.tokens.size()));
    const int64_t num_tokens = session.kv_len();
    for (int64_t t = 0; t < num_tokens; t += kPrefillChunk) {
      const int64_t size = std::min(kPrefillChunk, num_tokens - t);
      ForwardStep step = step_for(*fresh);
      if (item.cancel) step.cancels.push_back(item.cancel.get());
      step.sequences = {fresh->prepare(size)};
      step.tokens = session.tokens().data() + t;
      run_forward(backend_, model_.config(), model_.weights(), workspace_, step);
      backend_.synchronize();
      fresh->commit(step.tokens, size);
    }
    session.adopt(*fresh);
  }

  // The settings of a forward pass for the session and others like it.
  ForwardStep step_for(const Session& session) const {
    ForwardStep step;
    step.rope_length = session.rope_length();
    step.selective_top_k = session.options().selective_top_k;
    step.renormalize = session.options().renormalize;
    step.cancels = {&cancel_};
    return step;
  }

  // One forward pass: the next chunk of each item.
  struct Pass {
    std::vector<RunningItem> items;
    std::vector<ForwardSequence> sequences;
    std::vector<int32_t> tokens;
    bool is_last = false;  // no tokens remain after it
    bool needs_logits = false;
  };

  void run_chunk(Items items) {
    Pass pass = prepare(items);
    if (pass.items.empty()) return;
    guarded(pass.items, [&] { forward(pass); });
    for (RunningItem& running : pass.items) {
      BatchItem& item = *running.item;
      if (item.error) continue;
      guarded({&running, 1}, [&] {
        const int64_t size = chunk_size(item);
        item.session->commit(item.tokens.data() + item.consumed, size);
        item.consumed += size;
      });
    }
    if (pass.needs_logits) {
      copy_logits(pass.items);
      draw(pass.items);
    }
  }

  Pass prepare(Items items) {
    Pass pass;
    guarded(items, [&] {
      int64_t num_tokens = 0;
      for (const RunningItem& running : items) num_tokens += chunk_size(*running.item);
      pass.items.reserve(items.size());
      pass.sequences.reserve(items.size());
      pass.tokens.reserve(static_cast<size_t>(num_tokens));
    });
    for (RunningItem& running : items) {
      BatchItem& item = *running.item;
      if (item.error) continue;
      guarded({&running, 1}, [&] {
        pass.sequences.push_back(item.session->prepare(chunk_size(item)));
        const auto begin = item.tokens.begin() + item.consumed;
        pass.tokens.insert(pass.tokens.end(), begin, begin + chunk_size(item));
        pass.items.push_back(running);
        pass.is_last = chunk_size(item) == remaining(item);
        pass.needs_logits = pass.needs_logits || (pass.is_last && (item.sampling || item.wants_logits));
      });
    }
    return pass;
  }

  void forward(const Pass& pass) {
    const BatchItem& first = *pass.items[0].item;
    ForwardStep step = step_for(*first.session);
    // The flag of an item must not end the pass of several items.
    if (first.cancel && is_prompt(first)) step.cancels.push_back(first.cancel.get());
    step.sequences = pass.sequences;
    step.tokens = pass.tokens.data();
    step.logits = pass.needs_logits;
    run_forward(backend_, model_.config(), model_.weights(), workspace_, step);
    // Otherwise a GPU would be sent all chunks at once, and an abort could not stop them.
    if (!pass.is_last) backend_.synchronize();
    for (const CancelFlag* cancel : step.cancels) {
      if (!cancel->load()) continue;
      const int64_t end = first.session->kv_len() + chunk_size(first);
      fail(ErrorCode::aborted, "the prefill was aborted at token %lld", static_cast<long long>(end));
    }
  }

  const float* logits_row(size_t row) const {
    return workspace_.logits.as<float>() + static_cast<int64_t>(row) * model_.config().vocab_size;
  }

  // Row i of the logits belongs to item i.
  void copy_logits(Items items) {
    for (size_t i = 0; i < items.size(); i++) {
      BatchItem& item = *items[i].item;
      if (!item.wants_logits || item.error) continue;
      guarded(items.subspan(i, 1),
              [&] { backend_.download(item.logits.data(), logits_row(i), item.logits.size() * sizeof(float)); });
    }
  }

  // Draws the next token of each item. Row i of the logits belongs to item i.
  void draw(Items items) {
    SampleRow rows[kDecodeBatch];
    std::array<RunningItem, kDecodeBatch> drawing;
    size_t num_drawing = 0;
    for (size_t i = 0; i < items.size(); i++) {
      const BatchItem& item = *items[i].item;
      rows[i].draws = 0;
      if (!item.sampling || item.error) continue;
      guarded(items.subspan(i, 1), [&] {
        rows[i] = item.session->sample_row(*item.sampling, item.draw);
        drawing[num_drawing++] = items[i];
      });
    }
    if (num_drawing == 0) return;
    int32_t sampled[2][kDecodeBatch];
    guarded({drawing.data(), num_drawing}, [&] { sample(rows, items.size(), sampled); });
    for (size_t i = 0; i < items.size(); i++) {
      BatchItem& item = *items[i].item;
      if (rows[i].draws == 0 || item.error) continue;
      guarded(items.subspan(i, 1), [&] {
        if (sampled[1][i] != 0) fail_invalid_logits(sampled[1][i]);
        item.token = sampled[0][i];
      });
    }
  }

  void sample(const SampleRow* rows, size_t num_rows, int32_t (&sampled)[2][kDecodeBatch]) {
    SampleParams p;
    p.logits = workspace_.logits.as<float>();
    p.rows = workspace_.sample_rows.as<SampleRow>();
    p.out_tokens = workspace_.sampled.as<int32_t>();
    p.out_invalid = p.out_tokens + kDecodeBatch;
    p.num_rows = static_cast<int64_t>(num_rows);
    p.vocab_size = model_.config().vocab_size;
    backend_.upload(workspace_.sample_rows.data(), rows, num_rows * sizeof(SampleRow));
    backend_.sample(p);
    backend_.download(sampled, workspace_.sampled.data(), sizeof sampled);
  }

  // `invalid`: SampleParams::out_invalid of a row.
  [[noreturn]] void fail_invalid_logits(int32_t invalid) const {
    const std::string what = invalid == SampleParams::kNoLogit
                                 ? "all " + std::to_string(model_.config().vocab_size) + " logits are -Infinity"
                                 : "the logit of token " + std::to_string(invalid - 1) + " is NaN";
    fail(ErrorCode::unsupported_model,
         "%s gives invalid logits with dtype %s: %s. Load it with a wider dtype, or check its weights for NaN",
         model_.name().c_str(), dtype_name(model_.dtype()), what.c_str());
  }

  Model& model_;
  Backend& backend_;
  Workspace& workspace_;
  const CancelFlag& cancel_;
};

}  // namespace

void run_batch(Model& model, std::vector<BatchItem>& items, const CancelFlag& cancel) {
  // Allocates before the first item runs. A later failure is the error of an item.
  std::vector<std::vector<RunningItem>> decodes;
  std::vector<std::vector<RunningItem>> prompts;
  for (BatchItem& item : items) {
    const RunningItem running{&item, item.session->kv_len()};
    try {
      if (item.cancel && item.cancel->load()) fail(ErrorCode::aborted, "the call was aborted before it began");
      if (item.wants_logits) item.logits.resize(static_cast<size_t>(model.config().vocab_size));
      if (is_prompt(item)) {
        prompts.push_back({running});
        continue;
      }
      const auto group = std::find_if(decodes.begin(), decodes.end(), [&](const std::vector<RunningItem>& others) {
        return static_cast<int64_t>(others.size()) < kDecodeBatch &&
               can_share_pass(*item.session, *others[0].item->session);
      });
      if (group != decodes.end()) {
        group->push_back(running);
      } else {
        decodes.push_back({running});
      }
    } catch (...) {
      item.error = std::current_exception();
    }
  }
  Batch batch(model, cancel);
  for (std::vector<RunningItem>& group : decodes) batch.run(group);
  for (std::vector<RunningItem>& prompt : prompts) batch.run(prompt);
}

}  // namespace diffqkv
