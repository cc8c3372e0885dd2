#include "addon/device.h"

#include "addon/fields.h"
#include "addon/model.h"
#include "addon/tensor.h"
#include "backend/devices.h"

namespace diffqkv::addon {
namespace {

constexpr int64_t kMaxThreads = 1024;

}  // namespace

Napi::Function EventObject::define(Napi::Env env) { return DefineClass(env, "NativeEvent", {}); }

EventObject::EventObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  auto state = consume_pending_state<State>(info.Env());
  slot_ = std::move(state.slot);
  own(info.Env(), kName, std::move(state.device), state.parent, 0);
}

EventObject::Slot EventObject::slot(const DeviceContext& device, const char* name) const {
  check_usable();
  if (device_.get() != &device) fail(ErrorCode::invalid_argument, "%s was recorded on another device", name);
  return slot_;
}

Napi::Function DeviceObject::define(Napi::Env env) {
  std::vector<PropertyDescriptor> properties = kernel_methods();
  for (const PropertyDescriptor& property :
       {InstanceAccessor<&DeviceObject::info_js>("info"), InstanceMethod<&DeviceObject::tensor>("tensor"),
        InstanceMethod<&DeviceObject::synchronize>("synchronize"),
        InstanceMethod<&DeviceObject::record_event>("recordEvent"),
        InstanceMethod<&DeviceObject::elapsed_ms>("elapsedMs"),
        InstanceMethod<&DeviceObject::measure_ceiling>("measureCeiling"),
        InstanceMethod<&DeviceObject::load_model>("loadModel"),
        InstanceMethod<&DeviceObject::random_model>("randomModel"),
        InstanceMethod<&DeviceObject::dispose_js>("dispose")}) {
    properties.push_back(property);
  }
  return DefineClass(env, "NativeDevice", properties);
}

DeviceObject::DeviceObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  own(info.Env(), kName, consume_pending_state<State>(info.Env()), nullptr, 0);
}

Napi::Value DeviceObject::open(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Fields fields(info);
    std::string id = fields.text("id");
    DeviceOptions options;
    options.threads = static_cast<int>(fields.optional_integer("threads", 1, kMaxThreads).value_or(0));
    if (options.threads > 0 && id != "cpu") {
      fail(ErrorCode::invalid_argument, "threads is %d, but the device is '%s'; only 'cpu' has threads",
           options.threads, id.c_str());
    }
    auto device = std::make_shared<DeviceContext>();
    device->executor = Executor::start(info.Env());
    auto job = std::make_unique<Job>(info.Env());
    // The job has its own slot, because the context belongs to the JS thread.
    auto backend = std::make_shared<std::shared_ptr<Backend>>();
    job->run = [id, options, backend](Job&) { *backend = open_device(id, options); };
    job->resolve = [device, backend](Job& job) -> Napi::Value {
      device->backend = std::move(*backend);
      device->info = device->backend->info();
      return construct<DeviceObject>(job.env, device);
    };
    return device->executor->submit(std::move(job));
  });
}

Napi::Value DeviceObject::submit(const Napi::CallbackInfo& info, std::function<void(Job&)> run) {
  auto job = std::make_unique<Job>(info.Env());
  job->run = std::move(run);
  return device_->executor->submit(std::move(job));
}

Napi::Value DeviceObject::info_js(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value { return js_device_info(info.Env(), device_->info); });
}

Napi::Value DeviceObject::tensor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    return TensorObject::create(info, device_, *this);
  });
}

Napi::Value DeviceObject::synchronize(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    check_usable();
    return submit(info, [backend = device_->backend](Job&) { backend->synchronize(); });
  });
}

Napi::Value DeviceObject::record_event(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    auto slot = std::make_shared<std::unique_ptr<Event>>();
    auto job = std::make_unique<Job>(info.Env(), Job::without_promise);
    job->run = [backend = device_->backend, slot](Job&) { *slot = backend->record_event(); };
    device_->executor->submit(std::move(job));
    return construct<EventObject>(info.Env(), {device_, this, slot});
  });
}

Napi::Value DeviceObject::elapsed_ms(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    const Fields fields(info);
    auto start = fields.instance<EventObject>("start").slot(*device_, "start");
    auto stop = fields.instance<EventObject>("stop").slot(*device_, "stop");
    auto job = std::make_unique<Job>(info.Env());
    auto result = std::make_shared<double>(0);
    job->run = [backend = device_->backend, start, stop, result](Job&) {
      if (!*start || !*stop) {
        backend->synchronize();  // throws the cause if the device is lost
        fail(ErrorCode::out_of_memory, "a time stamp could not be recorded");
      }
      *result = backend->elapsed_ms(**start, **stop);
    };
    job->resolve = [result](Job& job) -> Napi::Value { return Napi::Number::New(job.env, *result); };
    return device_->executor->submit(std::move(job));
  });
}

Napi::Value DeviceObject::load_model(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    return ModelObject::load(info, device_, Value());
  });
}

Napi::Value DeviceObject::random_model(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    return ModelObject::random(info, device_, Value());
  });
}

Napi::Value DeviceObject::dispose_js(const Napi::CallbackInfo& info) {
  if (!disposed()) {
    std::shared_ptr<DeviceContext> device = device_;
    dispose(info.Env());
    device->release_backend();
    device->executor->close();  // after what is queued
  }
  return info.Env().Undefined();
}

}  // namespace diffqkv::addon
