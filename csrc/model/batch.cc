#include "model/batch.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <string>
#include <utility>

#include "model/row_values.h"
#include "model/sample_inputs.h"

namespace diffqkv {
namespace {

struct RunningItem {
  BatchItem* item;
  int64_t kv_len_before;
  // Of the pass that is under way.
  ForwardSequence sequence;
  int64_t num_tokens = 0;  // that the pass computes
  size_t first_row = 0;    // of the logits
};

using Items = std::span<RunningItem>;

bool is_prompt(const BatchItem& item) {
  return (item.tokens.size() > 1 && !item.verifies) || item.rows != RowOutput::none;
}

// Rows of the logits that the item needs at most.
int64_t max_rows(const BatchItem& item) { return item.verifies ? static_cast<int64_t>(item.tokens.size()) : 1; }

void check_verifies(const BatchItem& item) {
  if (!item.verifies) return;
  if (item.tokens.size() > kDecodeBatch || !item.sampling || item.wants_logits || item.rows != RowOutput::none) {
    fail(ErrorCode::invalid_argument,
         "verifies is set for %zu tokens; it requires at most %lld, and sampling without logits or rows",
         item.tokens.size(), static_cast<long long>(kDecodeBatch));
  }
  if (!item.allowed.empty() || !item.biases.empty()) {
    fail(ErrorCode::invalid_argument, "verifies is set with allowed or biases; use rowBiases");
  }
  if (!item.row_biases.empty() && item.row_biases.size() != item.tokens.size()) {
    fail(ErrorCode::invalid_argument, "rowBiases has %zu rows; it must have %zu, as many as tokens",
         item.row_biases.size(), item.tokens.size());
  }
}

// Whether a mask or biases change what the item draws. The next step's are not known in advance.
bool has_sample_inputs(const BatchItem& item) {
  return !item.allowed.empty() || !item.biases.empty() || !item.row_biases.empty();
}

int64_t remaining(const BatchItem& item) { return static_cast<int64_t>(item.tokens.size()) - item.consumed; }

// Whether two sessions can decode in one forward pass.
bool can_share_pass(const Session& a, const Session& b) {
  return a.rope_length(1) == b.rope_length(1) && a.types() == b.types() &&
         a.options().selective_top_k == b.options().selective_top_k &&
         a.options().renormalize == b.options().renormalize;
}

constexpr size_t kSampledBytes = 2 * kDecodeBatch * sizeof(int32_t);  // of a slot

class Batch {
 public:
  Batch(Model& model, const CancelFlag& cancel)
      : model_(model), backend_(*model.backend()), workspace_(model.workspace()), cancel_(cancel) {}

  // Appends the tokens of one prompt, or one token of each of several sequences. `ahead`, if the
  // device has computed a step ahead: for some items, which it is used for if these are among them.
  // `runs_ahead`: the next step, if there is one, has no items but these.
  void run(Items items, std::optional<StepAhead> ahead = {}, bool runs_ahead = false) {
    ahead_ = std::move(ahead);
    runs_ahead_ = runs_ahead;
    for (RunningItem& running : items) {
      BatchItem& item = *running.item;
      guarded({&running, 1}, [&] {
        item.session->check_tokens(item.tokens.data(), static_cast<int64_t>(item.tokens.size()));
        const int64_t num_tokens = item.verifies ? 1 : static_cast<int64_t>(item.tokens.size());
        if (item.session->must_recompute(num_tokens)) recompute(item, num_tokens);
        const auto prefixes = item.rows == RowOutput::none ? Session::Prefixes::use : Session::Prefixes::skip;
        item.consumed = item.session->begin(item.tokens.data(), num_tokens, prefixes);
      });
    }
    bool has_more = true;
    while (has_more) {
      run_chunk(items);
      has_more = std::any_of(items.begin(), items.end(), [](const RunningItem& running) {
        const BatchItem& item = *running.item;
        return !item.error && !item.verifies && item.chunks == Chunks::all && remaining(item) > 0;
      });
    }
  }

 private:
  int64_t chunk_size(const BatchItem& item) const { return std::min(workspace_.prefill_chunk, remaining(item)); }

