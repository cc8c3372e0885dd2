// Decode steps that the device has recorded. A step of a small model takes a GPU less time than it
// takes the host to launch its kernels one by one.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>

#include "backend/backend.h"
#include "model/kv_pool.h"

namespace diffqkv {

class Replays {
 public:
  // Steps of one model with equal keys are the same calls: all else is read from device memory.
  struct Key {
    int64_t num_sequences;
    int64_t max_kv_len;  // a value of longest_kv_len
    KvTypes types;
    bool logits, long_rope;
    int64_t selective_top_k;
    bool renormalize;
    auto operator<=>(const Key&) const = default;
  };
  struct Counts {
    uint64_t recordings = 0;  // that are kept
    uint64_t replayed = 0;    // steps
    std::string failure;      // why steps are no longer recorded; empty: they are
  };
  static constexpr size_t kMostRecordings = 32;

  // The length up to which steps have the same calls. It leaves at most a quarter unused above 1,024.
  static int64_t longest_kv_len(int64_t kv_len);

  // Makes `calls` or enqueues what they did before. The first time they are made, because they may
  // need memory that cannot be allocated while they are recorded.
  void run(Backend& backend, const Key& key, const std::function<void()>& calls);

  Counts counts() const;  // any thread

 private:
  void count(bool replayed, const std::string& failure);

  struct Entry {
    Key key;
    std::unique_ptr<Recording> recording;
  };

  std::list<Entry> entries_;  // the latest used first
  mutable std::mutex mutex_;  // of counts_
  Counts counts_;
};

}  // namespace diffqkv
