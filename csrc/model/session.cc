#include "model/session.h"

#include <algorithm>

#include "backend/check.h"

namespace diffqkv {
namespace {

constexpr int64_t kPageTokens = KvPool::kPageTokens;
constexpr int64_t kTruncateSlack = 512;

long long ll(int64_t value) { return value; }

int64_t resolve_max_kv_len(const Model& model, std::optional<int64_t> max_kv_len) {
  constexpr int64_t kLimit = int64_t{1} << 30;  // positions are int32 on the device
  if (!max_kv_len) return model.config().max_position_embeddings;
  if (*max_kv_len < 1 || *max_kv_len > kLimit) {
    fail(ErrorCode::invalid_argument, "maxKvLen is %lld; it must be from 1 to %lld", ll(*max_kv_len), ll(kLimit));
  }
  return *max_kv_len;
}

DType resolve_cache_type(const Model& model, const char* name, std::optional<DType> type) {
  if (!type) return model.dtype();
  if (*type == DType::i32) {
    fail(ErrorCode::invalid_argument, "%s is %s; a KV cache must be f32, f16, bf16, i8 or f8e4m3", name,
         dtype_name(*type));
  }
  return *type;
}

KvTypes resolve_types(const Model& model, const SessionOptions& options) {
  const DType k = resolve_cache_type(model, "kType", options.k_type);
  const DType v = resolve_cache_type(model, "vType", options.v_type);
  if (!model.config().is_latent()) return {k, v};
  if (options.v_type && v != k) {
    fail(ErrorCode::invalid_argument, "vType is %s and kType is %s; they must be equal, because K and V of %s are one",
         dtype_name(v), dtype_name(k), model.config().architecture->title);
  }
  return {k, k};
}

}  // namespace

Session::Session(std::shared_ptr<Model> model, const SessionOptions& options)
    : model_(std::move(model)),
      options_(options),
      max_kv_len_(resolve_max_kv_len(*model_, options.max_kv_len)),
      cache_(model_->backend(), model_->kv_pool(), resolve_types(*model_, options)) {
  if (options.selective_top_k < 0) {
    fail(ErrorCode::invalid_argument, "selectiveV.topK is %lld; it must be 0 (off) or more",
         ll(options.selective_top_k));
  }
}

void Session::check_tokens(const int32_t* tokens, int64_t num_tokens) const {
  const int64_t used = kv_len();
  const int64_t vocab_size = model_->config().vocab_size;
  if (num_tokens < 1) fail(ErrorCode::invalid_argument, "tokens is empty; pass at least one token");
  if (num_tokens > max_kv_len() - used) {
    fail(ErrorCode::kv_cache_full,
         "the KV cache is full: %lld tokens do not fit, %lld are in use and maxKvLen is %lld (the context of the model "
         "has %lld); truncate the session, or create one with a larger maxKvLen",
         ll(num_tokens), ll(used), ll(max_kv_len()), ll(model_->config().max_position_embeddings));
  }
  for (int64_t t = 0; t < num_tokens; t++) {
    if (tokens[t] >= 0 && tokens[t] < vocab_size) continue;
    fail(ErrorCode::invalid_argument, "tokens[%lld] is %d; it must be from 0 to %lld (vocabSize - 1)", ll(t), tokens[t],
         ll(vocab_size - 1));
  }
}

PrefixCache::Id Session::prefix_root() {
  const auto [k_type, v_type] = types();
  return model_->kv_pool().prefixes().root(k_type, v_type, options_.selective_top_k, options_.renormalize,
                                           rope_length_ > 0);
}

// The pages of a long context with dynamic RoPE have frequencies of that length only.
bool Session::uses_prefix_cache() const {
  if (is_restored_ || skips_prefix_cache_) return false;
  return model_->kv_pool().prefixes().enabled() && !(model_->config().is_dynamic() && rope_length_ > 0);
}

int64_t Session::rope_length(int64_t num_tokens) const {
  const Config& config = model_->config();
  const int64_t original = config.original_context, length = kv_len() + num_tokens;
  if (original == 0 || length <= original) return 0;
  return config.is_dynamic() ? length : original + 1;
}

bool Session::must_recompute(int64_t num_tokens) const {
  const int64_t length = rope_length(num_tokens);
  if (kv_len() == 0) return false;
  if (first_visible(kv_len()) < cache_.first()) return true;
  if (!model_->config().is_dynamic()) return rope_length_ != length;
  if (prompt_length_ == length) return false;
  return length == 0 || num_tokens > 1 || kv_len() < prompt_length_;
}

int64_t Session::first_visible(int64_t kv_len) const {
  const int64_t window = model_->config().widest_window;
  return window == 0 ? 0 : std::max<int64_t>(kv_len - window + 1, 0);
}

std::unique_ptr<Session> Session::restarted(int64_t num_tokens) const {
  auto fresh = std::make_unique<Session>(model_, options_);
  const bool is_token = model_->config().is_dynamic() && num_tokens == 1;  // it rotates only itself
  fresh->rope_length_ = fresh->prompt_length_ = rope_length(is_token ? 0 : num_tokens);
  return fresh;
}

void Session::adopt(const Session& other) {
  std::vector<PrefixCache::Id> prefix = other.prefix_;
  cache_.share(other.cache_, other.kv_len());
  prefix_ = std::move(prefix);
  rope_length_ = other.rope_length_;
  prompt_length_ = other.prompt_length_;
  is_restored_ = other.is_restored_;
  change();
}

int64_t Session::begin(const int32_t* tokens, int64_t num_tokens, Prefixes use) {
  check_tokens(tokens, num_tokens);
  rope_length_ = rope_length(num_tokens);
  if (num_tokens > 1 || rope_length_ == 0) prompt_length_ = rope_length_;
  if (use == Prefixes::skip) skips_prefix_cache_ = true;
  PrefixCache& prefixes = model_->kv_pool().prefixes();
  const int64_t used = kv_len();
  const bool whole_pages = used % kPageTokens == 0 && static_cast<int64_t>(prefix_.size()) == used / kPageTokens;
  if (!uses_prefix_cache() || !whole_pages) return 0;
  PrefixCache::Id id = prefix_.empty() ? prefix_root() : prefix_.back();
  int64_t found = 0;
  for (; found + kPageTokens < num_tokens; found += kPageTokens) {
    std::shared_ptr<KvPage> page = prefixes.find(id, tokens + found, &id);
    if (!page) break;
    cache_.append(std::move(page));
    prefix_.push_back(id);
  }
  tokens_.insert(tokens_.end(), tokens, tokens + found);
  if (found > 0) change();
  kv_len_ = used + found;
  release_hidden();
  return found;
}

ForwardSequence Session::prepare(int64_t num_tokens) {
  cache_.prepare(kv_len(), kv_len() + num_tokens);
  return {&cache_, kv_len(), num_tokens};
}

void Session::commit(const int32_t* tokens, int64_t num_tokens) {
  tokens_.insert(tokens_.end(), tokens, tokens + num_tokens);
  change();
  kv_len_ = kv_len() + num_tokens;
  PrefixCache& prefixes = model_->kv_pool().prefixes();
  while (uses_prefix_cache()) {
    const int64_t page = static_cast<int64_t>(prefix_.size());
    if ((page + 1) * kPageTokens > kv_len() || page * kPageTokens < cache_.first()) break;
    const PrefixCache::Id parent = page > 0 ? prefix_.back() : prefix_root();
    const PrefixCache::Id id =
        prefixes.add(parent, tokens_.data() + page * kPageTokens, cache_.pages()[page], cache_.page_bytes());
    if (id == 0) break;
    prefix_.push_back(id);
  }
  release_hidden();
}

// The slack lets truncate take back some tokens without computing the cache again.
void Session::release_hidden() {
  const int64_t slack = std::min(model_->config().widest_window, kTruncateSlack);
  cache_.forget(first_visible(kv_len()) - slack);
}

SampleRow sample_row(const SamplingOptions& options, uint64_t draw) {
  SampleRow row;
  row.seed = options.seed;
  row.step = draw;
  row.top_k = options.top_k;
  row.temperature = options.temperature;
  row.top_p = options.top_p;
  row.min_p = options.min_p;
  row.repetition_penalty = options.repetition_penalty;
  return row;
}

SampleRow Session::sample_row(const SamplingOptions& options, uint64_t draw, const int32_t* next_token) {
  SampleRow row = diffqkv::sample_row(options, draw);
  check_sample_row(row);
  if (options.repetition_penalty != 1) {
    upload_history(next_token ? 1 : 0);
    row.history = history_.as<int32_t>();
    row.history_len = history_len_;
    if (next_token) model_->backend()->copy(history_.as<int32_t>() + row.history_len++, next_token, sizeof(int32_t));
  }
  return row;
}

void Session::sample_rows(const SamplingOptions& options, uint64_t draw, std::span<const int32_t> tokens,
                          SampleRow* rows) {
  const bool has_history = options.repetition_penalty != 1;
  check_sample_row(diffqkv::sample_row(options, draw));
  if (has_history) {
    upload_history(tokens.size());
    model_->backend()->upload(history_.as<int32_t>() + history_len_, tokens.data(), tokens.size_bytes());
  }
  for (size_t i = 0; i < tokens.size(); i++) {
    rows[i] = diffqkv::sample_row(options, draw + i);
    if (!has_history) continue;
    rows[i].history = history_.as<int32_t>();
    rows[i].history_len = history_len_ + static_cast<int64_t>(i) + 1;
  }
}

void Session::upload_history(size_t num_following) {
  Backend& backend = *model_->backend();
  const int64_t count = static_cast<int64_t>(tokens_.size());
  const size_t room = tokens_.size() + num_following;
  if (history_.bytes() < room * sizeof(int32_t)) {
    const size_t needed = std::max<size_t>(1024, room) * sizeof(int32_t);
    Buffer larger(model_->backend(), std::max<size_t>(2 * history_.bytes(), needed));
    backend.synchronize();  // a queued kernel may still read the old buffer
    history_ = std::move(larger);
    history_len_ = 0;
  }
  if (history_len_ == count) return;
  backend.upload(history_.as<int32_t>() + history_len_, tokens_.data() + history_len_,
                 (count - history_len_) * sizeof(int32_t));
  history_len_ = count;
}

bool Session::is_ready_for_token(const SamplingOptions& options) const {
  if (options.repetition_penalty != 1 && history_.bytes() <= tokens_.size() * sizeof(int32_t)) return false;
  return kv_len() < max_kv_len_ && kv_len() % kPageTokens != 0 && rope_length(1) == rope_length_ && !must_recompute(1);
}

void Session::change() {
  static std::atomic<uint64_t> last{0};  // several devices have an executor each
  revision_ = ++last;
}

void Session::truncate(int64_t kv_len) {
  if (kv_len < 0 || kv_len > this->kv_len()) {
    fail(ErrorCode::invalid_argument, "kvLen is %lld; it must be from 0 to %lld, the current length", ll(kv_len),
         ll(this->kv_len()));
  }
  cache_.keep(kv_len);
  tokens_.resize(kv_len);
  change();
  prefix_.resize(std::min<size_t>(prefix_.size(), kv_len / kPageTokens));
  history_len_ = std::min(history_len_, kv_len);
  kv_len_ = kv_len;
  if (kv_len == 0) is_restored_ = false;
}

std::unique_ptr<Session> Session::fork() {
  auto copy = std::make_unique<Session>(model_, options_);
  copy->cache_.share(cache_, kv_len());
  copy->rope_length_ = rope_length_;
  copy->prompt_length_ = prompt_length_;
  copy->tokens_ = tokens_;
  copy->prefix_ = prefix_;
  copy->is_restored_ = is_restored_;
  copy->kv_len_ = kv_len();
  return copy;
}

SavedSession Session::saved() const {
  SavedSession saved{.options = options_,
                     .tokens = tokens_,
                     .rope_length = rope_length_,
                     .prompt_length = prompt_length_,
                     .first = cache_.first()};
  saved.options.max_kv_len = max_kv_len_;
  saved.options.k_type = types().k;
  saved.options.v_type = types().v;
  return saved;
}

std::unique_ptr<Session> Session::restore(std::shared_ptr<Model> model, const SavedSession& saved) {
  auto session = std::make_unique<Session>(std::move(model), saved.options);
  const auto num_tokens = static_cast<int64_t>(saved.tokens.size());
  if (num_tokens > 0) session->check_tokens(saved.tokens.data(), num_tokens);
  const Config& config = session->model_->config();
  // A truncate can end before the first cached token, within the page before it.
  const int64_t limit = config.widest_window > 0 ? (num_tokens + kPageTokens - 1) / kPageTokens * kPageTokens : 0;
  if (saved.first < 0 || saved.first > limit || saved.first % kPageTokens != 0) {
    fail(ErrorCode::invalid_argument, "the first cached token is %lld; it must be a multiple of %lld from 0 to %lld",
         ll(saved.first), ll(kPageTokens), ll(limit));
  }
  for (const int64_t length : {saved.rope_length, saved.prompt_length}) {
    const int64_t original = config.original_context;
    const int64_t most = config.is_dynamic() ? kMaxPositions : original + 1;
    if (length == 0 || (original > 0 && length > original && length <= most)) continue;
    fail(ErrorCode::invalid_argument, "the context length that selects RoPE is %lld, which this model does not have",
         ll(length));
  }
  session->cache_.prepare_from(saved.first, num_tokens);
  session->tokens_ = saved.tokens;
  session->rope_length_ = saved.rope_length;
  session->prompt_length_ = saved.prompt_length;
  session->is_restored_ = num_tokens > 0;
  session->change();
  session->kv_len_ = num_tokens;
  return session;
}

}  // namespace diffqkv
