#include "addon/session.h"

#include "addon/cancel.h"
#include "addon/model.h"

namespace diffqkv::addon {
namespace {

constexpr int64_t kMaxTokens = INT32_MAX;

int64_t cache_bytes(const Session& session) {
  return static_cast<int64_t>(session.k_cache_bytes() + session.v_cache_bytes());
}

// The JS object of a session that a job has made; `model_object` may have been disposed meanwhile.
void resolve_with_session(Job& job, const std::shared_ptr<DeviceContext>& device, Napi::Object model_object,
                          std::shared_ptr<std::shared_ptr<Session>> session) {
  job.keep = Napi::Persistent(model_object);
  job.resolve = [device = std::weak_ptr(device), session](Job& job) -> Napi::Value {
    auto& parent = unwrap<ModelObject>(job.keep.Value(), "model");
    auto context = device.lock();
    if (parent.disposed() || !context)
      fail(ErrorCode::disposed, "the model was disposed while a session was made on it");
    // Not moved: where this fails, the session goes with the job, on the executor's thread.
    return construct<SessionObject>(job.env, {context, &parent, job.keep.Value(), *session});
  };
}

SessionOptions session_options(const Napi::Value& value) {
  SessionOptions options;
  if (absent(value)) return options;
  if (!value.IsObject()) fail(ErrorCode::invalid_argument, "session options must be an object");
  if (Napi::Value v = property(value, "maxKvLen"); !absent(v))
    options.max_kv_len = integer(v, "maxKvLen", 1, kMaxTokens);
  if (Napi::Value v = property(value, "kType"); !absent(v))
    options.has_k_type = true, options.k_type = dtype(v, "kType");
  if (Napi::Value v = property(value, "vType"); !absent(v))
    options.has_v_type = true, options.v_type = dtype(v, "vType");
  if (Napi::Value v = property(value, "selectiveTopK"); !absent(v))
    options.selective_top_k = integer(v, "selectiveV.topK", 0, kMaxTokens);
  if (Napi::Value v = property(value, "renormalize"); !absent(v))
    options.renormalize = boolean(v, "selectiveV.renormalize");
  return options;
}

}  // namespace

std::vector<int32_t> tokens_argument(const Napi::Value& value) {
  ArrayView view = array_view(value, "tokens");
  if (view.type != napi_int32_array) fail(ErrorCode::invalid_argument, "tokens must be an Int32Array");
  if (view.length == 0) fail(ErrorCode::invalid_argument, "tokens is empty; give at least one token");
  const auto* data = static_cast<const int32_t*>(view.data);
  return {data, data + view.length};
}

Napi::Function SessionObject::define(Napi::Env env) {
  return DefineClass(
      env, "NativeSession",
      {InstanceAccessor<&SessionObject::kv_len>("kvLen"), InstanceAccessor<&SessionObject::max_kv_len>("maxKvLen"),
       InstanceAccessor<&SessionObject::k_cache_bytes>("kCacheBytes"),
       InstanceAccessor<&SessionObject::v_cache_bytes>("vCacheBytes"),
       InstanceMethod<&SessionObject::forward>("forward"), InstanceMethod<&SessionObject::truncate>("truncate"),
       InstanceMethod<&SessionObject::fork>("fork"), InstanceMethod<&SessionObject::dispose_js>("dispose")});
}

SessionObject::SessionObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  auto state = take_pending_state<State>(info.Env());
  session_ = std::move(state.session);
  model_object_ = Napi::Persistent(state.model_object);
  own(info.Env(), kName, std::move(state.device), state.parent, cache_bytes(*session_));
}

void SessionObject::check(Napi::Env env) {
  check_usable();
  set_external_bytes(env, cache_bytes(*session_));
}

std::shared_ptr<Session> SessionObject::session(Napi::Env env) {
  check(env);
  return session_;
}

Napi::Value SessionObject::create(const Napi::CallbackInfo& info, const std::shared_ptr<DeviceContext>& device,
                                  Napi::Object model_object, const std::shared_ptr<Model>& model) {
  SessionOptions options = session_options(info[0]);
  auto job = std::make_unique<Job>(info.Env());
  auto session = std::make_shared<std::shared_ptr<Session>>();
  job->run = [model, options, session](Job&) { *session = std::make_shared<Session>(model, options); };
  resolve_with_session(*job, device, model_object, session);
  return device->executor->submit(std::move(job));
}

Napi::Value SessionObject::forward(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check(info.Env());
    auto tokens = std::make_shared<std::vector<int32_t>>(tokens_argument(info[0]));
    ArrayView view = array_view(info[1], "logits");
    auto vocab_size = static_cast<size_t>(session_->model()->config().vocab_size);
    if (view.type != napi_float32_array || view.length != vocab_size) {
      fail(ErrorCode::invalid_argument, "logits must be a Float32Array of vocabSize = %zu elements", vocab_size);
    }
    auto job = std::make_unique<Job>(info.Env());
    CancelObject::attach(info[2], *job, device_->executor);
    auto logits = std::make_shared<std::vector<float>>();
    job->run = [session = session_, tokens, logits, vocab_size](Job& job) {
      logits->resize(vocab_size);
      session->forward(tokens->data(), static_cast<int64_t>(tokens->size()), logits->data(), job.cancel.get());
    };
    job->keep = Napi::Persistent(info[1].As<Napi::Object>());
    job->resolve = [logits](Job& job) -> Napi::Value {
      fill_array(job.keep.Value(), logits->data(), logits->size());
      return job.env.Undefined();
    };
    return device_->executor->submit(std::move(job));
  });
}

Napi::Value SessionObject::truncate(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check(info.Env());
    int64_t length = integer(info[0], "kvLen", 0, kMaxTokens);
    auto job = std::make_unique<Job>(info.Env());
    job->run = [session = session_, length](Job&) { session->truncate(length); };
    return device_->executor->submit(std::move(job));
  });
}

Napi::Value SessionObject::fork(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check(info.Env());
    auto job = std::make_unique<Job>(info.Env());
    auto copy = std::make_shared<std::shared_ptr<Session>>();
    job->run = [session = session_, copy](Job&) { *copy = session->fork(); };
    resolve_with_session(*job, device_, model_object_.Value(), copy);
    return device_->executor->submit(std::move(job));
  });
}

#define DIFFQKV_GETTER(method, value)                                               \
  Napi::Value SessionObject::method(const Napi::CallbackInfo& info) {               \
    return guarded(info.Env(), [&]() -> Napi::Value {                               \
      check(info.Env());                                                            \
      return Napi::Number::New(info.Env(), static_cast<double>(session_->value())); \
    });                                                                             \
  }
DIFFQKV_GETTER(kv_len, kv_len)
DIFFQKV_GETTER(max_kv_len, max_kv_len)
DIFFQKV_GETTER(k_cache_bytes, k_cache_bytes)
DIFFQKV_GETTER(v_cache_bytes, v_cache_bytes)
#undef DIFFQKV_GETTER

Napi::Value SessionObject::dispose_js(const Napi::CallbackInfo& info) {
  dispose(info.Env());
  return info.Env().Undefined();
}

}  // namespace diffqkv::addon
