// One sequence: its KV cache and its tokens.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "model/kv_cache.h"
#include "model/model.h"

namespace diffqkv {

struct SessionOptions {
  int64_t max_kv_len = 0;  // 0: the config's max_position_embeddings. More than that is allowed: RoPE then extrapolates
  bool has_k_type = false, has_v_type = false;  // default: the model's type
  DType k_type = DType::f32, v_type = DType::f32;
  int64_t selective_top_k = 0;  // 0: off. Applies to every query, those of a prefill too.
  bool renormalize = false;
};

struct SamplingOptions {
  float temperature = 0;
  int64_t top_k = 0;
  float top_p = 1, min_p = 0, repetition_penalty = 1;
  uint64_t seed = 0;
};
void check_sampling(const SamplingOptions& options);

class Session {
 public:
  Session(std::shared_ptr<Model> model, const SessionOptions& options);

  // Any thread. The bytes are those of the pages held, shared ones in full.
  int64_t kv_len() const { return kv_len_.load(); }
  int64_t max_kv_len() const { return options_.max_kv_len; }
  uint64_t k_cache_bytes() const { return cache_.k_bytes(); }
  uint64_t v_cache_bytes() const { return cache_.v_bytes(); }
  const std::shared_ptr<Model>& model() const { return model_; }
  const SessionOptions& options() const { return options_; }  // defaults put in

  // The device's executor thread only. On any error the cache is as before the call.
  // Appends tokens (at least 1); copies the logits of the last one to logits_out ([vocab_size], f32). Runs in chunks of
  // kPrefillChunk; cancel is looked at before each layer of each.
  // Past max_kv_len, or where the pool has no page left: ERR_KV_CACHE_FULL.
  void forward(const int32_t* tokens, int64_t num_tokens, float* logits_out, const CancelFlag* cancel);
  void truncate(int64_t kv_len);    // 0 <= kv_len <= kv_len()
  std::unique_ptr<Session> fork();  // shares the pages in use; whoever writes to a shared one copies it first

  // The parts of a step, for run_turns (turns.h).
  // Checks tokens and room; then takes over pages of the prefix cache, as many as leave a token to do, and returns how many tokens
  // they hold, which count as appended.
  int64_t begin(const int32_t* tokens, int64_t num_tokens);
  // Makes room for num_tokens more: what run_forward is told of this session.
  ForwardSequence prepare(int64_t num_tokens);
  void commit(const int32_t* tokens, int64_t num_tokens);  // they are in the cache now
  // Enqueues the drawing of a token from logits [vocab_size] in device memory; `draw` counts those of one generate call. The repetition
  // penalty applies to all tokens in the cache.
  void sample(const float* logits, const SamplingOptions& options, uint64_t draw, int32_t* out_token);

 private:
  void check_tokens(const int32_t* tokens, int64_t num_tokens) const;
  void keep(int64_t kv_len);

  std::shared_ptr<Model> model_;
  SessionOptions options_;
  KvCache cache_;
  Buffer history_;  // i32: the first history_len_ of tokens_, copied when a penalty asks for them
  int64_t history_len_ = 0;
  std::vector<int32_t> tokens_;          // those in the cache
  std::vector<PrefixCache::Id> prefix_;  // of its whole pages, the first so many that the prefix cache knows
  std::atomic<int64_t> kv_len_{0};
};

}  // namespace diffqkv
