// The state of one environment (the main thread or a worker), and the creation and type checks of
// its JS objects.
#pragma once

#include <napi.h>

#include <utility>

#include "addon/convert.h"

namespace diffqkv::addon {

enum ClassId { kDevice, kTensor, kEvent, kModel, kSession, kCancel, kNumClasses };

struct AddonData {
  Napi::FunctionReference constructors[kNumClasses];
  void* pending_state = nullptr;  // the State for the constructor that runs now
};

AddonData& addon_data(Napi::Env env);

// Fills the exports of the module for one environment.
Napi::Object init(Napi::Env env, Napi::Object exports);

// Every class has: ClassId kClass; const char* kName, for messages; struct State, the argument of
// its constructor; static define(env), which returns its JS constructor.
inline napi_type_tag type_tag(ClassId id) { return {0x6469666671'6b7601ull, 0x9d1c5a70'e21f4b00ull + id}; }

// Only C++ can create these objects: there is no pending state when JS calls `new`.
template <typename State>
State consume_pending_state(Napi::Env env) {
  void* state = std::exchange(addon_data(env).pending_state, nullptr);
  if (state == nullptr) throw Napi::TypeError::New(env, "Illegal constructor");
  return std::move(*static_cast<State*>(state));
}

template <typename Class>
Napi::Object construct(Napi::Env env, typename Class::State state) {
  AddonData& data = addon_data(env);
  data.pending_state = &state;
  Napi::Object object;
  try {
    object = data.constructors[Class::kClass].New({});
  } catch (...) {
    data.pending_state = nullptr;  // still set if the object could not be allocated
    throw;
  }
  napi_type_tag tag = type_tag(Class::kClass);
  object.TypeTag(&tag);
  return object;
}

template <typename Class>
Class& unwrap(const Napi::Value& value, const char* name) {
  napi_type_tag tag = type_tag(Class::kClass);
  if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&tag)) {
    fail(ErrorCode::invalid_argument, "%s must be a %s of this module", name, Class::kName);
  }
  return *Class::Unwrap(value.As<Napi::Object>());
}

inline bool absent(const Napi::Value& value) { return value.IsUndefined() || value.IsNull(); }

}  // namespace diffqkv::addon
