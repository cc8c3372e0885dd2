#include "addon/fields.h"

namespace diffqkv::addon {

Fields::Fields(const Napi::CallbackInfo& info) {
  if (!info[0].IsObject()) throw Napi::TypeError::New(info.Env(), "the argument of a native call must be an object");
  object_ = info[0].As<Napi::Object>();
}

Fields::Fields(const Napi::Value& object, const char* name, std::string prefix) : prefix_(std::move(prefix)) {
  if (!object.IsObject()) fail(ErrorCode::invalid_argument, "%s must be an object", name);
  object_ = object.As<Napi::Object>();
}

double Fields::number(const char* name, double min, double max) const {
  const double result = number(name);
  if (!(result >= min && result <= max)) {
    fail(ErrorCode::invalid_argument, "%s is %g; it must be from %g to %g", label(name).c_str(), result, min, max);
  }
  return result;
}

std::vector<int32_t> Fields::tokens(const char* name) const {
  const ArrayView view = array(name);
  if (view.type != napi_int32_array) {
    fail(ErrorCode::invalid_argument, "%s must be an Int32Array", label(name).c_str());
  }
  if (view.length == 0) {
    fail(ErrorCode::invalid_argument, "%s is empty; pass at least one token", label(name).c_str());
  }
  const auto* data = static_cast<const int32_t*>(view.data);
  return {data, data + view.length};
}

Napi::Array Fields::list(const char* name) const {
  const Napi::Value value = get(name);
  if (!value.IsArray()) fail(ErrorCode::invalid_argument, "%s must be an array", label(name).c_str());
  return value.As<Napi::Array>();
}

Napi::Function Fields::function(const char* name) const {
  const Napi::Value value = get(name);
  if (!value.IsFunction()) fail(ErrorCode::invalid_argument, "%s must be a function", label(name).c_str());
  return value.As<Napi::Function>();
}

std::optional<double> Fields::optional_number(const char* name) const {
  if (!has(name)) return std::nullopt;
  return number(name);
}

std::optional<int64_t> Fields::optional_integer(const char* name, int64_t min, int64_t max) const {
  if (!has(name)) return std::nullopt;
  return integer(name, min, max);
}

std::optional<DType> Fields::optional_dtype(const char* name) const {
  if (!has(name)) return std::nullopt;
  return dtype(name);
}

std::optional<Fields> Fields::optional_object(const char* name, std::string prefix) const {
  if (!has(name)) return std::nullopt;
  return Fields(get(name), label(name).c_str(), std::move(prefix));
}

}  // namespace diffqkv::addon
