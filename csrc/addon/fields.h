// Reads the fields of the object that is the argument of a native call.
#pragma once

#include <napi.h>

#include <optional>
#include <string>
#include <vector>

#include "addon/addon.h"
#include "addon/convert.h"

namespace diffqkv::addon {

// A field that is undefined or null is absent. A missing required field, a wrong type or a value
// out of range throws ERR_INVALID_ARGUMENT with the field's JS name.
class Fields {
 public:
  // The argument of a call. Throws a TypeError if it is not an object.
  explicit Fields(const Napi::CallbackInfo& info);
  // An object within the argument. Its fields have `prefix` before their names in messages.
  Fields(const Napi::Value& object, const char* name, std::string prefix = "");

  Napi::Env env() const { return object_.Env(); }
  Napi::Value get(const char* name) const { return object_.Get(name); }
  bool has(const char* name) const { return !absent(get(name)); }

  std::string text(const char* name) const { return addon::text(get(name), label(name).c_str()); }
  bool boolean(const char* name) const { return addon::boolean(get(name), label(name).c_str()); }
  double number(const char* name) const { return addon::number(get(name), label(name).c_str()); }
  double number(const char* name, double min, double max) const;
  int64_t integer(const char* name, int64_t min, int64_t max) const {
    return addon::integer(get(name), label(name).c_str(), min, max);
  }
  uint64_t seed64(const char* name) const { return addon::seed64(get(name), label(name).c_str()); }
  DType dtype(const char* name) const { return addon::dtype(get(name), label(name).c_str()); }
  std::vector<int64_t> shape(const char* name) const { return addon::shape(get(name)); }
  ArrayView array(const char* name) const { return array_view(get(name), label(name).c_str()); }
  std::vector<int32_t> tokens(const char* name) const;  // a copy of an Int32Array that is not empty
  Napi::Array list(const char* name) const;
  Napi::Function function(const char* name) const;
  template <typename Class>
  Class& instance(const char* name) const {
    return unwrap<Class>(get(name), label(name).c_str());
  }

  // The same, or nothing if the field is absent.
  std::optional<double> optional_number(const char* name) const;
  std::optional<int64_t> optional_integer(const char* name, int64_t min, int64_t max) const;
  std::optional<DType> optional_dtype(const char* name) const;
  std::optional<Fields> optional_object(const char* name, std::string prefix = "") const;

 private:
  std::string label(const char* name) const { return prefix_ + name; }

  Napi::Object object_;
  std::string prefix_;
};

}  // namespace diffqkv::addon
