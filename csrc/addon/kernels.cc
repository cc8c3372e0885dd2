// The operators as methods of NativeDevice. A method reads and checks the tensors on the JS thread
// and queues the work for the executor thread.
#include <cmath>
#include <list>

#include "addon/device.h"
#include "addon/fields.h"
#include "addon/tensor.h"

namespace diffqkv::addon {
namespace {

// The tensors of a call. Holds their memory until the call is done.
class Operands {
 public:
  Operands(const Fields& fields, const DeviceContext& device) : fields_(fields), device_(device) {}

  const TensorView& tensor(const char* name) {
    if (!fields_.has(name)) fail(ErrorCode::invalid_argument, "%s is missing; it must be a tensor", name);
    return *optional_tensor(name);
  }

  // Null if the field is absent.
  const TensorView* optional_tensor(const char* name) {
    if (!fields_.has(name)) return nullptr;
    std::shared_ptr<TensorData> data = fields_.instance<TensorObject>(name).data(device_, name);
    TensorView& view = views_.emplace_back();
    view.name = name;
    view.data = data->buffer.data();
    view.dtype = data->dtype;
    view.shape = data->shape;
    data_.push_back(std::move(data));
    return &view;
  }

  AttentionViews attention() {
    const TensorView& q = tensor("q");
    const TensorView& k = tensor("k");
    const TensorView& v = tensor("v");
    const TensorView* k_scales = optional_tensor("kScales");
    const TensorView* v_scales = optional_tensor("vScales");
    const TensorView& out = tensor("out");
    const TensorView* lse = optional_tensor("lse");
    const TensorView* kv_lens = optional_tensor("kvLens");
    return {q, k, v, out, k_scales, v_scales, lse, kv_lens};
  }

  // The job that calls backend.*op(p). If `out` has no elements, the job does nothing.
  template <typename Params>
  std::function<void(Job&)> job(void (Backend::*op)(const Params&), const Params& p, const TensorView& out) const {
    return [backend = device_.backend, op, p, data = data_, is_empty = elements(out) == 0](Job&) {
      for (const auto& tensor : data) tensor->check();
      if (!is_empty) ((*backend).*op)(p);
    };
  }

  const std::vector<std::shared_ptr<TensorData>>& data() const { return data_; }

  static int64_t elements(const TensorView& view) {
    int64_t product = 1;
    for (const int64_t size : view.shape) product *= size;
    return product;
  }

 private:
  const Fields& fields_;
  const DeviceContext& device_;
  std::list<TensorView> views_;  // at fixed addresses
  std::vector<std::shared_ptr<TensorData>> data_;
};

}  // namespace

Napi::Value DeviceObject::attention_prefill(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    const Fields fields(info);
    Operands operands(fields, *device_);
    const AttentionViews views = operands.attention();
    const PrefillOptions options = {.causal = fields.boolean("causal"), .sm_scale = fields.optional_number("smScale")};
    const auto p = check_attention_prefill(views, options);
    return submit(info, operands.job(&Backend::attention_prefill, p, views.out));
  });
}

Napi::Value DeviceObject::attention_decode(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    const Fields fields(info);
    Operands operands(fields, *device_);
    const AttentionViews views = operands.attention();
    DecodeOptions options;
    options.sm_scale = fields.optional_number("smScale");
    options.num_splits = fields.integer("numSplits", 0, 1 << 20);
    if (const auto selective = fields.optional_object("selectiveV", "selectiveV.")) {
      options.top_k = selective->integer("topK", 1, kMaxSafeInteger);
      options.renormalize = selective->boolean("renormalize");
    }
    const auto p = check_attention_decode(views, options);
    return submit(info, operands.job(&Backend::attention_decode, p, views.out));
  });
}

Napi::Value DeviceObject::quantize(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    const Fields fields(info);
    Operands operands(fields, *device_);
    const TensorView& x = operands.tensor("x");
    const TensorView& out = operands.tensor("out");
    const TensorView& scales = operands.tensor("scales");
    return submit(info, operands.job(&Backend::quantize, check_quantize(x, out, scales), out));
  });
}

Napi::Value DeviceObject::gated_mlp(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    const Fields fields(info);
    Operands operands(fields, *device_);
    const TensorView& x = operands.tensor("x");
    const TensorView& gate = operands.tensor("gate");
    const TensorView& up = operands.tensor("up");
    const TensorView& down = operands.tensor("down");
    const TensorView& out = operands.tensor("out");
    return submit(info, operands.job(&Backend::gated_mlp, check_gated_mlp(x, gate, up, down, out), out));
  });
}

Napi::Value DeviceObject::matmul(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    const Fields fields(info);
    Operands operands(fields, *device_);
    const TensorView& x = operands.tensor("x");
    const TensorView& weight = operands.tensor("weight");
    const TensorView& out = operands.tensor("out");
    return submit(info, operands.job(&Backend::matmul, check_matmul(x, weight, out), out));
  });
}

Napi::Value DeviceObject::rms_norm(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    const Fields fields(info);
    Operands operands(fields, *device_);
    const TensorView& x = operands.tensor("x");
    const TensorView& weight = operands.tensor("weight");
    const TensorView& out = operands.tensor("out");
    const TensorView* residual = operands.optional_tensor("residual");
    const auto p = check_rms_norm(x, weight, out, residual, fields.number("eps"));
    return submit(info, operands.job(&Backend::rms_norm, p, out));
  });
}

Napi::Value DeviceObject::rope(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    const Fields fields(info);
    Operands operands(fields, *device_);
    const TensorView& x = operands.tensor("x");
    const TensorView& positions = operands.tensor("positions");
    const TensorView& out = operands.tensor("out");
    const double theta = fields.number("theta");
    const RopeParams checked = check_rope(x, positions, out, theta);
    const bool is_empty = Operands::elements(out) == 0;
    return submit(info,
                  [backend = device_->backend, p = checked, data = operands.data(), theta, is_empty](Job&) mutable {
                    for (const auto& tensor : data) tensor->check();
                    if (is_empty) return;
                    std::vector<double> inv_freq(p.head_dim / 2);
                    for (int64_t d = 0; d < p.head_dim / 2; ++d) inv_freq[d] = std::pow(theta, -2.0 * d / p.head_dim);
                    Buffer device_inv_freq(backend, inv_freq.size() * sizeof(double));
                    backend->upload(device_inv_freq.data(), inv_freq.data(), device_inv_freq.bytes());
                    p.inv_freq = device_inv_freq.as<double>();
                    backend->rope(p);
                  });
  });
}

Napi::Value DeviceObject::silu_mul(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    const Fields fields(info);
    Operands operands(fields, *device_);
    const TensorView& gate = operands.tensor("gate");
    const TensorView& up = operands.tensor("up");
    const TensorView& out = operands.tensor("out");
    return submit(info, operands.job(&Backend::silu_mul, check_silu_mul(gate, up, out), out));
  });
}

Napi::Value DeviceObject::embed(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    const Fields fields(info);
    Operands operands(fields, *device_);
    const TensorView& table = operands.tensor("table");
    const TensorView& tokens = operands.tensor("tokens");
    const TensorView& out = operands.tensor("out");
    return submit(info, operands.job(&Backend::embed, check_embed(table, tokens, out), out));
  });
}

}  // namespace diffqkv::addon
