// One sequence: its KV cache and its tokens.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "model/kv_cache.h"
#include "model/model.h"

namespace diffqkv {

struct SessionOptions {
  // Default: the config's max_position_embeddings. A larger value is allowed; RoPE then
  // extrapolates.
  std::optional<int64_t> max_kv_len;
  // Default: the model's type.
  std::optional<DType> k_type;
  std::optional<DType> v_type;
  // 0: off. Applies to every query, also in prefill.
  int64_t selective_top_k = 0;
  bool renormalize = false;
};

// Within the ranges of check_sample_row (check.h).
struct SamplingOptions {
  float temperature = 0;
  int64_t top_k = 0;
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  uint64_t seed = 0;
};

// What a saved session has beside the pages of its cache.
struct SavedSession {
  SessionOptions options;  // all of them given
  std::vector<int32_t> tokens;
  int64_t rope_length = 0, prompt_length = 0;  // Session::rope_length_ and prompt_length_
  int64_t first = 0;                           // KvCache::first
};

// A row of `sample` for the draw of this number. Its history is empty.
SampleRow sample_row(const SamplingOptions& options, uint64_t draw);

class Session {
 public:
  Session(std::shared_ptr<Model> model, const SessionOptions& options);

  // Any thread. Shared pages count in full.
  int64_t kv_len() const { return kv_len_.load(); }
  int64_t max_kv_len() const { return max_kv_len_; }
  uint64_t k_cache_bytes() const { return cache_.k_bytes(); }
  uint64_t v_cache_bytes() const { return cache_.v_bytes(); }
  const std::shared_ptr<Model>& model() const { return model_; }
  const SessionOptions& options() const { return options_; }
  int64_t rope_length() const { return rope_length_; }
  KvTypes types() const { return cache_.types(); }

  // Executor thread only, like everything below. After an error the cache is as before the call.
  // 0 <= kv_len <= kv_len()
  void truncate(int64_t kv_len);
  // The copy shares the pages in use. Whichever session writes to a shared page copies it first.
  std::unique_ptr<Session> fork();

  SavedSession saved() const;
  // A session whose pages have undefined contents until they are written (KvImage). Throws
  // ERR_INVALID_ARGUMENT if no session of this model can be so, ERR_KV_CACHE_FULL, ERR_OUT_OF_MEMORY.
  static std::unique_ptr<Session> restore(std::shared_ptr<Model> model, const SavedSession& saved);
  KvCache& cache() { return cache_; }

  // The context length that selects the frequencies of RoPE for num_tokens more: 0 up to
  // original_context. Above it, LongRoPE has one set of frequencies, and dynamic RoPE one for each
  // length.
  int64_t rope_length(int64_t num_tokens) const;
  // Whether the cache must be computed again before num_tokens more: after truncate it lacks rows
  // that a window reaches, or its keys have the wrong frequencies. As in transformers, one token
  // does not change those of the others with dynamic RoPE, unless truncate has shortened the prompt
  // that they are of.
  bool must_recompute(int64_t num_tokens) const;
  // An empty session with the frequencies that the cache must have for num_tokens more, and adopting
  // its cache after the tokens of this one were appended to it.
  std::unique_ptr<Session> restarted(int64_t num_tokens) const;
  void adopt(const Session& other);
  const std::vector<int32_t>& tokens() const { return tokens_; }  // in the cache
  // Of all sessions, only this one has this number, until its tokens change.
  uint64_t revision() const { return revision_; }

  // Throws ERR_INVALID_ARGUMENT or ERR_KV_CACHE_FULL if the tokens cannot be appended.
  void check_tokens(const int32_t* tokens, int64_t num_tokens) const;
  enum class Prefixes { use, skip };
  // The parts of a step, for run_batch (batch.h). If one fails, run_batch truncates the session.
  //
  // Checks the tokens and the room for them: ERR_INVALID_ARGUMENT, ERR_KV_CACHE_FULL. Then appends
  // the pages that the prefix cache has for them, except the page of the last token, and returns
  // the number of tokens in those pages. Prefixes::skip: all tokens are to be computed, so none are
  // appended, and the session's pages never enter the prefix cache.
  int64_t begin(const int32_t* tokens, int64_t num_tokens, Prefixes use = Prefixes::use);
  // Makes room for num_tokens more and returns the session's part of a forward pass.
  ForwardSequence prepare(int64_t num_tokens);
  // Counts the tokens as cached, after a forward pass.
  void commit(const int32_t* tokens, int64_t num_tokens);
  // How the next token is drawn. `draw` is the number of tokens that the generation has drawn before.
  // The repetition penalty applies to all tokens in the cache. Throws ERR_INVALID_ARGUMENT if an
  // option is out of range. `next_token`: in device memory, a token that will follow those in the
  // cache and is penalized too.
  SampleRow sample_row(const SamplingOptions& options, uint64_t draw, const int32_t* next_token = nullptr);
  // How a token is drawn after each of `tokens`, which will follow those in the cache: the first with
  // `draw`, the next with draw + 1 and so on. rows: [tokens.size()].
  void sample_rows(const SamplingOptions& options, uint64_t draw, std::span<const int32_t> tokens, SampleRow* rows);
  // Whether the next token needs no page, no other frequencies of RoPE than the last one, and no memory
  // for its history.
  bool is_ready_for_token(const SamplingOptions& options) const;

 private:
  PrefixCache::Id prefix_root();
  bool uses_prefix_cache() const;
  // The first row that a window reaches after kv_len rows, 0 if a layer has no window.
  int64_t first_visible(int64_t kv_len) const;
  void upload_history(size_t num_following);  // of tokens_, with room for more
  void change();                              // of tokens_: gives it another revision
  void release_hidden();                      // releases the pages before it, except some

  std::shared_ptr<Model> model_;
  SessionOptions options_;
  int64_t max_kv_len_;
  KvCache cache_;
  int64_t rope_length_ = 0;  // of the newest cached K
  // Dynamic RoPE: cached K up to this length has the frequencies of this length, if it is not 0.
  int64_t prompt_length_ = 0;
  Buffer history_;  // i32: the first history_len_ of tokens_, uploaded when a penalty needs them
  int64_t history_len_ = 0;
  uint64_t revision_ = 0;
  // The cache has pages of a file, which anyone may have written. No other session may read them.
  bool is_restored_ = false;
  bool skips_prefix_cache_ = false;
  std::vector<int32_t> tokens_;          // the tokens in the cache
  std::vector<PrefixCache::Id> prefix_;  // of the leading pages that the prefix cache has
  std::atomic<int64_t> kv_len_{0};
};

}  // namespace diffqkv
