// NativeDevice: an open device and its executor thread. Its kernel methods are in kernels.cc.
#pragma once

#include <memory>
#include <vector>

#include "addon/addon.h"
#include "addon/resource.h"
#include "backend/cpu_ceilings.h"

namespace diffqkv::addon {

// NativeEvent: a time stamp in the device's queue.
class EventObject final : public Napi::ObjectWrap<EventObject>, public Resource {
 public:
  static constexpr ClassId kClass = kEvent;
  static constexpr const char* kName = "event";
  using Slot = std::shared_ptr<std::unique_ptr<Event>>;
  struct State {
    std::shared_ptr<DeviceContext> device;
    Resource* parent;
    Slot slot;
  };
  static Napi::Function define(Napi::Env env);
  explicit EventObject(const Napi::CallbackInfo& info);
  ~EventObject() override { finalize(Env()); }
  Slot slot(const DeviceContext& device, const char* name) const;

 private:
  std::shared_ptr<void> detach_memory() override { return std::move(slot_); }
  Slot slot_;
};

class DeviceObject final : public Napi::ObjectWrap<DeviceObject>, public Resource {
 public:
  static constexpr ClassId kClass = kDevice;
  static constexpr const char* kName = "device";
  using State = std::shared_ptr<DeviceContext>;
  static Napi::Function define(Napi::Env env);
  explicit DeviceObject(const Napi::CallbackInfo& info);
  ~DeviceObject() override { finalize(Env()); }

  static Napi::Value open(const Napi::CallbackInfo& info);  // addon.openDevice({ id })

 private:
  // The context is freed by its last holder. Only the CPU has ceilings.
  std::shared_ptr<void> detach_memory() override { return std::move(ceilings_); }
  // Queues `run` and returns its promise.
  Napi::Value submit(const Napi::CallbackInfo& info, std::function<void(Job&)> run);

  Napi::Value info_js(const Napi::CallbackInfo& info);
  Napi::Value tensor(const Napi::CallbackInfo& info);
  Napi::Value synchronize(const Napi::CallbackInfo& info);
  Napi::Value record_event(const Napi::CallbackInfo& info);
  Napi::Value elapsed_ms(const Napi::CallbackInfo& info);
  Napi::Value measure_ceiling(const Napi::CallbackInfo& info);  // ceilings.cc
  Napi::Value load_model(const Napi::CallbackInfo& info);
  Napi::Value random_model(const Napi::CallbackInfo& info);
  Napi::Value dispose_js(const Napi::CallbackInfo& info);

  // The operators (kernels.cc): one property each, whose calls all reach run_kernel.
  static std::vector<Napi::ClassPropertyDescriptor<DeviceObject>> kernel_methods();
  Napi::Value run_kernel(const Napi::CallbackInfo& info);

  std::shared_ptr<CpuCeilings> ceilings_;  // null until the first measurement
};

}  // namespace diffqkv::addon
