// The module, NativeAddon in lib/addon.ts. Environments share only its code.
#include "addon/addon.h"

#include <memory>
#include <thread>

#include "addon/cancel.h"
#include "addon/device.h"
#include "addon/executor.h"
#include "addon/model.h"
#include "addon/session.h"
#include "addon/tensor.h"
#include "backend/devices.h"

namespace diffqkv::addon {

AddonData& addon_data(Napi::Env env) { return *env.GetInstanceData<AddonData>(); }

namespace {

constexpr size_t kWatchdogBytes = size_t{4} << 20;

template <typename Class>
void define_class(Napi::Env env) {
  addon_data(env).constructors[Class::kClass] = Napi::Persistent(Class::define(env));
}

Napi::Value list_devices(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    Napi::Array result = Napi::Array::New(info.Env());
    uint32_t count = 0;
    for (const DeviceInfo& device : diffqkv::list_devices()) result.Set(count++, js_device_info(info.Env(), device));
    return result;
  });
}

// Node runs a script of node:vm with a time limit by starting a thread, and aborts the process if
// it cannot. So a caller asks first whether a thread and its memory are available.
Napi::Value demand_thread(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    try {
      const std::unique_ptr<void, void (*)(void*)> memory(::operator new(kWatchdogBytes),
                                                          [](void* p) { ::operator delete(p); });
      std::thread([] {}).join();
    } catch (const std::exception& error) {
      fail(ErrorCode::out_of_memory,
           "cannot start the thread that limits the time of a checkpoint's template or pattern: %s", error.what());
    }
    return info.Env().Undefined();
  });
}

Napi::Value create_cancel(const Napi::CallbackInfo& info) { return construct<CancelObject>(info.Env(), {}); }

// process.exit() calls exit() without the cleanup hooks of the environment. Static objects of
// libraries would then be destroyed while executor threads use them. So the threads are stopped in
// the 'exit' event of the process. Installed once per JS thread, for all its environments.
void stop_at_exit(Napi::Env env) {
  thread_local bool installed = false;
  if (installed) return;
  Napi::Value process = env.Global().Get("process");
  if (!process.IsObject() || !process.As<Napi::Object>().Get("once").IsFunction()) return;
  auto stop = [](const Napi::CallbackInfo&) { Executor::stop_all_of_this_thread(); };
  process.As<Napi::Object>().Get("once").As<Napi::Function>().Call(
      process, {Napi::String::New(env, "exit"), Napi::Function::New(env, stop)});
  installed = true;
}

}  // namespace

Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new AddonData);
  define_class<DeviceObject>(env);
  define_class<TensorObject>(env);
  define_class<EventObject>(env);
  define_class<ModelObject>(env);
  define_class<SessionObject>(env);
  define_class<CancelObject>(env);
  stop_at_exit(env);
  restore_environment();

  Napi::Object build = Napi::Object::New(env);
  build["linear"] = DIFFQKV_LINEAR;
  build["cuda"] = Napi::Boolean::New(env, DIFFQKV_CUDA);
  build["version"] = DIFFQKV_VERSION;
  exports["build"] = build;
  exports["listDevices"] = Napi::Function::New<list_devices>(env, "listDevices");
  exports["openDevice"] = Napi::Function::New<DeviceObject::open>(env, "openDevice");
  exports["parseConfig"] = Napi::Function::New<ModelObject::parse_config>(env, "parseConfig");
  exports["demandThread"] = Napi::Function::New<demand_thread>(env, "demandThread");
  exports["createCancel"] = Napi::Function::New<create_cancel>(env, "createCancel");
  return exports;
}

}  // namespace diffqkv::addon