  // An exception of `body` becomes the error of the items, and their sessions are restored.
  template <typename Body>
  static void guarded(Items items, Body&& body) {
    try {
      body();
    } catch (...) {
      for (const RunningItem& running : items) {
        BatchItem* item = running.item;
        if (item->error) continue;
        item->error = std::current_exception();
        item->session->truncate(running.kv_len_before);
        item->consumed = 0;
        item->drawn.clear();
      }
    }
  }

  // Computes the cache of a session again, with the frequencies for num_tokens more. Runs in this step
  // as a whole, also with Chunks::next.
  void recompute(const BatchItem& item, int64_t num_tokens) {
    Session& session = *item.session;
    const std::unique_ptr<Session> fresh = session.restarted(num_tokens);
    const int64_t kv_len = session.kv_len();
    for (int64_t t = 0; t < kv_len; t += workspace_.prefill_chunk) {
      const int64_t size = std::min(workspace_.prefill_chunk, kv_len - t);
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
    // Of what the items draw, when that is under way.
    int slot = 0;              // of Workspace::sampled
    std::vector<size_t> rows;  // of each item, the first one
    std::unique_ptr<Download> sampled;
  };

  void run_chunk(Items items) {
    std::vector<size_t> rows_ahead = find_ahead(items);
    Pass pass = prepare(items);
    if (pass.items.empty()) return;
    const bool was_ahead = !rows_ahead.empty() && pass.items.size() == items.size();
    if (!was_ahead) guarded(pass.items, [&] { forward(pass); });
    for (RunningItem& running : pass.items) {
      BatchItem& item = *running.item;
      if (item.error || item.verifies) continue;
      guarded({&running, 1}, [&] {
        item.session->commit(item.tokens.data() + item.consumed, running.num_tokens);
        item.consumed += running.num_tokens;
      });
    }
    if (!pass.needs_logits) return;
    copy_logits(pass.items);
    DrawnLogProbs log_probs(model_);
    if (was_ahead) {
      pass.slot = ahead_->slot;
      pass.rows = std::move(rows_ahead);
      pass.sampled = std::move(ahead_->sampled);
    } else {
      sample(pass);
      enqueue_log_probs(pass, log_probs);
    }
    std::optional<StepAhead> next = run_ahead(pass);
    finish_draws(pass);
    read_log_probs(pass, log_probs);
    if (!next) return;
    for (StepAhead::Row& row : next->rows) row.token = pass.items[row.item].item->token.value_or(-1);
    workspace_.ahead = std::move(next);
  }

  // For each item its row in the step ahead. Empty if it lacks an item.
  std::vector<size_t> find_ahead(Items items) const {
    std::vector<size_t> rows;
    if (!ahead_) return rows;
    for (const RunningItem& running : items) {
      const BatchItem& item = *running.item;
      if (item.error || !item.sampling || item.wants_logits || item.verifies) return {};
      if (item.num_top_log_probs || has_sample_inputs(item)) return {};
      const SampleRow sampling = sample_row(*item.sampling, item.draw);
      const auto found = std::find_if(ahead_->rows.begin(), ahead_->rows.end(), [&](const StepAhead::Row& row) {
        return row.revision == item.session->revision() && row.token == item.tokens[0] && row.sampling == sampling;
      });
      if (found == ahead_->rows.end()) return {};
      rows.push_back(static_cast<size_t>(found - ahead_->rows.begin()));
    }
    return rows;
  }

  Pass prepare(Items items) {
    Pass pass;
    guarded(items, [&] {
      int64_t num_tokens = 0;
      int64_t num_rows = 0;
      for (const RunningItem& running : items) {
        num_tokens += chunk_size(*running.item);
        num_rows += max_rows(*running.item);
      }
      pass.items.reserve(items.size());
      pass.rows.reserve(items.size());
      pass.sequences.reserve(static_cast<size_t>(num_rows));
      pass.tokens.reserve(static_cast<size_t>(num_tokens));
    });
    // Every item gets room for its next tokens before an item gets room for proposals.
    for (RunningItem& running : items) {
      BatchItem& item = *running.item;
      if (item.error) continue;
      guarded({&running, 1}, [&] { running.sequence = item.session->prepare(item.verifies ? 1 : chunk_size(item)); });
    }
    for (RunningItem& running : items) {
      BatchItem& item = *running.item;
      if (item.error) continue;
      guarded({&running, 1}, [&] {
        running.first_row = pass.sequences.size();
        running.num_tokens = item.verifies ? prepare_rows(running) : chunk_size(item);
        const int64_t num_rows = item.verifies ? running.num_tokens : 1;
        for (int64_t i = 0; i < num_rows; i++, running.sequence.pos++) pass.sequences.push_back(running.sequence);
        const auto begin = item.tokens.begin() + item.consumed;
        pass.tokens.insert(pass.tokens.end(), begin, begin + running.num_tokens);
        pass.items.push_back(running);
        pass.is_last = item.verifies || running.num_tokens == remaining(item);
        pass.needs_logits = pass.needs_logits || (pass.is_last && (item.sampling || item.wants_logits));
      });
    }
    return pass;
  }

  // Makes room for the tokens of an item that verifies, each a sequence of its own over the same cache.
  // Returns their number: fewer if those before a token get other frequencies of RoPE in a decode step,
  // and only those of the first one's page if there is no room for more.
  static int64_t prepare_rows(const RunningItem& running) {
    Session& session = *running.item->session;
    auto count = static_cast<int64_t>(running.item->tokens.size());
    while (count > 1 && session.rope_length(count) != session.rope_length(1)) count--;
    try {
      session.prepare(count);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kv_cache_full && error.code() != ErrorCode::out_of_memory) throw;
      count = std::min(count, KvPool::kPageTokens - running.sequence.pos % KvPool::kPageTokens);
    }
    return count;
  }

