#include "addon/device.h"

#include "addon/model.h"
#include "addon/tensor.h"
#include "backend/emulated_counters.h"

namespace diffqkv::addon {
namespace {

std::shared_ptr<Backend> make_backend(const std::string& id) {
  if (id == "cpu") return make_cpu_backend();
  if (id == "cuda") {
    std::string reason;
    for (const DeviceInfo& info : cuda_device_infos()) {
      if (info.usable) return make_cuda_backend(std::atoi(info.id.c_str() + 5));
      reason += (reason.empty() ? "" : "; ") + (info.id == "cuda" ? "" : info.id + ": ") + info.reason;
    }
    fail(ErrorCode::device_unavailable, "no usable CUDA device: %s", reason.c_str());
  }
  if (id.size() > 5 && id.size() <= 8 && id.compare(0, 5, "cuda:") == 0 &&
      id.find_first_not_of("0123456789", 5) == std::string::npos) {
    return make_cuda_backend(std::stoi(id.substr(5)));
  }
  if (id == "emulated") return make_emulated_backend();
  fail(ErrorCode::device_unavailable,
       "there is no device \"%s\"; ids are 'auto', 'cpu', 'cuda' and 'cuda:0', 'cuda:1' and so on (listDevices() has "
       "those of this machine)",
       id.c_str());
}

}  // namespace

Napi::Function EventObject::define(Napi::Env env) { return DefineClass(env, "NativeEvent", {}); }

EventObject::EventObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  auto state = take_pending_state<State>(info.Env());
  slot_ = std::move(state.slot);
  own(info.Env(), kName, std::move(state.device), state.parent, 0);
}

EventObject::Slot EventObject::slot(const DeviceContext& device, const char* name) const {
  check_usable();
  if (device_.get() != &device) fail(ErrorCode::invalid_argument, "%s was recorded on another device", name);
  return slot_;
}

Napi::Function DeviceObject::define(Napi::Env env) {
  return DefineClass(
      env, "NativeDevice",
      {InstanceAccessor<&DeviceObject::info_js>("info"), InstanceMethod<&DeviceObject::tensor>("tensor"),
       InstanceMethod<&DeviceObject::synchronize>("synchronize"),
       InstanceMethod<&DeviceObject::record_event>("recordEvent"),
       InstanceMethod<&DeviceObject::elapsed_ms>("elapsedMs"), InstanceMethod<&DeviceObject::counters>("counters"),
       InstanceMethod<&DeviceObject::reset_counters>("resetCounters"),
       InstanceMethod<&DeviceObject::measure_ceiling>("measureCeiling"),
       InstanceMethod<&DeviceObject::load_model>("loadModel"),
       InstanceMethod<&DeviceObject::random_model>("randomModel"), InstanceMethod<&DeviceObject::dispose_js>("dispose"),
       InstanceMethod<&DeviceObject::attention_prefill>("attentionPrefill"),
       InstanceMethod<&DeviceObject::attention_decode>("attentionDecode"),
       InstanceMethod<&DeviceObject::quantize>("quantize"), InstanceMethod<&DeviceObject::augmented_q>("augmentedQ"),
       InstanceMethod<&DeviceObject::matmul>("matmul"), InstanceMethod<&DeviceObject::rms_norm>("rmsNorm"),
       InstanceMethod<&DeviceObject::rope>("rope"), InstanceMethod<&DeviceObject::silu_mul>("siluMul"),
       InstanceMethod<&DeviceObject::embed>("embed")});
}

DeviceObject::DeviceObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  own(info.Env(), kName, take_pending_state<State>(info.Env()), nullptr, 0);
}

Napi::Value DeviceObject::open(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    std::string id = text(info[0], "device id");
    auto device = std::make_shared<DeviceContext>();
    device->executor = Executor::start(info.Env());
    auto job = std::make_unique<Job>(info.Env());
    // The job holds a slot of its own and not the context, which belongs to the JS thread.
    auto backend = std::make_shared<std::shared_ptr<Backend>>();
    job->run = [id, backend](Job&) { *backend = make_backend(id); };
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
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    return js_device_info(info.Env(), device_->info);
  });
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
    auto start = unwrap<EventObject>(info[0], "start").slot(*device_, "start");
    auto stop = unwrap<EventObject>(info[1], "stop").slot(*device_, "stop");
    auto job = std::make_unique<Job>(info.Env());
    auto result = std::make_shared<double>(0);
    job->run = [backend = device_->backend, start, stop, result](Job&) {
      if (!*start || !*stop) {
        backend->synchronize();  // where the device is lost, it says so
        fail(ErrorCode::out_of_memory, "a time stamp could not be recorded");
      }
      *result = backend->elapsed_ms(**start, **stop);
    };
    job->resolve = [result](Job& job) -> Napi::Value { return Napi::Number::New(job.env, *result); };
    return device_->executor->submit(std::move(job));
  });
}

Napi::Value DeviceObject::counters(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    if (!counting_) return info.Env().Null();
    const DeviceCounters counted = emulated_counters();
    Napi::Object result = Napi::Object::New(info.Env());
    const auto set = [&](const char* name, uint64_t value) { result.Set(name, static_cast<double>(value)); };
    set("bytesRead", counted.bytes_read), set("bytesWritten", counted.bytes_written);
    set("sectors", counted.sectors);
    set("bankConflicts", counted.bank_conflicts), set("mmaOps", counted.mma_ops);
    return result;
  });
}

Napi::Value DeviceObject::reset_counters(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    if (device_->info.kind != "emulated") {
      fail(ErrorCode::device_unavailable, "device %s counts nothing: only 'emulated' does, in the tests' module",
           device_->info.id.c_str());
    }
    if (!counting_) counting_ = count_emulated();
    reset_emulated_counters();
    return info.Env().Undefined();
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
