// NativeTensor: an array in device memory.
#pragma once

#include <memory>
#include <vector>

#include "addon/addon.h"
#include "addon/resource.h"

namespace diffqkv::addon {

struct TensorData {
  Buffer buffer;
  DType dtype;
  std::vector<int64_t> shape;
  int64_t elements;
  std::exception_ptr upload_error;  // of the first contents; executor thread only

  void check() const {
    if (upload_error) std::rethrow_exception(upload_error);
  }
};

class TensorObject final : public Napi::ObjectWrap<TensorObject>, public Resource {
 public:
  static constexpr ClassId kClass = kTensor;
  static constexpr const char* kName = "tensor";
  struct State {
    std::shared_ptr<DeviceContext> device;
    Resource* parent;
    std::shared_ptr<TensorData> data;
  };
  static Napi::Function define(Napi::Env env);
  explicit TensorObject(const Napi::CallbackInfo& info);
  ~TensorObject() override { finalize(Env()); }

  // device.tensor({ dtype, shape, data }). data: undefined for zeros, null for uninitialized
  // memory.
  static Napi::Object create(const Napi::CallbackInfo& info, const std::shared_ptr<DeviceContext>& device,
                             Resource& parent);

  // For a kernel call on `device`. `name` is the argument's name, for messages.
  std::shared_ptr<TensorData> data(const DeviceContext& device, const char* name) const;

 private:
  std::shared_ptr<void> detach_memory() override { return std::move(data_); }
  Napi::Value byte_length(const Napi::CallbackInfo& info);
  Napi::Value read_into(const Napi::CallbackInfo& info);
  Napi::Value write(const Napi::CallbackInfo& info);
  Napi::Value dispose_js(const Napi::CallbackInfo& info);

  std::shared_ptr<TensorData> data_;
};

}  // namespace diffqkv::addon
