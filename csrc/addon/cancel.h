// NativeCancel: ends a running or queued call early.
#pragma once

#include "addon/addon.h"
#include "addon/executor.h"

namespace diffqkv::addon {

class CancelObject final : public Napi::ObjectWrap<CancelObject> {
 public:
  static constexpr ClassId kClass = kCancel;
  static constexpr const char* kName = "cancel handle";
  struct State {};
  static Napi::Function define(Napi::Env env);
  explicit CancelObject(const Napi::CallbackInfo& info);

  // Makes `job` end with ABORT_ERR when `cancel`, a CancelObject or undefined, is canceled.
  static void attach(const Napi::Value& cancel, Job& job, const std::shared_ptr<Executor>& executor);
  std::shared_ptr<const CancelFlag> flag() const { return flag_; }

 private:
  Napi::Value cancel(const Napi::CallbackInfo& info);

  std::shared_ptr<CancelFlag> flag_ = std::make_shared<CancelFlag>(false);
  std::weak_ptr<Executor> executor_;  // of the last job
};

}  // namespace diffqkv::addon
