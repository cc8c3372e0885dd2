// model.step({ items, cancel }): one batch step.

#include <algorithm>
#include <limits>
#include <set>

#include "addon/cancel.h"
#include "addon/fields.h"
#include "addon/model.h"
#include "addon/session.h"
#include "model/batch.h"

namespace diffqkv::addon {
namespace {

SamplingOptions sampling_options(const Fields& fields) {
  SamplingOptions options;
  options.temperature = static_cast<float>(fields.number("temperature", 0, 1e6));
  options.top_k = fields.integer("topK", 0, INT32_MAX);
  // A topP that float rounds to 0 keeps the most likely token, like the smallest float above 0.
  options.top_p = std::max(static_cast<float>(fields.number("topP", 0, 1)), std::numeric_limits<float>::min());
  options.min_p = static_cast<float>(fields.number("minP", 0, 1));
  options.repetition_penalty = static_cast<float>(fields.number("repetitionPenalty", 1e-6, 1e6));
  options.seed = fields.seed64("seed");
  return options;
}

std::vector<uint32_t> allowed_tokens(const Fields& fields, int64_t vocab_size) {
  const ArrayView view = fields.array("allowed");
  const auto num_words = static_cast<size_t>((vocab_size + 31) / 32);
  if (view.type != napi_uint32_array || view.length != num_words) {
    fail(ErrorCode::invalid_argument, "allowed must be a Uint32Array of ceil(vocabSize / 32) = %zu elements",
         num_words);
  }
  const auto* words = static_cast<const uint32_t*>(view.data);
  return {words, words + num_words};
}

std::vector<LogitBias> logit_biases(const Fields& fields, int64_t vocab_size) {
  const ArrayView tokens = fields.array("tokens");
  const ArrayView values = fields.array("values");
  if (tokens.type != napi_int32_array || values.type != napi_float32_array || tokens.length != values.length) {
    fail(ErrorCode::invalid_argument,
         "biases.tokens must be an Int32Array and biases.values a Float32Array of the same length");
  }
  std::vector<LogitBias> biases(tokens.length);
  int64_t lowest = 0;
  for (size_t i = 0; i < biases.size(); ++i) {
    biases[i] = {static_cast<const int32_t*>(tokens.data)[i], static_cast<const float*>(values.data)[i]};
    const auto& [token, bias] = biases[i];
    if (token < lowest || token >= vocab_size) {
      fail(ErrorCode::invalid_argument, "biases.tokens[%zu] is %d; it must be from %lld (above the one before) to %lld",
           i, token, static_cast<long long>(lowest), static_cast<long long>(vocab_size - 1));
    }
    lowest = int64_t{token} + 1;
    if (!(bias < std::numeric_limits<float>::infinity())) {
      fail(ErrorCode::invalid_argument, "biases.values[%zu] is %g; it must be finite, or -Infinity to forbid the token",
           i, bias);
    }
  }
  return biases;
}

Chunks chunks(const Fields& fields) {
  const std::string name = fields.text("chunks");
  if (name == "next") return Chunks::next;
  if (name == "all") return Chunks::all;
  fail(ErrorCode::invalid_argument, "chunks is \"%s\"; it must be \"next\" or \"all\"", name.c_str());
}

RowOutput row_output(const Fields& fields) {
  const std::string name = fields.text("rows");
  if (name == "logProbs") return RowOutput::log_probs;
  if (name == "lastHidden") return RowOutput::last_hidden;
  if (name == "allHidden") return RowOutput::all_hidden;
  fail(ErrorCode::invalid_argument, "rows is \"%s\"; it must be \"logProbs\", \"lastHidden\" or \"allHidden\"",
       name.c_str());
}

// After the tokens.
void read_rows(const Fields& fields, BatchItem& item) {
  item.rows = row_output(fields);
  if (item.sampling || item.wants_logits) {
    fail(ErrorCode::invalid_argument, "rows is given with sampling or logits; use two steps");
  }
  if (item.rows != RowOutput::log_probs) return;
  item.targets = fields.tokens("targets");
  if (item.targets.size() != item.tokens.size()) {
    fail(ErrorCode::invalid_argument, "targets has %zu tokens; it must have %zu, as many as tokens",
         item.targets.size(), item.tokens.size());
  }
}

BatchItem batch_item(const Fields& fields) {
  BatchItem item;
  item.session = fields.instance<SessionObject>("session").session(fields.env());
  item.tokens = fields.tokens("tokens");
  item.chunks = chunks(fields);
  if (const auto sampling = fields.optional_object("sampling")) {
    item.sampling = sampling_options(*sampling);
    item.draw = static_cast<uint64_t>(fields.integer("draw", 0, kMaxSafeInteger));
    item.continues = fields.boolean("continues");
    const int64_t vocab_size = item.session->model()->config().vocab_size;
    if (fields.has("allowed")) item.allowed = allowed_tokens(fields, vocab_size);
    if (const auto biases = fields.optional_object("biases", "biases.")) {
      item.biases = logit_biases(*biases, vocab_size);
    }
    item.num_top_log_probs = fields.optional_integer("logprobs", 0, LogProbsParams::kMaxTopN);
  }
  if (fields.has("verifies")) item.verifies = fields.boolean("verifies");
  if (fields.has("rowBiases")) {
    const Napi::Array rows = fields.list("rowBiases");
    for (uint32_t i = 0; i < rows.Length(); ++i) {
      const Fields row(rows.Get(i), "a row of rowBiases", "biases.");
      item.row_biases.push_back(logit_biases(row, item.session->model()->config().vocab_size));
    }
  }
  item.wants_logits = fields.has("logits");
  if (item.wants_logits) {
    const ArrayView view = fields.array("logits");
    const auto vocab_size = static_cast<size_t>(item.session->model()->config().vocab_size);
    if (view.type != napi_float32_array || view.length != vocab_size) {
      fail(ErrorCode::invalid_argument, "logits must be a Float32Array of vocabSize = %zu elements", vocab_size);
    }
  }
  if (fields.has("rows")) read_rows(fields, item);
  if (fields.has("cancel")) item.cancel = fields.instance<CancelObject>("cancel").flag();
  return item;
}

Napi::Object js_log_probs(Napi::Env env, const TokenLogProbs& log_probs) {
  const auto count = static_cast<uint32_t>(log_probs.top.size());
  Napi::Array tokens = Napi::Array::New(env, count);
  Napi::Array values = Napi::Array::New(env, count);
  for (uint32_t i = 0; i < count; ++i) {
    tokens.Set(i, Napi::Number::New(env, log_probs.top_tokens[i]));
    values.Set(i, Napi::Number::New(env, static_cast<double>(log_probs.top[i])));
  }
  Napi::Object result = Napi::Object::New(env);
  result.Set("logprob", Napi::Number::New(env, static_cast<double>(log_probs.log_prob)));
  result.Set("topTokens", tokens);
  result.Set("topLogprobs", values);
  return result;
}

Napi::Object js_result(Napi::Env env, const BatchItem& item) {
  Napi::Object result = Napi::Object::New(env);
  result.Set("consumed", Napi::Number::New(env, static_cast<double>(item.consumed)));
  if (item.token) result.Set("token", Napi::Number::New(env, *item.token));
  if (item.verifies && !item.error) {
    const auto count = static_cast<uint32_t>(item.drawn.size());
    Napi::Array drawn = Napi::Array::New(env, count);
    Napi::Array log_probs = Napi::Array::New(env, item.log_probs.size());
    for (uint32_t i = 0; i < count; ++i) drawn.Set(i, Napi::Number::New(env, item.drawn[i]));
    for (uint32_t i = 0; i < item.log_probs.size(); ++i) log_probs.Set(i, js_log_probs(env, item.log_probs[i]));
    result.Set("drawn", drawn);
    if (item.num_top_log_probs) result.Set("drawnLogprobs", log_probs);
  } else if (!item.log_probs.empty() && !item.error) {
    result.Set("logprobs", js_log_probs(env, item.log_probs[0]));
  }
  if (!item.row_values.empty() && !item.error) {
    Napi::Float64Array values = Napi::Float64Array::New(env, item.row_values.size());
    std::copy(item.row_values.begin(), item.row_values.end(), values.Data());
    result.Set("rows", values);
  }
  if (item.error) result.Set("error", Napi::Value(env, js_error(env, item.error)));
  return result;
}

}  // namespace

Napi::Value ModelObject::step(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Fields fields(info);
    const Napi::Array list = fields.list("items");
    auto items = std::make_shared<std::vector<BatchItem>>();
    items->reserve(list.Length());
    for (uint32_t i = 0; i < list.Length(); ++i) {
      items->push_back(batch_item(Fields(list.Get(i), "an item of a batch")));
    }
    // After the sessions: disposing of a model disposes of them, and the error must name the
    // session.
    check_usable();
    std::set<const Session*> sessions;
    for (const BatchItem& item : *items) {
      if (item.session->model() != model_) {
        fail(ErrorCode::invalid_argument, "session belongs to another model; use a session of this model");
      }
      if (!sessions.insert(item.session.get()).second) {
        fail(ErrorCode::invalid_argument, "a session is in two items of one batch; use one item");
      }
    }
    auto job = std::make_unique<Job>(info.Env());
    CancelObject::attach(fields.get("cancel"), *job, device_->executor);
    job->run = [model = model_, items](Job& job) {
      run_batch(*model, *items, *job.cancel);
      // Here, because a session must be freed on this thread and this may be its last reference.
      for (BatchItem& item : *items) item.session.reset();
    };
    job->keep = Napi::Persistent(list.As<Napi::Object>());
    job->resolve = [items](Job& job) -> Napi::Value {
      const auto list = job.keep.Value().As<Napi::Array>();
      Napi::Array results = Napi::Array::New(job.env, items->size());
      for (uint32_t i = 0; i < items->size(); ++i) {
        const BatchItem& item = (*items)[i];
        if (item.wants_logits && !item.error) {
          fill_array(property(list.Get(i), "logits"), item.logits.data(), item.logits.size());
        }
        results.Set(i, js_result(job.env, item));
      }
      return results;
    };
    return device_->executor->submit(std::move(job));
  });
}

}  // namespace diffqkv::addon
