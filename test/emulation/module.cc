// The entry point of the tests' module. It is the addon with additions for the whole process:
// - The device `emulated` runs the kernels of cuda/ as C++.
// - The export `emulation` (typed in module.ts) counts what kernels do, makes calls of the CUDA runtime fail, and checks
//   attention on any device over pages that do not exist, and reads limits of control groups from any folder.
// - DIFFQKV_CPU_ISA can be `emulated_amx`: the AMX kernels of csrc/backend/cpu on a CPU without AMX.
#include <climits>
#include <mutex>

#include "addon/addon.h"
#include "backend/cpu/cpu_isa.h"
#include "backend/cpu/system/control_group.h"
#include "backend/devices.h"
#include "cuda_devices.h"
#include "engine/runtime.h"
#include "window_pages.h"

namespace diffqkv::cpu::emulated_amx {
extern const Kernels kernels;
}

namespace diffqkv::addon {
namespace {

constexpr const char* kEmulated = "emulated";

std::vector<DeviceInfo> list_emulated() {
  std::vector<DeviceInfo> infos = emulated::device_infos();
  for (DeviceInfo& info : infos) info.id = info.kind = kEmulated;
  return infos;
}

std::shared_ptr<Backend> open_emulated(const std::string& id, const DeviceOptions&) {
  return id == kEmulated ? emulated::open_gpu(0, list_emulated()[0]) : nullptr;
}

// Kernels add to them with Device::running held. Never destroyed, as the device.
emulated::Counters& counted() {
  static emulated::Counters* const counters = new emulated::Counters;
  return *counters;
}

// Counts from 0. Waits for what runs, as do the next two.
void start_counting(const Napi::CallbackInfo&) {
  std::lock_guard running(emulated::device().running);
  counted() = {};
  emulated::settings().counters = &counted();
}

void stop_counting(const Napi::CallbackInfo&) {
  std::lock_guard running(emulated::device().running);
  emulated::settings().counters = nullptr;
}

Napi::Value counters(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    std::lock_guard running(emulated::device().running);
    if (emulated::settings().counters == nullptr) return info.Env().Null();
    const emulated::Counters& c = counted();
    Napi::Object result = Napi::Object::New(info.Env());
    const auto set = [&](const char* name, uint64_t value) { result.Set(name, static_cast<double>(value)); };
    set("bytesRead", c.read_bytes);
    set("distinctBytesRead", c.distinct_read_bytes);
    set("bytesWritten", c.written_bytes);
    set("sectors", c.read_sectors + c.written_sectors);
    set("bankConflicts", c.bank_conflicts);
    set("mmaOps", c.mma);
    return result;
  });
}

Napi::Value fault(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    emulated::Fault fault;
    fault.call = text(info[0], "call");
    fault.first = static_cast<uint64_t>(integer(info[1], "first", 0, kMaxSafeInteger));
    fault.times = static_cast<uint64_t>(integer(info[2], "times", 0, kMaxSafeInteger));
    fault.status = static_cast<int>(integer(info[3], "status", 0, 9999));
    return Napi::Number::New(info.Env(), static_cast<double>(emulated::set_fault(std::move(fault))));
  });
}

Napi::Value window_pages(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    return Napi::String::New(info.Env(), check_window_pages(open_device(text(info[0], "device"))));
  });
}

Napi::Value control_group_limits(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::string root = text(info[0], "root");
    const cpu::MemoryLimit memory = cpu::control_group_memory(root);
    const auto bytes = [&](uint64_t value) -> Napi::Value {
      if (value == cpu::kNoLimit) return info.Env().Null();
      return Napi::Number::New(info.Env(), static_cast<double>(value));
    };
    const int cpus = cpu::control_group_cpus(root);
    Napi::Object result = Napi::Object::New(info.Env());
    result["total"] = bytes(memory.total);
    result["available"] = bytes(memory.available);
    result["cpus"] = cpus == INT_MAX ? info.Env().Null() : Napi::Value(Napi::Number::New(info.Env(), cpus));
    return result;
  });
}

Napi::Object init_with_emulation(Napi::Env env, Napi::Object exports) {
  static std::once_flag once;
  std::call_once(once, [] {
    device_kinds().push_back({list_emulated, open_emulated});
    cpu::isa_levels().push_back({.name = "emulated_amx",
                                 .kernels = &cpu::emulated_amx::kernels,
                                 .amx = true,
                                 .supported = cpu::has_avx512_bf16,
                                 .only_by_name = true});
  });
  init(env, exports);
  Napi::Object emulation = Napi::Object::New(env);
  emulation["fault"] = Napi::Function::New<fault>(env, "fault");
  emulation["startCounting"] = Napi::Function::New<start_counting>(env, "startCounting");
  emulation["stopCounting"] = Napi::Function::New<stop_counting>(env, "stopCounting");
  emulation["counters"] = Napi::Function::New<counters>(env, "counters");
  emulation["checkWindowPages"] = Napi::Function::New<window_pages>(env, "checkWindowPages");
  emulation["controlGroupLimits"] = Napi::Function::New<control_group_limits>(env, "controlGroupLimits");
  exports["emulation"] = emulation;
  return exports;
}

NODE_API_MODULE(diffqkv, init_with_emulation)

}  // namespace
}  // namespace diffqkv::addon
