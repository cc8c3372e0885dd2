// NativeSession: one sequence of a model.
#pragma once

#include <memory>
#include <vector>

#include "addon/addon.h"
#include "addon/resource.h"
#include "model/session.h"

namespace diffqkv::addon {

std::vector<int32_t> tokens_argument(const Napi::Value& value);  // an Int32Array, not empty, copied

class SessionObject final : public Napi::ObjectWrap<SessionObject>, public Resource {
 public:
  static constexpr ClassId kClass = kSession;
  static constexpr const char* kName = "session";
  struct State {
    std::shared_ptr<DeviceContext> device;
    Resource* parent;           // the model,
    Napi::Object model_object;  // and its JS object
    std::shared_ptr<Session> session;
  };
  static Napi::Function define(Napi::Env env);
  explicit SessionObject(const Napi::CallbackInfo& info);
  ~SessionObject() override { finalize(Env()); }

  // model.createSession(options)
  static Napi::Value create(const Napi::CallbackInfo& info, const std::shared_ptr<DeviceContext>& device,
                            Napi::Object model_object, const std::shared_ptr<Model>& model);
  std::shared_ptr<Session> session(Napi::Env env);  // ERR_DISPOSED

 private:
  std::shared_ptr<void> take() override { return std::move(session_); }
  // Every method's start: ERR_DISPOSED, and the cache as large as it is now reported to the garbage collector.
  void check(Napi::Env env);

  Napi::Value kv_len(const Napi::CallbackInfo& info);
  Napi::Value max_kv_len(const Napi::CallbackInfo& info);
  Napi::Value k_cache_bytes(const Napi::CallbackInfo& info);
  Napi::Value v_cache_bytes(const Napi::CallbackInfo& info);
  Napi::Value forward(const Napi::CallbackInfo& info);
  Napi::Value truncate(const Napi::CallbackInfo& info);
  Napi::Value fork(const Napi::CallbackInfo& info);
  Napi::Value dispose_js(const Napi::CallbackInfo& info);

  std::shared_ptr<Session> session_;
  Napi::ObjectReference model_object_;  // the parent, which a fork needs
};

}  // namespace diffqkv::addon
