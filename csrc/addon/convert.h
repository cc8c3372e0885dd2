// Conversions between JS and C++ values, and from C++ exceptions to JS errors. Everything here
// throws diffqkv::Error with the name of the argument. `instanceof` is not used, because values may
// come from another realm.
#pragma once

#include <napi.h>

#include <cstdint>
#include <exception>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/error.h"

namespace diffqkv::addon {

// The JS Error of an exception, with `code`. Null only if the environment is being torn down.
napi_value js_error(napi_env env, std::exception_ptr exception);

// Runs the body of a JS-callable function and throws its C++ exceptions as JS ones.
template <typename Body>
auto guarded(Napi::Env env, Body&& body) -> decltype(body()) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw Napi::Error(env, js_error(env, std::current_exception()));
  }
}

// The current state of a typed array.
struct ArrayView {
  napi_typedarray_type type;
  size_t length;  // 0 if its memory was detached
  void* data;
  size_t bytes() const;
};
ArrayView array_view(const Napi::Value& value, const char* name);
// Copies `length` elements into a typed array. Fails if it shrank or was detached during the call.
void fill_array(const Napi::Value& array, const void* src, size_t length);

inline Napi::Value property(const Napi::Value& object, const char* name) { return object.As<Napi::Object>().Get(name); }
std::string text(const Napi::Value& value, const char* name);
bool boolean(const Napi::Value& value, const char* name);
double number(const Napi::Value& value, const char* name);  // not NaN
int64_t integer(const Napi::Value& value, const char* name, int64_t min, int64_t max);
uint64_t seed64(const Napi::Value& value, const char* name);  // a BigInt in [0, 2^64)
DType dtype(const Napi::Value& value, const char* name);
// The size in bytes of the result does not overflow for any dtype.
std::vector<int64_t> shape(const Napi::Value& value);

// Whether a typed array of this type stores elements of `dtype` without conversion.
bool holds_raw(DType dtype, napi_typedarray_type type);
const char* raw_array_name(DType dtype);

Napi::Object js_device_info(Napi::Env env, const DeviceInfo& info);

constexpr int64_t kMaxSafeInteger = (int64_t{1} << 53) - 1;

}  // namespace diffqkv::addon
