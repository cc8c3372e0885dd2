#include "addon/session.h"

#include <algorithm>
#include <vector>

#include "addon/fields.h"
#include "addon/model.h"

namespace diffqkv::addon {
namespace {

constexpr int64_t kMaxTokens = INT32_MAX;

int64_t cache_bytes(const Session& session) {
  return static_cast<int64_t>(session.k_cache_bytes() + session.v_cache_bytes());
}

// Makes the job resolve to the JS object of the session that it has created. Rejects if the model
// was disposed meanwhile.
void resolve_with_session(Job& job, const std::shared_ptr<DeviceContext>& device, Napi::Object model_object,
                          std::shared_ptr<std::shared_ptr<Session>> session) {
  job.keep = Napi::Persistent(model_object);
  job.resolve = [device = std::weak_ptr(device), session](Job& job) -> Napi::Value {
    auto& parent = unwrap<ModelObject>(job.keep.Value(), "model");
    auto context = device.lock();
    if (parent.disposed() || !context) {
      fail(ErrorCode::disposed, "the model was disposed while a session was created on it");
    }
    // Not moved: if this fails, the session is freed with the job, on the executor's thread.
    return construct<SessionObject>(job.env, {context, &parent, job.keep.Value(), *session});
  };
}

SessionOptions session_options(const Fields& fields) {
  SessionOptions options;
  options.max_kv_len = fields.optional_integer("maxKvLen", 1, kMaxTokens);
  options.k_type = fields.optional_dtype("kType");
  options.v_type = fields.optional_dtype("vType");
  if (const auto selective = fields.optional_object("selectiveV", "selectiveV.")) {
    options.selective_top_k = selective->integer("topK", 1, kMaxTokens);
    options.renormalize = selective->boolean("renormalize");
  }
  return options;
}

}  // namespace

Napi::Function SessionObject::define(Napi::Env env) {
  return DefineClass(
      env, "NativeSession",
      {InstanceAccessor<&SessionObject::number<&Session::kv_len>>("kvLen"),
       InstanceAccessor<&SessionObject::number<&Session::max_kv_len>>("maxKvLen"),
       InstanceAccessor<&SessionObject::number<&Session::k_cache_bytes>>("kCacheBytes"),
       InstanceAccessor<&SessionObject::number<&Session::v_cache_bytes>>("vCacheBytes"),
       InstanceMethod<&SessionObject::tokens>("tokens"), InstanceMethod<&SessionObject::truncate>("truncate"),
       InstanceMethod<&SessionObject::keep_prefix>("keepPrefix"), InstanceMethod<&SessionObject::fork>("fork"),
       InstanceMethod<&SessionObject::saved>("saved"), InstanceMethod<&SessionObject::read_pages>("readPages"),
       InstanceMethod<&SessionObject::write_pages>("writePages"),
       InstanceMethod<&SessionObject::dispose_js>("dispose")});
}

SessionObject::SessionObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  auto state = consume_pending_state<State>(info.Env());
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
  SessionOptions options = session_options(Fields(info));
  auto job = std::make_unique<Job>(info.Env());
  auto session = std::make_shared<std::shared_ptr<Session>>();
  job->run = [model, options, session](Job&) { *session = std::make_shared<Session>(model, options); };
  resolve_with_session(*job, device, model_object, session);
  return device->executor->submit(std::move(job));
}

Napi::Value SessionObject::restore(const Napi::CallbackInfo& info, const std::shared_ptr<DeviceContext>& device,
                                   Napi::Object model_object, const std::shared_ptr<Model>& model) {
  const Fields fields(info);
  SavedSession saved;
  saved.options = session_options(fields);
  if (fields.array("tokens").length > 0) saved.tokens = fields.tokens("tokens");
  saved.rope_length = fields.integer("ropeLength", 0, kMaxTokens);
  saved.prompt_length = fields.integer("promptLength", 0, kMaxTokens);
  saved.first = fields.integer("first", 0, kMaxTokens);
  auto job = std::make_unique<Job>(info.Env());
  auto session = std::make_shared<std::shared_ptr<Session>>();
  job->run = [model, saved = std::move(saved), session](Job&) { *session = Session::restore(model, saved); };
  resolve_with_session(*job, device, model_object, session);
  return device->executor->submit(std::move(job));
}

Napi::Value SessionObject::truncate(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check(info.Env());
    int64_t length = Fields(info).integer("kvLen", 0, kMaxTokens);
    auto job = std::make_unique<Job>(info.Env());
    job->run = [session = session_, length](Job&) { session->truncate(length); };
    return device_->executor->submit(std::move(job));
  });
}

Napi::Value SessionObject::tokens(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check(info.Env());
    auto job = std::make_unique<Job>(info.Env());
    auto copy = std::make_shared<std::vector<int32_t>>();
    job->run = [session = session_, copy](Job&) { *copy = session->tokens(); };
    job->resolve = [copy](Job& job) -> Napi::Value {
      Napi::Int32Array tokens = Napi::Int32Array::New(job.env, copy->size());
      std::copy(copy->begin(), copy->end(), tokens.Data());
      return tokens;
    };
    return device_->executor->submit(std::move(job));
  });
}

Napi::Value SessionObject::keep_prefix(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check(info.Env());
    auto tokens = std::make_shared<const std::vector<int32_t>>(Fields(info).tokens("tokens"));
    auto kept = std::make_shared<int64_t>(0);
    auto job = std::make_unique<Job>(info.Env());
    job->run = [session = session_, tokens, kept](Job&) {
      const std::vector<int32_t>& cached = session->tokens();
      *kept = std::mismatch(cached.begin(), cached.end(), tokens->begin(), tokens->end() - 1).first - cached.begin();
      session->truncate(*kept);
    };
    job->resolve = [kept](Job& job) -> Napi::Value { return Napi::Number::New(job.env, static_cast<double>(*kept)); };
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

template <auto value>
Napi::Value SessionObject::number(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check(info.Env());
    return Napi::Number::New(info.Env(), static_cast<double>(((*session_).*value)()));
  });
}

Napi::Value SessionObject::dispose_js(const Napi::CallbackInfo& info) {
  dispose(info.Env());
  return info.Env().Undefined();
}

}  // namespace diffqkv::addon
