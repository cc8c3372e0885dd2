// NativeModel: the weights of one model on one device.
#pragma once

#include <memory>

#include "addon/addon.h"
#include "addon/resource.h"
#include "model/model.h"

namespace diffqkv::addon {

class ModelObject final : public Napi::ObjectWrap<ModelObject>, public Resource {
 public:
  static constexpr ClassId kClass = kModel;
  static constexpr const char* kName = "model";
  struct State {
    std::shared_ptr<DeviceContext> device;
    Resource* parent;
    std::shared_ptr<Model> model;
  };
  static Napi::Function define(Napi::Env env);
  explicit ModelObject(const Napi::CallbackInfo& info);
  ~ModelObject() override { finalize(Env()); }

  // device.loadModel({ directory, dtype, kvCacheBytes, prefixCacheBytes, onProgress, cancel })
  static Napi::Value load(const Napi::CallbackInfo& info, const std::shared_ptr<DeviceContext>& device,
                          Napi::Object device_object);
  // device.randomModel({ config, dtype, kvCacheBytes, prefixCacheBytes, seed }); config is JSON
  static Napi::Value random(const Napi::CallbackInfo& info, const std::shared_ptr<DeviceContext>& device,
                            Napi::Object device_object);
  // parseConfig({ directory, config, generationConfig }): the contents of the files
  static Napi::Value parse_config(const Napi::CallbackInfo& info);

 private:
  std::shared_ptr<void> detach_memory() override { return std::move(model_); }
  Napi::Value config(const Napi::CallbackInfo& info);
  Napi::Value dtype_js(const Napi::CallbackInfo& info);
  Napi::Value weight_type(const Napi::CallbackInfo& info);
  Napi::Value num_parameters(const Napi::CallbackInfo& info);
  Napi::Value has_untied_lm_head(const Napi::CallbackInfo& info);
  Napi::Value weight_bytes(const Napi::CallbackInfo& info);
  Napi::Value kv_cache(const Napi::CallbackInfo& info);
  Napi::Value decode_graphs(const Napi::CallbackInfo& info);
  Napi::Value create_session(const Napi::CallbackInfo& info);
  Napi::Value step(const Napi::CallbackInfo& info);  // in step.cc
  // In saved_session.cc.
  Napi::Value fingerprint(const Napi::CallbackInfo& info);
  Napi::Value page_layout(const Napi::CallbackInfo& info);
  Napi::Value restore_session(const Napi::CallbackInfo& info);
  Napi::Value dispose_js(const Napi::CallbackInfo& info);

  std::shared_ptr<Model> model_;
};

}  // namespace diffqkv::addon
