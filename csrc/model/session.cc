#include "model/session.h"

#include <algorithm>
#include <cmath>

namespace diffqkv {
namespace {

long long ll(int64_t value) { return value; }

DType checked_cache_type(const char* name, bool given, DType type, DType otherwise) {
  if (!given) return otherwise;
  if (type != DType::i32) return type;
  fail(ErrorCode::invalid_argument, "%s is %s; f32, f16, bf16, i8 and f8e4m3 are allowed for a KV cache", name,
       dtype_name(type));
}

// The options with their defaults put in.
SessionOptions checked(const Model& model, SessionOptions options) {
  constexpr int64_t kLimit = int64_t{1} << 30;  // positions are int32 on the device
  if (options.max_kv_len < 0 || options.max_kv_len > kLimit) {
    fail(ErrorCode::invalid_argument, "max_kv_len is %lld; from 1 to %lld is allowed", ll(options.max_kv_len),
         ll(kLimit));
  }
  if (options.selective_top_k < 0) {
    fail(ErrorCode::invalid_argument, "selective_top_k is %lld; 0 (off) or more is allowed",
         ll(options.selective_top_k));
  }
  if (options.max_kv_len == 0) options.max_kv_len = model.config().max_position_embeddings;
  options.k_type = checked_cache_type("k_type", options.has_k_type, options.k_type, model.dtype());
  options.v_type = checked_cache_type("v_type", options.has_v_type, options.v_type, model.dtype());
  options.has_k_type = options.has_v_type = true;
  return options;
}

}  // namespace

void check_sampling(const SamplingOptions& options) {
  const auto check = [](bool good, const char* name, double value, const char* wanted) {
    if (!good) fail(ErrorCode::invalid_argument, "%s is %g; %s is allowed", name, value, wanted);
  };
  check(std::isfinite(options.temperature) && options.temperature >= 0, "temperature", options.temperature,
        "0 (greedy) or a finite number above it");
  check(options.top_k >= 0, "top_k", static_cast<double>(options.top_k), "0 (all) or more");
  check(options.top_p > 0 && options.top_p <= 1, "top_p", options.top_p, "above 0 and up to 1");
  check(options.min_p >= 0 && options.min_p <= 1, "min_p", options.min_p, "0 to 1");
  check(std::isfinite(options.repetition_penalty) && options.repetition_penalty > 0, "repetition_penalty",
        options.repetition_penalty, "a finite number above 0");
}

Session::Session(std::shared_ptr<Model> model, const SessionOptions& options)
    : model_(std::move(model)),
      options_(checked(*model_, options)),
      cache_(model_->backend(), model_->kv_pool(), {options_.k_type, options_.v_type}) {}

void Session::check_tokens(const int32_t* tokens, int64_t num_tokens) const {
  const int64_t used = kv_len(), vocab_size = model_->config().vocab_size;
  if (num_tokens < 1) fail(ErrorCode::invalid_argument, "%lld tokens given; at least 1 is wanted", ll(num_tokens));
  if (num_tokens > max_kv_len() - used) {
    fail(ErrorCode::kv_cache_full,
         "the KV cache is full: %lld more tokens asked, %lld in use, max_kv_len is %lld; truncate the session, or "
         "create one with a larger max_kv_len",
         ll(num_tokens), ll(used), ll(max_kv_len()));
  }
  for (int64_t t = 0; t < num_tokens; t++) {
    if (tokens[t] < 0 || tokens[t] >= vocab_size) {
      fail(ErrorCode::invalid_argument,
           "token %d (number %lld of those given) is outside the vocabulary; 0 to %lld are in it", tokens[t], ll(t),
           ll(vocab_size - 1));
    }
  }
}

int64_t Session::begin(const int32_t* tokens, int64_t num_tokens) {
  constexpr int64_t kTokens = KvPool::kPageTokens;
  check_tokens(tokens, num_tokens);
  PrefixCache& prefixes = model_->kv_pool().prefixes();
  const int64_t used = kv_len();
  if (!prefixes.enabled() || used % kTokens != 0 || static_cast<int64_t>(prefix_.size()) != used / kTokens) return 0;
  PrefixCache::Id id =
      prefix_.empty() ? prefixes.root(options_.k_type, options_.v_type, options_.selective_top_k, options_.renormalize)
                      : prefix_.back();
  int64_t found = 0;
  for (; found + kTokens < num_tokens; found += kTokens) {
    std::shared_ptr<KvPage> page = prefixes.find(id, tokens + found, &id);
    if (!page) break;
    cache_.append(std::move(page));
    prefix_.push_back(id);
  }
  tokens_.insert(tokens_.end(), tokens, tokens + found);
  kv_len_ = used + found;
  return found;
}

ForwardSequence Session::prepare(int64_t num_tokens) {
  cache_.prepare(kv_len(), kv_len() + num_tokens);
  return {&cache_, kv_len(), num_tokens};
}

void Session::commit(const int32_t* tokens, int64_t num_tokens) {
  constexpr int64_t kTokens = KvPool::kPageTokens;
  tokens_.insert(tokens_.end(), tokens, tokens + num_tokens);
  kv_len_ = kv_len() + num_tokens;
  PrefixCache& prefixes = model_->kv_pool().prefixes();
  while (prefixes.enabled()) {
    const int64_t page = static_cast<int64_t>(prefix_.size());
    if ((page + 1) * kTokens > kv_len()) break;
    const PrefixCache::Id parent =
        page > 0 ? prefix_.back()
                 : prefixes.root(options_.k_type, options_.v_type, options_.selective_top_k, options_.renormalize);
    const PrefixCache::Id id =
        prefixes.add(parent, tokens_.data() + page * kTokens, cache_.pages()[page], cache_.page_bytes());
    if (id == 0) break;
    prefix_.push_back(id);
  }
}

void Session::forward(const int32_t* tokens, int64_t num_tokens, float* logits_out, const CancelFlag* cancel) {
  const int64_t used = kv_len();
  Backend& backend = *model_->backend();
  try {
    int64_t done = begin(tokens, num_tokens);
    while (done < num_tokens) {
      const int64_t size = std::min(kPrefillChunk, num_tokens - done);
      ForwardStep step;
      step.sequences = {prepare(size)};
      step.tokens = tokens + done;
      step.logits = done + size == num_tokens;
      step.selective_top_k = options_.selective_top_k;
      step.renormalize = options_.renormalize;
      if (cancel) step.cancels = {cancel};
      run_forward(backend, model_->config(), model_->weights(), model_->workspace(), step);
      // A GPU would be given all chunks at once, and an abort would not tell of what it does.
      if (!step.logits) backend.synchronize();
      if (cancel && cancel->load(std::memory_order_relaxed))
        fail(ErrorCode::aborted, "the prefill was aborted after %lld of %lld tokens", ll(done + size), ll(num_tokens));
      commit(tokens + done, size);
      done += size;
    }
    backend.download(logits_out, model_->workspace().logits.data(), model_->config().vocab_size * sizeof(float));
  } catch (...) {
    keep(used);
    throw;
  }
}

void Session::sample(const float* logits, const SamplingOptions& options, uint64_t draw, int32_t* out_token) {
  Backend& backend = *model_->backend();
  SampleParams p;
  if (options.repetition_penalty != 1) {
    const int64_t count = static_cast<int64_t>(tokens_.size());
    if (history_.bytes() < tokens_.size() * sizeof(int32_t)) {
      Buffer larger(model_->backend(),
                    std::max<size_t>(2 * history_.bytes(), std::max<size_t>(1024, tokens_.size()) * sizeof(int32_t)));
      backend.synchronize();  // before the old one goes
      history_ = std::move(larger);
      history_len_ = 0;
    }
    if (history_len_ < count) {
      backend.upload(history_.as<int32_t>() + history_len_, tokens_.data() + history_len_,
                     (count - history_len_) * sizeof(int32_t));
      history_len_ = count;
    }
    p.history = history_.as<int32_t>();
    p.history_len = count;
  }
  p.logits = logits;
  p.out_token = out_token;
  p.vocab_size = model_->config().vocab_size;
  p.temperature = options.temperature;
  p.top_k = options.top_k;
  p.top_p = options.top_p;
  p.min_p = options.min_p;
  p.repetition_penalty = options.repetition_penalty;
  p.seed = options.seed;
  p.step = draw;
  backend.sample(p);
}

void Session::truncate(int64_t kv_len) {
  if (kv_len < 0 || kv_len > this->kv_len()) {
    fail(ErrorCode::invalid_argument, "cannot truncate to %lld rows; 0 to %lld (those in use) is allowed", ll(kv_len),
         ll(this->kv_len()));
  }
  keep(kv_len);
}

void Session::keep(int64_t kv_len) {
  cache_.keep(kv_len);
  tokens_.resize(kv_len);
  prefix_.resize(std::min<size_t>(prefix_.size(), kv_len / KvPool::kPageTokens));
  history_len_ = std::min(history_len_, kv_len);
  kv_len_ = kv_len;
}

std::unique_ptr<Session> Session::fork() {
  auto copy = std::make_unique<Session>(model_, options_);
  copy->cache_.share(cache_, kv_len());
  copy->tokens_ = tokens_;
  copy->prefix_ = prefix_;
  copy->kv_len_ = kv_len();
  return copy;
}

}  // namespace diffqkv
