#include "addon/convert.h"

#include <cmath>
#include <cstring>
#include <new>
#include <stdexcept>

namespace diffqkv::addon {
namespace {

napi_value make_error(napi_env env, const char* code, const char* message) {
  napi_value js_code, js_message, error;
  if (napi_create_string_utf8(env, code, NAPI_AUTO_LENGTH, &js_code) != napi_ok ||
      napi_create_string_utf8(env, message, NAPI_AUTO_LENGTH, &js_message) != napi_ok ||
      napi_create_error(env, js_code, js_message, &error) != napi_ok) {
    return nullptr;
  }
  return error;
}

const char* type_name(const Napi::Value& value) {
  switch (value.Type()) {
    case napi_undefined: return "undefined";
    case napi_null: return "null";
    case napi_boolean: return "a boolean";
    case napi_number: return "a number";
    case napi_string: return "a string";
    case napi_symbol: return "a symbol";
    case napi_function: return "a function";
    case napi_bigint: return "a bigint";
    default: return value.IsArray() ? "an array" : "an object";
  }
}

[[noreturn]] void wrong_type(const Napi::Value& value, const char* name, const char* expected) {
  fail(ErrorCode::invalid_argument, "%s must be %s, not %s", name, expected, type_name(value));
}

}  // namespace

napi_value js_error(napi_env env, std::exception_ptr exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const Error& error) {
    napi_value value = make_error(env, error_code_name(error.code()), error.what());
    if (value != nullptr && error.code() == ErrorCode::aborted) {
      napi_value name;
      if (napi_create_string_utf8(env, "AbortError", NAPI_AUTO_LENGTH, &name) == napi_ok) {
        napi_set_named_property(env, value, "name", name);
      }
    }
    return value;
  } catch (const Napi::Error& error) {
    return error.Value();
  } catch (const std::bad_alloc&) {
    return make_error(env, error_code_name(ErrorCode::out_of_memory),
                      "the process is out of host memory; dispose of models, sessions and tensors that are not needed");
  } catch (const std::length_error&) {
    return make_error(env, error_code_name(ErrorCode::out_of_memory), "a size exceeds host memory");
  } catch (const std::exception& error) {
    return make_error(env, "ERR_INTERNAL", error.what());
  } catch (...) {
    return make_error(env, "ERR_INTERNAL", "an exception that is not a std::exception");
  }
}

size_t ArrayView::bytes() const {
  switch (type) {
    case napi_int8_array:
    case napi_uint8_array:
    case napi_uint8_clamped_array: return length;
    case napi_int16_array:
    case napi_uint16_array: return length * 2;
    case napi_int32_array:
    case napi_uint32_array:
    case napi_float32_array: return length * 4;
    default: return length * 8;
  }
}

ArrayView array_view(const Napi::Value& value, const char* name) {
  bool is_typed_array = false;
  napi_is_typedarray(value.Env(), value, &is_typed_array);
  if (!is_typed_array) wrong_type(value, name, "a typed array");
  ArrayView view{};
  if (napi_get_typedarray_info(value.Env(), value, &view.type, &view.length, &view.data, nullptr, nullptr) != napi_ok) {
    fail(ErrorCode::invalid_argument, "%s is a typed array of an unsupported type", name);
  }
  if (view.data == nullptr) view.length = 0;
  return view;
}

void fill_array(const Napi::Value& array, const void* src, size_t length) {
  ArrayView view = array_view(array, "the output array");
  if (view.length < length) {
    fail(ErrorCode::invalid_argument,
         "the output array was detached or shrunk to %zu elements during the call; it needs %zu", view.length, length);
  }
  view.length = length;
  if (length > 0) std::memcpy(view.data, src, view.bytes());
}

std::string text(const Napi::Value& value, const char* name) {
  if (!value.IsString()) wrong_type(value, name, "a string");
  std::string result = value.As<Napi::String>().Utf8Value();
  if (result.find('\0') != std::string::npos)
    fail(ErrorCode::invalid_argument, "%s must not contain a NUL character", name);
  return result;
}

