#include "addon/cancel.h"

namespace diffqkv::addon {

Napi::Function CancelObject::define(Napi::Env env) {
  return DefineClass(env, "NativeCancel", {InstanceMethod<&CancelObject::cancel>("cancel")});
}

CancelObject::CancelObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  consume_pending_state<State>(info.Env());
}

void CancelObject::attach(const Napi::Value& cancel, Job& job, const std::shared_ptr<Executor>& executor) {
  if (absent(cancel)) return;
  auto& self = unwrap<CancelObject>(cancel, "cancel");
  job.cancel = self.flag_;
  self.executor_ = executor;
}

Napi::Value CancelObject::cancel(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    flag_->store(true);
    if (auto executor = executor_.lock()) executor->reject_queued(flag_.get());
    return info.Env().Undefined();
  });
}

}  // namespace diffqkv::addon
