#include "model/row_values.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace diffqkv {
namespace {

[[noreturn]] void fail_invalid(const Model& model, const char* what) {
  fail(ErrorCode::unsupported_model,
       "%s gives invalid %s with dtype %s. Load it with a wider dtype, or check its weights for NaN",
       model.name().c_str(), what, dtype_name(model.dtype()));
}

void append_log_probs(Model& model, int64_t num_tokens, std::vector<double>& values) {
  std::vector<float> log_probs(static_cast<size_t>(num_tokens));
  model.backend()->download(log_probs.data(), model.workspace().row_log_probs.data(), log_probs.size() * sizeof(float));
  if (std::any_of(log_probs.begin(), log_probs.end(), [](float x) { return std::isnan(x); })) {
    fail_invalid(model, "logits");
  }
  values.insert(values.end(), log_probs.begin(), log_probs.end());
}

// The weights of the final norm contain the scale of the logits, which is not a part of the state.
void add_states(Model& model, int64_t first, int64_t count, std::vector<double>& sum) {
  const auto size = static_cast<size_t>(model.config().hidden_size);
  std::vector<float> states(static_cast<size_t>(count) * size);
  const float* rows = model.workspace().residual.as<float>() + first * model.config().hidden_size;
  model.backend()->download(states.data(), rows, states.size() * sizeof(float));
  sum.resize(size);
  for (size_t i = 0; i < states.size(); i++) sum[i % size] += states[i] / model.config().logit_scale;
  if (!std::all_of(sum.begin(), sum.end(), [](double x) { return std::isfinite(x); })) {
    fail_invalid(model, "hidden states");
  }
}

}  // namespace

void demand_row_buffers(Model& model) {
  Workspace& workspace = model.workspace();
  if (workspace.row_logits.data()) return;
  const auto buffer = [&](int64_t count) {
    return Buffer(model.backend(), static_cast<size_t>(count) * sizeof(float));
  };
  Buffer targets = buffer(workspace.prefill_chunk);
  Buffer log_probs = buffer(workspace.prefill_chunk);
  workspace.row_logits = buffer(kScoredRows * model.config().vocab_size);
  workspace.row_targets = std::move(targets);
  workspace.row_log_probs = std::move(log_probs);
}

void add_row_values(Model& model, RowOutput output, int64_t num_tokens, std::vector<double>& values) {
  switch (output) {
    case RowOutput::none: return;
    case RowOutput::log_probs: return append_log_probs(model, num_tokens, values);
    case RowOutput::last_hidden: return add_states(model, num_tokens - 1, 1, values);
    case RowOutput::all_hidden: return add_states(model, 0, num_tokens, values);
  }
}

}  // namespace diffqkv
