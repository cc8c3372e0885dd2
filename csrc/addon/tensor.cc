#include "addon/tensor.h"

#include <algorithm>
#include <cstring>

#include "addon/fields.h"
#include "backend/check.h"

namespace diffqkv::addon {
namespace {

constexpr int64_t kPiece = 1 << 18;  // elements converted at a time

// Uninitialized host memory, shared by two threads.
using HostBytes = std::shared_ptr<std::byte[]>;
HostBytes host_bytes(size_t bytes) { return HostBytes(new std::byte[bytes]); }

// Checks that `view` can be copied to or from the tensor. Returns whether elements need conversion.
bool needs_conversion(const TensorData& tensor, const ArrayView& view, const char* name) {
  bool raw = holds_raw(tensor.dtype, view.type);
  if (!raw && view.type != napi_float32_array) {
    fail(ErrorCode::invalid_argument, "%s must be a Float32Array%s%s for a tensor of type %s", name,
         tensor.dtype == DType::f32 ? "" : " or a ", tensor.dtype == DType::f32 ? "" : raw_array_name(tensor.dtype),
         dtype_name(tensor.dtype));
  }
  if (static_cast<int64_t>(view.length) != tensor.elements) {
    fail(ErrorCode::invalid_argument, "%s has %zu elements; the tensor of shape %s has %lld", name, view.length,
         shape_text(tensor.shape).c_str(), static_cast<long long>(tensor.elements));
  }
  return !raw;
}

void integers_to_f32(DType from, float* dst, const void* src, int64_t count) {
  if (from == DType::i32) {
    std::copy_n(static_cast<const int32_t*>(src), count, dst);
  } else {
    std::copy_n(static_cast<const int8_t*>(src), count, dst);
  }
}

// Copies `view` now and returns the job that uploads the copy.
std::function<void(Job&)> upload_job(std::shared_ptr<Backend> backend, std::shared_ptr<TensorData> tensor,
                                     const ArrayView& view, const char* name) {
  bool convert = needs_conversion(*tensor, view, name);
  if (convert && !dtype_is_float(tensor->dtype)) {
    fail(ErrorCode::invalid_argument, "%s must be a %s for a tensor of type %s", name, raw_array_name(tensor->dtype),
         dtype_name(tensor->dtype));
  }
  HostBytes host = host_bytes(view.bytes());
  if (view.length > 0) std::memcpy(host.get(), view.data, view.bytes());
  return [=](Job&) {
    if (!convert) return backend->upload(tensor->buffer.data(), host.get(), tensor->buffer.bytes());
    size_t size = dtype_size(tensor->dtype);
    HostBytes piece = host_bytes(kPiece * size);
    for (int64_t i = 0; i < tensor->elements; i += kPiece) {
      int64_t count = std::min(kPiece, tensor->elements - i);
      convert_from_f32(tensor->dtype, piece.get(), reinterpret_cast<const float*>(host.get()) + i, count);
      backend->upload(tensor->buffer.as<std::byte>() + i * size, piece.get(), count * size);
    }
  };
}

std::function<void(Job&)> zero_job(std::shared_ptr<Backend> backend, std::shared_ptr<TensorData> tensor) {
  return [=](Job&) {
    size_t bytes = tensor->buffer.bytes();
    size_t size = std::min<size_t>(bytes, 1 << 20);
    HostBytes zeros = host_bytes(size);
    std::memset(zeros.get(), 0, size);
    for (size_t i = 0; i < bytes; i += size) {
      backend->upload(tensor->buffer.as<std::byte>() + i, zeros.get(), std::min(size, bytes - i));
    }
  };
}

}  // namespace

Napi::Function TensorObject::define(Napi::Env env) {
  return DefineClass(
      env, "NativeTensor",
      {InstanceAccessor<&TensorObject::byte_length>("byteLength"), InstanceMethod<&TensorObject::read_into>("readInto"),
       InstanceMethod<&TensorObject::write>("write"), InstanceMethod<&TensorObject::dispose_js>("dispose")});
}

TensorObject::TensorObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  auto state = consume_pending_state<State>(info.Env());
  data_ = std::move(state.data);
  own(info.Env(), kName, std::move(state.device), state.parent, static_cast<int64_t>(data_->buffer.bytes()));
}

