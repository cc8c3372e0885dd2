// NativeSession: one sequence of a model.
#pragma once

#include <memory>

#include "addon/addon.h"
#include "addon/resource.h"
#include "model/session.h"

namespace diffqkv::addon {

class SessionObject final : public Napi::ObjectWrap<SessionObject>, public Resource {
 public:
  static constexpr ClassId kClass = kSession;
  static constexpr const char* kName = "session";
  struct State {
    std::shared_ptr<DeviceContext> device;
    Resource* parent;           // the model
    Napi::Object model_object;  // the JS object of the model
    std::shared_ptr<Session> session;
  };
  static Napi::Function define(Napi::Env env);
  explicit SessionObject(const Napi::CallbackInfo& info);
  ~SessionObject() override { finalize(Env()); }

  // model.createSession({ maxKvLen, kType, vType, selectiveV })
  static Napi::Value create(const Napi::CallbackInfo& info, const std::shared_ptr<DeviceContext>& device,
                            Napi::Object model_object, const std::shared_ptr<Model>& model);
  // model.restoreSession({ maxKvLen, kType, vType, selectiveV, tokens, ropeLength, promptLength, first })
  static Napi::Value restore(const Napi::CallbackInfo& info, const std::shared_ptr<DeviceContext>& device,
                             Napi::Object model_object, const std::shared_ptr<Model>& model);
  std::shared_ptr<Session> session(Napi::Env env);  // throws ERR_DISPOSED

 private:
  std::shared_ptr<void> detach_memory() override { return std::move(session_); }
  // Every method begins with this call. Throws ERR_DISPOSED, and reports the current size of the
  // cache to the garbage collector.
  void check(Napi::Env env);

  // A getter for a method of Session that returns a number.
  template <auto value>
  Napi::Value number(const Napi::CallbackInfo& info);
  Napi::Value tokens(const Napi::CallbackInfo& info);
  Napi::Value truncate(const Napi::CallbackInfo& info);
  // Truncates to the longest common prefix with `tokens` without its last one. Resolves to its length.
  Napi::Value keep_prefix(const Napi::CallbackInfo& info);
  Napi::Value fork(const Napi::CallbackInfo& info);
  // In saved_session.cc.
  Napi::Value saved(const Napi::CallbackInfo& info);
  Napi::Value read_pages(const Napi::CallbackInfo& info);
  Napi::Value write_pages(const Napi::CallbackInfo& info);
  Napi::Value dispose_js(const Napi::CallbackInfo& info);

  std::shared_ptr<Session> session_;
  Napi::ObjectReference model_object_;  // the parent of a fork
};

}  // namespace diffqkv::addon