  void forward(const Pass& pass) {
    BatchItem& first = *pass.items[0].item;
    ForwardStep step = step_for(*first.session);
    // The flag of an item must not end the pass of several items.
    if (first.cancel && is_prompt(first)) step.cancels.push_back(first.cancel.get());
    step.sequences = pass.sequences;
    step.tokens = pass.tokens.data();
    step.logits = pass.needs_logits;
    if (first.rows != RowOutput::last_hidden || pass.is_last) step.rows = first.rows;
    if (step.rows == RowOutput::log_probs) {
      demand_row_buffers(model_);
      step.targets = first.targets.data() + first.consumed;
    }
    run_forward(backend_, model_.config(), model_.weights(), workspace_, step);
    // Otherwise a GPU would be sent all chunks at once, and an abort could not stop them.
    if (!pass.is_last) backend_.synchronize();
    for (const CancelFlag* cancel : step.cancels) {
      if (!cancel->load()) continue;
      const int64_t end = first.session->kv_len() + chunk_size(first);
      fail(ErrorCode::aborted, "the prefill was aborted at token %lld", static_cast<long long>(end));
    }
    add_row_values(model_, step.rows, chunk_size(first), first.row_values);
  }

  const float* logits_row(size_t row) const {
    return workspace_.logits.as<float>() + static_cast<int64_t>(row) * model_.config().vocab_size;
  }

  void copy_logits(Items items) {
    for (size_t i = 0; i < items.size(); i++) {
      BatchItem& item = *items[i].item;
      if (!item.wants_logits || item.error) continue;
      guarded(items.subspan(i, 1), [&] {
        const float* row = logits_row(items[i].first_row);
        backend_.download(item.logits.data(), row, item.logits.size() * sizeof(float));
      });
    }
  }

  static bool draws(const BatchItem& item) { return item.sampling && !item.error; }

