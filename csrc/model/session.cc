#include "model/session.h"

#include <algorithm>
#include <cmath>

namespace diffqkv {
namespace {

long long ll(int64_t value) { return value; }

DType checked_cache_type(const char* name, bool given, DType type, DType otherwise) {
  if (!given) return otherwise;
  if (type == DType::f32 || type == DType::f16 || type == DType::bf16) return type;
  fail(type == DType::i32 ? ErrorCode::invalid_argument : ErrorCode::unsupported_model,
       "%s %s is not supported for a KV cache; f32, f16 and bf16 are", name, dtype_name(type));
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

}  // namespace

Session::Session(std::shared_ptr<Model> model, const SessionOptions& options)
    : model_(std::move(model)),
      options_(checked(*model_, options)),
      cache_(model_->backend(), model_->config(), options_.k_type, options_.v_type, options_.max_kv_len),
      logits_(model_->backend(), model_->config().vocab_size * sizeof(float)),
      out_token_(model_->backend(), sizeof(int32_t)) {}

void Session::forward(const int32_t* tokens, int64_t num_tokens, float* logits_out, const CancelFlag* cancel,
                      const std::function<void(int64_t, int64_t)>& on_progress) {
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

  Backend& backend = *model_->backend();
  // All room is made now, so that nothing can fail for lack of it once the rows are written.
  const auto needed = static_cast<size_t>(used + num_tokens);
  if (tokens_.capacity() < needed) tokens_.reserve(std::max(needed, 2 * tokens_.capacity()));
  cache_.reserve(used + num_tokens, used);
  for (int64_t done = 0; done < num_tokens;) {
    ForwardStep step;
    step.tokens = tokens + done;
    step.num_tokens = std::min(kPrefillChunk, num_tokens - done);
    step.pos = used + done;
    step.cache = &cache_;
    step.selective_top_k = options_.selective_top_k;
    step.renormalize = options_.renormalize;
    step.cancel = cancel;
    done += step.num_tokens;
    if (done == num_tokens) {
      step.logits = logits_.as<float>();
      has_logits_ = false;  // until these are whole
    }
    run_forward(backend, model_->config(), model_->weights(), model_->workspace_, step);
    // A GPU would be given all chunks at once, and neither progress nor an abort would tell of what it does.
    if (done < num_tokens || on_progress) backend.synchronize();
    if (cancel && cancel->load(std::memory_order_relaxed))
      fail(ErrorCode::aborted, "the prefill was aborted after %lld of %lld tokens", ll(done), ll(num_tokens));
    if (on_progress) on_progress(done, num_tokens);
  }
  if (logits_out) backend.download(logits_out, logits_.data(), vocab_size * sizeof(float));
  tokens_.insert(tokens_.end(), tokens, tokens + num_tokens);
  has_logits_ = true;
  kv_len_ = used + num_tokens;
}

int32_t Session::sample(const SamplingOptions& options, uint64_t step) {
  check_sampling(options);
  if (!has_logits_) {
    fail(ErrorCode::invalid_argument,
         "there are no logits to sample from; forward at least one token first (after a truncate, too)");
  }
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
  p.logits = logits_.as<float>();
  p.out_token = out_token_.as<int32_t>();
  p.vocab_size = model_->config().vocab_size;
  p.temperature = options.temperature;
  p.top_k = options.top_k;
  p.top_p = options.top_p;
  p.min_p = options.min_p;
  p.repetition_penalty = options.repetition_penalty;
  p.seed = options.seed;
  p.step = step;
  backend.sample(p);
  int32_t token = 0;
  backend.download(&token, out_token_.data(), sizeof token);
  return token;
}

void Session::truncate(int64_t kv_len) {
  const int64_t used = this->kv_len();
  if (kv_len < 0 || kv_len > used) {
    fail(ErrorCode::invalid_argument, "cannot truncate to %lld rows; 0 to %lld (those in use) is allowed", ll(kv_len),
         ll(used));
  }
  if (kv_len == used) return;
  tokens_.resize(kv_len);
  history_len_ = std::min(history_len_, kv_len);
  has_logits_ = false;  // they were those of a token that is gone
  kv_len_ = kv_len;
}

std::unique_ptr<Session> Session::fork() {
  auto copy = std::make_unique<Session>(model_, options_);
  copy->cache_.copy_rows(cache_, kv_len());
  if (has_logits_) model_->backend()->copy(copy->logits_.data(), logits_.data(), logits_.bytes());
  copy->tokens_ = tokens_;
  copy->has_logits_ = has_logits_;
  copy->kv_len_ = kv_len();
  model_->backend()->synchronize();  // this session may be gone before the copies are
  return copy;
}

}  // namespace diffqkv
