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
  }
  item.wants_logits = fields.has("logits");
  if (item.wants_logits) {
    const ArrayView view = fields.array("logits");
    const auto vocab_size = static_cast<size_t>(item.session->model()->config().vocab_size);
    if (view.type != napi_float32_array || view.length != vocab_size) {
      fail(ErrorCode::invalid_argument, "logits must be a Float32Array of vocabSize = %zu elements", vocab_size);
    }
  }
  if (fields.has("cancel")) item.cancel = fields.instance<CancelObject>("cancel").flag();
  return item;
}

Napi::Object js_result(Napi::Env env, const BatchItem& item) {
  Napi::Object result = Napi::Object::New(env);
  result.Set("consumed", Napi::Number::New(env, static_cast<double>(item.consumed)));
  if (item.token) result.Set("token", Napi::Number::New(env, *item.token));
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
