// model.step(turns): one step of continuous batching.
#pragma once

#include <memory>

#include "addon/addon.h"
#include "model/model.h"

namespace diffqkv::addon {

struct DeviceContext;

Napi::Value submit_step(const Napi::CallbackInfo& info, const std::shared_ptr<DeviceContext>& device,
                        const std::shared_ptr<Model>& model);

}  // namespace diffqkv::addon
