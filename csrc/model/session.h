// One sequence: its KV cache and the logits of its last token.
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

class Session {
 public:
  Session(std::shared_ptr<Model> model, const SessionOptions& options);

  // Any thread. The bytes are those allocated so far: the cache doubles on its way to max_kv_len.
  int64_t kv_len() const { return kv_len_.load(); }
  int64_t max_kv_len() const { return cache_.max_kv_len(); }
  uint64_t k_cache_bytes() const { return cache_.k_bytes(); }
  uint64_t v_cache_bytes() const { return cache_.v_bytes(); }
  const std::shared_ptr<Model>& model() const { return model_; }

  // The device's executor thread only. On any error the cache is as before the call.
  // Appends tokens (at least 1) and leaves the logits of the last one in device memory; copies them to logits_out
  // ([vocab_size], f32) unless null. Runs in chunks of kPrefillChunk; cancel is looked at before each layer of each,
  // and after each on_progress is called on this thread. Past max_kv_len: ERR_KV_CACHE_FULL.
  void forward(const int32_t* tokens, int64_t num_tokens, float* logits_out, const CancelFlag* cancel,
               const std::function<void(int64_t done_tokens, int64_t total_tokens)>& on_progress = nullptr);
  // Draws a token from the logits of the last forward; step counts the draws of one generate call. The repetition
  // penalty applies to all tokens in the cache. Without logits (nothing forwarded yet, or nothing since a truncate that
  // dropped rows or a forward that failed) ERR_INVALID_ARGUMENT.
  int32_t sample(const SamplingOptions& options, uint64_t step);
  void truncate(int64_t kv_len);    // 0 <= kv_len <= kv_len()
  std::unique_ptr<Session> fork();  // its own copy of the rows in use, the tokens and the logits

 private:
  std::shared_ptr<Model> model_;
  SessionOptions options_;  // defaults put in
  KvCache cache_;
  Buffer logits_;     // f32 [vocab_size]
  Buffer out_token_;  // i32 [1]
  Buffer history_;    // i32: the first history_len_ of tokens_, copied when a penalty asks for them
  int64_t history_len_ = 0;
  std::vector<int32_t> tokens_;  // those in the cache
  bool has_logits_ = false;
  std::atomic<int64_t> kv_len_{0};
};

}  // namespace diffqkv