  // Begins to draw the next token of each item, or those that an item verifies.
  void sample(Pass& pass) {
    SampleRow rows[kDecodeBatch];
    SampleInputs inputs;
    const size_t num_rows = pass.sequences.size();
    for (size_t row = 0; row < num_rows; row++) rows[row].draws = 0;
    for (RunningItem& running : pass.items) {
      const BatchItem& item = *running.item;
      pass.rows.push_back(running.first_row);
      if (!draws(item)) continue;
      guarded({&running, 1}, [&] {
        SampleRow* first = rows + running.first_row;
        if (item.verifies) {
          const std::span tokens(item.tokens.data(), static_cast<size_t>(running.num_tokens));
          item.session->sample_rows(*item.sampling, item.draw, tokens, first);
          for (size_t i = 0; i < tokens.size() && !item.row_biases.empty(); i++) {
            inputs.add(first[i], {}, item.row_biases[i]);
          }
        } else {
          *first = item.session->sample_row(*item.sampling, item.draw);
          inputs.add(*first, item.allowed, item.biases);
        }
      });
    }
    const bool any = std::any_of(rows, rows + num_rows, [](const SampleRow& row) { return row.draws != 0; });
    if (!any) return;
    guarded(pass.items, [&] {
      inputs.upload(model_.backend(), workspace_.sample_inputs);
      enqueue_sample(rows, num_rows, 0, &pass.sampled);
    });
  }

  void enqueue_log_probs(Pass& pass, DrawnLogProbs& log_probs) {
    for (size_t i = 0; i < pass.items.size(); i++) {
      const BatchItem& item = *pass.items[i].item;
      if (!draws(item) || !item.num_top_log_probs) continue;
      const size_t end = pass.rows[i] + (item.verifies ? static_cast<size_t>(pass.items[i].num_tokens) : 1);
      guarded(Items(pass.items).subspan(i, 1), [&] {
        for (size_t row = pass.rows[i]; row < end; row++) {
          log_probs.enqueue(row, workspace_.sampled_slot(pass.slot) + row, *item.num_top_log_probs);
        }
      });
    }
  }

  void read_log_probs(Pass& pass, DrawnLogProbs& log_probs) {
    for (size_t i = 0; i < pass.items.size(); i++) {
      BatchItem& item = *pass.items[i].item;
      if (!item.num_top_log_probs) continue;
      const size_t count = item.verifies ? item.drawn.size() : item.token.has_value();
      guarded(Items(pass.items).subspan(i, 1), [&] {
        for (size_t row = pass.rows[i]; row < pass.rows[i] + count; row++) {
          item.log_probs.push_back(log_probs.read(row, *item.num_top_log_probs));
        }
      });
    }
  }

  // `download`: gets the slot of Workspace::sampled, if the device has downloads that do not wait.
  void enqueue_sample(const SampleRow* rows, size_t num_rows, int slot, std::unique_ptr<Download>* download) {
    SampleParams p;
    p.logits = workspace_.logits.as<float>();
    p.rows = workspace_.sample_rows.as<SampleRow>();
    p.out_tokens = workspace_.sampled_slot(slot);
    p.out_invalid = p.out_tokens + kDecodeBatch;
    p.num_rows = static_cast<int64_t>(num_rows);
    p.vocab_size = model_.config().vocab_size;
    backend_.upload(workspace_.sample_rows.data(), rows, num_rows * sizeof(SampleRow));
    backend_.sample(p);
    if (Replayer* replayer = backend_.replayer()) *download = replayer->start_download(p.out_tokens, kSampledBytes);
  }

  // Enqueues the step after this one, on the tokens that the device draws in this one. Whatever goes
  // wrong here, that step will meet it when it is asked for.
  std::optional<StepAhead> run_ahead(const Pass& pass) {
    if (!runs_ahead_ || !pass.sampled || !can_replay(backend_, model_.config())) return {};
    // The next step needs all items, and how many tokens one that verifies appends is not known. Reading
    // log probabilities waits for all that is enqueued.
    for (const RunningItem& running : pass.items) {
      if (running.item->verifies || running.item->num_top_log_probs) return {};
    }
    try {
      StepAhead next;
      next.slot = pass.slot == 1 ? 2 : 1;
      SampleRow rows[kDecodeBatch];
      ForwardStep step;
      for (size_t i = 0; i < pass.items.size(); i++) {
        const BatchItem& item = *pass.items[i].item;
        Session& session = *item.session;
        if (!draws(item) || !item.continues || item.wants_logits) continue;
        if (has_sample_inputs(item)) return {};
        if (!session.is_ready_for_token(*item.sampling)) continue;
        const int32_t* token = workspace_.sampled_slot(pass.slot) + pass.rows[i];
        if (step.sequences.empty()) step = step_for(session);
        rows[next.rows.size()] = session.sample_row(*item.sampling, item.draw + 1, token);
        next.rows.push_back({session.revision(), i, -1, sample_row(*item.sampling, item.draw + 1)});
        step.device_tokens.push_back(token);
        step.sequences.push_back(session.prepare(1));
      }
      if (next.rows.empty()) return {};
      step.cancels.clear();
      step.logits = true;
      run_forward(backend_, model_.config(), model_.weights(), workspace_, step);
      enqueue_sample(rows, next.rows.size(), next.slot, &next.sampled);
      return next;
    } catch (const std::exception&) {
      return {};
    }
  }

