#include "model/drawn_log_probs.h"

#include <algorithm>
#include <cstring>

namespace diffqkv {
namespace {

// What the device writes for one row.
struct DeviceRow {
  float log_prob;
  int32_t top_tokens[LogProbsParams::kMaxTopN];
  float top[LogProbsParams::kMaxTopN];
};

}  // namespace

void DrawnLogProbs::enqueue(size_t row, const int32_t* token, int64_t top_n) {
  Workspace& workspace = model_.workspace();
  if (!workspace.drawn_log_probs.data()) {
    workspace.drawn_log_probs = Buffer(model_.backend(), kDecodeBatch * sizeof(DeviceRow));
  }
  DeviceRow* const out = workspace.drawn_log_probs.as<DeviceRow>() + row;
  LogProbsParams p;
  p.vocab_size = model_.config().vocab_size;
  p.logits = workspace.logits.as<float>() + static_cast<int64_t>(row) * p.vocab_size;
  p.tokens = token;
  p.out = &out->log_prob;
  p.out_top_tokens = out->top_tokens;
  p.out_top = out->top;
  p.num_rows = 1;
  p.top_n = std::min(top_n, p.vocab_size);
  model_.backend()->log_probs(p);
}

TokenLogProbs DrawnLogProbs::read(size_t row, int64_t top_n) {
  const Buffer& buffer = model_.workspace().drawn_log_probs;
  if (host_.empty()) {
    host_.resize(buffer.bytes());
    model_.backend()->download(host_.data(), buffer.data(), buffer.bytes());
  }
  DeviceRow values;
  std::memcpy(&values, host_.data() + row * sizeof(DeviceRow), sizeof(DeviceRow));
  const int64_t count = std::min(top_n, model_.config().vocab_size);
  return {values.log_prob, {values.top_tokens, values.top_tokens + count}, {values.top, values.top + count}};
}

}  // namespace diffqkv