Napi::Object TensorObject::create(const Napi::CallbackInfo& info, const std::shared_ptr<DeviceContext>& device,
                                  Resource& parent) {
  const Fields fields(info);
  auto data = std::make_shared<TensorData>();
  data->dtype = fields.dtype("dtype");
  data->shape = fields.shape("shape");
  data->elements = 1;
  for (int64_t size : data->shape) data->elements *= size;
  // Backend::allocate may be called from any thread. Called here, it makes this call throw
  // ERR_OUT_OF_MEMORY.
  data->buffer = Buffer(device->backend, static_cast<size_t>(data->elements) * dtype_size(data->dtype));
  const Napi::Value contents = fields.get("data");
  if (!contents.IsNull()) {
    auto job = std::make_unique<Job>(info.Env(), Job::without_promise);
    std::function<void(Job&)> fill = contents.IsUndefined()
                                         ? zero_job(device->backend, data)
                                         : upload_job(device->backend, data, fields.array("data"), "data");
    job->run = [data, fill = std::move(fill)](Job& job) {
      try {
        fill(job);
      } catch (...) {
        // There is no promise to reject. Calls that use the tensor throw this error.
        data->upload_error = std::current_exception();
      }
    };
    device->executor->submit(std::move(job));
  }
  return construct<TensorObject>(info.Env(), {device, &parent, std::move(data)});
}

std::shared_ptr<TensorData> TensorObject::data(const DeviceContext& device, const char* name) const {
  if (disposed()) fail(ErrorCode::disposed, "%s is disposed", name);
  if (device_.get() != &device) {
    fail(ErrorCode::invalid_argument,
         "%s is on device %s and the call is on device %s; read() it and create a tensor there", name,
         device_->info.id.c_str(), device.info.id.c_str());
  }
  return data_;
}

Napi::Value TensorObject::byte_length(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    return Napi::Number::New(info.Env(), static_cast<double>(data_->buffer.bytes()));
  });
}

Napi::Value TensorObject::write(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    // Before the promise is created, because this may throw.
    auto upload = upload_job(device_->backend, data_, Fields(info).array("array"), "array");
    auto job = std::make_unique<Job>(info.Env());
    job->run = [tensor = data_, upload = std::move(upload)](Job& job) {
      upload(job);
      tensor->upload_error = nullptr;
    };
    return device_->executor->submit(std::move(job));
  });
}

Napi::Value TensorObject::read_into(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    const Fields fields(info);
    ArrayView view = fields.array("array");
    bool convert = needs_conversion(*data_, view, "array");
    auto job = std::make_unique<Job>(info.Env());
    auto host = std::make_shared<HostBytes>();
    job->run = [backend = device_->backend, tensor = data_, host, convert](Job&) {
      tensor->check();
      if (!convert) {
        *host = host_bytes(tensor->buffer.bytes());
        return backend->download(host->get(), tensor->buffer.data(), tensor->buffer.bytes());
      }
      *host = host_bytes(tensor->elements * sizeof(float));
      size_t size = dtype_size(tensor->dtype);
      HostBytes piece = host_bytes(kPiece * size);
      for (int64_t i = 0; i < tensor->elements; i += kPiece) {
        int64_t count = std::min(kPiece, tensor->elements - i);
        float* out = reinterpret_cast<float*>(host->get()) + i;
        backend->download(piece.get(), tensor->buffer.as<std::byte>() + i * size, count * size);
        if (dtype_is_float(tensor->dtype)) {
          convert_to_f32(tensor->dtype, out, piece.get(), count);
        } else {
          integers_to_f32(tensor->dtype, out, piece.get(), count);
        }
      }
    };
    job->keep = Napi::Persistent(fields.get("array").As<Napi::Object>());
    job->resolve = [host, length = view.length](Job& job) -> Napi::Value {
      fill_array(job.keep.Value(), host->get(), length);
      return job.env.Undefined();
    };
    return device_->executor->submit(std::move(job));
  });
}

Napi::Value TensorObject::dispose_js(const Napi::CallbackInfo& info) {
  dispose(info.Env());
  return info.Env().Undefined();
}

}  // namespace diffqkv::addon
