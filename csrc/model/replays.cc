#include "model/replays.h"

#include <algorithm>
#include <bit>

namespace diffqkv {

int64_t Replays::longest_kv_len(int64_t kv_len) {
  constexpr int64_t kLeastStep = 256;
  const auto power = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(std::max<int64_t>(kv_len, 1))));
  const int64_t step = std::max(power / 4, kLeastStep);
  return (kv_len + step - 1) / step * step;
}

void Replays::run(Backend& backend, const Key& key, const std::function<void()>& calls) {
  Replayer* replayer = backend.replayer();
  if (!replayer || !counts_.failure.empty()) return calls();
  const auto found =
      std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) { return entry.key == key; });
  if (found == entries_.end()) {
    calls();
    entries_.push_front({key, nullptr});
    if (entries_.size() > kMostRecordings) entries_.pop_back();
    return;
  }
  entries_.splice(entries_.begin(), entries_, found);
  std::unique_ptr<Recording>& recording = entries_.front().recording;
  if (recording) {
    if (replayer->replay(*recording)) return count(true, "");
    // Scratch memory has moved. It may have to grow again.
    recording.reset();
    calls();
    return count(false, "");
  }
  std::string failure;
  try {
    recording = replayer->record(calls);
  } catch (const Error& error) {
    // There may be more memory for the next step.
    if (error.code() != ErrorCode::out_of_memory) failure = error.what();
  }
  if (recording && replayer->replay(*recording)) return count(true, "");
  recording.reset();
  calls();
  count(false, failure);
}

void Replays::count(bool replayed, const std::string& failure) {
  if (!failure.empty()) entries_.clear();
  std::lock_guard lock(mutex_);
  counts_.failure = failure;
  counts_.replayed += replayed;
  counts_.recordings = static_cast<uint64_t>(
      std::count_if(entries_.begin(), entries_.end(), [](const Entry& entry) { return entry.recording != nullptr; }));
}

Replays::Counts Replays::counts() const {
  std::lock_guard lock(mutex_);
  return counts_;
}

}  // namespace diffqkv