bool boolean(const Napi::Value& value, const char* name) {
  if (!value.IsBoolean()) wrong_type(value, name, "a boolean");
  return value.As<Napi::Boolean>().Value();
}

double number(const Napi::Value& value, const char* name) {
  if (!value.IsNumber()) wrong_type(value, name, "a number");
  double result = value.As<Napi::Number>().DoubleValue();
  if (std::isnan(result)) fail(ErrorCode::invalid_argument, "%s must be a number, not NaN", name);
  return result;
}

int64_t integer(const Napi::Value& value, const char* name, int64_t min, int64_t max) {
  double result = number(value, name);
  if (result != std::floor(result) || result < static_cast<double>(min) || result > static_cast<double>(max)) {
    fail(ErrorCode::invalid_argument, "%s is %.17g; it must be an integer from %lld to %lld", name, result,
         static_cast<long long>(min), static_cast<long long>(max));
  }
  return static_cast<int64_t>(result);
}

uint64_t seed64(const Napi::Value& value, const char* name) {
  if (value.Type() != napi_bigint) wrong_type(value, name, "a bigint");
  bool lossless = false;
  uint64_t result = value.As<Napi::BigInt>().Uint64Value(&lossless);
  if (!lossless) fail(ErrorCode::invalid_argument, "%s must be from 0 to 2^64 - 1", name);
  return result;
}

DType dtype(const Napi::Value& value, const char* name) {
  std::string type = text(value, name);
  std::optional<DType> result = dtype_from_name(type.c_str());
  if (!result) {
    fail(ErrorCode::invalid_argument, "%s is \"%s\"; it must be one of f32, f16, bf16, i32, i8, f8e4m3", name,
         type.c_str());
  }
  return *result;
}

std::vector<int64_t> shape(const Napi::Value& value) {
  if (!value.IsArray()) wrong_type(value, "shape", "an array of integers");
  auto array = value.As<Napi::Array>();
  constexpr uint32_t kMaxRank = 8;
  if (array.Length() > kMaxRank)
    fail(ErrorCode::invalid_argument, "shape has %u axes; the limit is %u", array.Length(), kMaxRank);
  std::vector<int64_t> result;
  int64_t elements = 1;
  for (uint32_t axis = 0; axis < array.Length(); ++axis) {
    int64_t size = integer(array.Get(axis), "an axis of shape", 0, kMaxSafeInteger);
    if (__builtin_mul_overflow(elements, size, &elements) || elements > kMaxSafeInteger / 4) {
      fail(ErrorCode::invalid_argument, "shape has too many elements; the limit is 2^51");
    }
    result.push_back(size);
  }
  return result;
}

bool holds_raw(DType dtype, napi_typedarray_type type) {
  switch (dtype) {
    case DType::f32: return type == napi_float32_array;
    case DType::f16:
    case DType::bf16: return type == napi_uint16_array;
    case DType::i32: return type == napi_int32_array;
    case DType::i8: return type == napi_int8_array;
    case DType::f8e4m3: return type == napi_uint8_array;
    case DType::i4: break;  // not of a tensor
  }
  return false;
}

const char* raw_array_name(DType dtype) {
  switch (dtype) {
    case DType::f32: return "Float32Array";
    case DType::f16:
    case DType::bf16: return "Uint16Array";
    case DType::i32: return "Int32Array";
    case DType::i8: return "Int8Array";
    case DType::f8e4m3: return "Uint8Array";
    case DType::i4: break;
  }
  return "";
}

Napi::Object js_device_info(Napi::Env env, const DeviceInfo& info) {
  Napi::Object result = Napi::Object::New(env);
  result["id"] = info.id;
  result["kind"] = info.kind;
  result["name"] = info.name;
  result["usable"] = Napi::Boolean::New(env, info.usable);
  if (!info.usable) result["reason"] = info.reason;
  result["totalMemory"] = Napi::Number::New(env, static_cast<double>(info.total_memory));
  if (!info.compute_capability.empty()) result["computeCapability"] = info.compute_capability;
  Napi::Object details = Napi::Object::New(env);
  for (const auto& [key, value] : info.details) details[key] = value;
  result["details"] = details;
  return result;
}

}  // namespace diffqkv::addon