  // Waits for the tokens that the items draw.
  void finish_draws(Pass& pass) {
    const auto has_drawn = [](const RunningItem& running) { return draws(*running.item); };
    if (std::none_of(pass.items.begin(), pass.items.end(), has_drawn)) return;
    int32_t sampled[2][kDecodeBatch];
    guarded(pass.items, [&] {
      if (pass.sampled) {
        std::memcpy(sampled, pass.sampled->wait(), kSampledBytes);
      } else {
        backend_.download(sampled, workspace_.sampled_slot(pass.slot), kSampledBytes);
      }
    });
    for (size_t i = 0; i < pass.items.size(); i++) {
      BatchItem& item = *pass.items[i].item;
      if (!draws(item)) continue;
      guarded(Items(pass.items).subspan(i, 1), [&] {
        const size_t row = pass.rows[i];
        if (sampled[1][row] != 0) fail_invalid_logits(item, sampled[1][row]);
        if (item.verifies) return accept(pass.items[i], sampled[0] + row, sampled[1] + row);
        item.token = sampled[0][row];
      });
    }
  }

  // Appends the tokens of an item that verifies, up to the first one that was not drawn. `tokens`,
  // `invalid`: of its rows; invalid logits after the first row are met again by the next step.
  static void accept(const RunningItem& running, const int32_t* tokens, const int32_t* invalid) {
    BatchItem& item = *running.item;
    Session& session = *item.session;
    int64_t count = 1;
    while (count < running.num_tokens && item.tokens[count] == tokens[count - 1] && invalid[count] == 0) count++;
    item.drawn.assign(tokens, tokens + count);
    session.commit(item.tokens.data(), count);
    item.consumed = count;
    if (count < running.num_tokens) session.truncate(session.kv_len());  // releases pages without tokens
  }

  // `invalid`: SampleParams::out_invalid of a row.
  [[noreturn]] void fail_invalid_logits(const BatchItem& item, int32_t invalid) const {
    if (invalid == SampleParams::kNoLogit && has_sample_inputs(item)) {
      fail(ErrorCode::invalid_argument,
           "no token can be drawn: the mask of allowed tokens and the biases leave none of the %lld logits above "
           "-Infinity; allow at least one token",
           static_cast<long long>(model_.config().vocab_size));
    }
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
  std::optional<StepAhead> ahead_;
  bool runs_ahead_ = false;
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
      check_verifies(item);
      if (item.wants_logits) item.logits.resize(static_cast<size_t>(model.config().vocab_size));
      if (is_prompt(item)) {
        prompts.push_back({running});
        continue;
      }
      const auto group = std::find_if(decodes.begin(), decodes.end(), [&](const std::vector<RunningItem>& others) {
        int64_t num_rows = max_rows(item);
        for (const RunningItem& other : others) num_rows += max_rows(*other.item);
        return num_rows <= kDecodeBatch && can_share_pass(*item.session, *others[0].item->session);
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
  std::optional<StepAhead> ahead = std::exchange(model.workspace().ahead, std::nullopt);
  for (std::vector<RunningItem>& group : decodes) {
    batch.run(group, decodes.size() == 1 ? std::move(ahead) : std::nullopt, decodes.size() == 1);
  }
  for (std::vector<RunningItem>& prompt : prompts) batch.run(prompt);
}

}  // namespace diffqkv
