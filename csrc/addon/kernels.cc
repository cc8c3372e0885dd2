// The operators as methods of NativeDevice: arguments to tensors, checks on the JS thread, the work on the executor's.
#include "addon/device.h"
#include "addon/tensor.h"

#include <cmath>

namespace diffqkv::addon {
namespace {

// One tensor argument: its view for the checks, and the hold on its memory for the job.
struct Argument {
  TensorView view;
  std::shared_ptr<TensorData> data;
  const TensorView* optional() const { return data ? &view : nullptr; }
};

Argument optional_tensor(const DeviceContext& device, const Napi::Value& value, const char* name) {
  Argument argument;
  argument.view.name = name;
  if (absent(value)) return argument;
  argument.data = unwrap<TensorObject>(value, name).data(device, name);
  argument.view.data = argument.data->buffer.data();
  argument.view.dtype = argument.data->dtype;
  argument.view.shape = argument.data->shape;
  return argument;
}

Argument tensor_argument(const DeviceContext& device, const Napi::Value& value, const char* name) {
  if (absent(value)) fail(ErrorCode::invalid_argument, "%s is missing; it must be a tensor", name);
  return optional_tensor(device, value, name);
}

std::optional<double> optional_number(const Napi::Value& value, const char* name) {
  if (absent(value)) return std::nullopt;
  return number(value, name);
}

// What both attention operators take first.
struct AttentionArguments {
  Argument q, k, v, k_scales, v_scales, out, lse, kv_lens;

  AttentionArguments(const DeviceContext& device, const Napi::CallbackInfo& info)
      : q(tensor_argument(device, info[0], "q")),
        k(tensor_argument(device, info[1], "k")),
        v(tensor_argument(device, info[2], "v")),
        k_scales(optional_tensor(device, info[3], "kScales")),
        v_scales(optional_tensor(device, info[4], "vScales")),
        out(tensor_argument(device, info[5], "out")),
        lse(optional_tensor(device, info[6], "lse")),
        kv_lens(optional_tensor(device, info[7], "kvLens")) {}

  AttentionViews views() const {
    return {
        q.view, k.view, v.view, out.view, k_scales.optional(), v_scales.optional(), lse.optional(), kv_lens.optional()};
  }
  std::vector<Argument> all() const { return {q, k, v, k_scales, v_scales, out, lse, kv_lens}; }
};

// Queues backend->*op(p); the arguments are held until it is done. A call without an element of output does nothing.
template <typename Params, typename Submit>
Napi::Value enqueue(const DeviceContext& device, void (Backend::*op)(const Params&), const Params& p,
                    std::vector<Argument> arguments, const Argument& out, Submit submit) {
  bool empty = out.data->elements == 0;
  return submit([backend = device.backend, op, p, arguments = std::move(arguments), empty](Job&) {
    for (const Argument& argument : arguments) {
      if (argument.data) argument.data->check();
    }
    if (!empty) ((*backend).*op)(p);
  });
}

}  // namespace

Napi::Value DeviceObject::attention_prefill(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    const AttentionArguments tensors(*device_, info);
    auto p = check_attention_prefill(tensors.views(), boolean(info[8], "causal"), optional_number(info[9], "smScale"));
    return enqueue(*device_, &Backend::attention_prefill, p, tensors.all(), tensors.out,
                   [&](auto run) { return submit(info, run); });
  });
}

Napi::Value DeviceObject::attention_decode(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    const AttentionArguments tensors(*device_, info);
    auto p = check_attention_decode(
        tensors.views(), optional_number(info[8], "smScale"), integer(info[9], "numSplits", 0, 1 << 20),
        integer(info[10], "selectiveV.topK", 0, kMaxSafeInteger), boolean(info[11], "selectiveV.renormalize"));
    return enqueue(*device_, &Backend::attention_decode, p, tensors.all(), tensors.out,
                   [&](auto run) { return submit(info, run); });
  });
}

Napi::Value DeviceObject::quantize(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    Argument x = tensor_argument(*device_, info[0], "x"), out = tensor_argument(*device_, info[1], "out"),
             scales = tensor_argument(*device_, info[2], "scales");
    auto p = check_quantize(x.view, out.view, scales.view);
    return enqueue(*device_, &Backend::quantize, p, {x, out, scales}, out, [&](auto run) { return submit(info, run); });
  });
}

Napi::Value DeviceObject::augmented_q(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    Argument x = tensor_argument(*device_, info[0], "x"), gate = tensor_argument(*device_, info[1], "gate"),
             up = tensor_argument(*device_, info[2], "up"), down = tensor_argument(*device_, info[3], "down"),
             out = tensor_argument(*device_, info[4], "out");
    auto p = check_augmented_q(x.view, gate.view, up.view, down.view, out.view);
    return enqueue(*device_, &Backend::augmented_q, p, {x, gate, up, down, out}, out,
                   [&](auto run) { return submit(info, run); });
  });
}

Napi::Value DeviceObject::matmul(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    Argument x = tensor_argument(*device_, info[0], "x"), weight = tensor_argument(*device_, info[1], "weight"),
             out = tensor_argument(*device_, info[2], "out");
    auto p = check_matmul(x.view, weight.view, out.view);
    return enqueue(*device_, &Backend::matmul, p, {x, weight, out}, out, [&](auto run) { return submit(info, run); });
  });
}

Napi::Value DeviceObject::rms_norm(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    Argument x = tensor_argument(*device_, info[0], "x"), weight = tensor_argument(*device_, info[1], "weight"),
             out = tensor_argument(*device_, info[2], "out"), residual = optional_tensor(*device_, info[3], "residual");
    auto p = check_rms_norm(x.view, weight.view, out.view, residual.optional(), number(info[4], "eps"));
    return enqueue(*device_, &Backend::rms_norm, p, {x, weight, out, residual}, out,
                   [&](auto run) { return submit(info, run); });
  });
}

Napi::Value DeviceObject::rope(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    Argument x = tensor_argument(*device_, info[0], "x"), positions = tensor_argument(*device_, info[1], "positions"),
             out = tensor_argument(*device_, info[2], "out");
    double theta = number(info[3], "theta");
    RopeParams p = check_rope(x.view, positions.view, out.view, theta);
    return submit(info, [backend = device_->backend, p, x, positions, out, theta](Job&) mutable {
      x.data->check();
      positions.data->check();
      if (out.data->elements == 0) return;
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
    Argument gate = tensor_argument(*device_, info[0], "gate"), up = tensor_argument(*device_, info[1], "up"),
             out = tensor_argument(*device_, info[2], "out");
    auto p = check_silu_mul(gate.view, up.view, out.view);
    return enqueue(*device_, &Backend::silu_mul, p, {gate, up, out}, out, [&](auto run) { return submit(info, run); });
  });
}

Napi::Value DeviceObject::embed(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    Argument table = tensor_argument(*device_, info[0], "table"), tokens = tensor_argument(*device_, info[1], "tokens"),
             out = tensor_argument(*device_, info[2], "out");
    auto p = check_embed(table.view, tokens.view, out.view);
    return enqueue(*device_, &Backend::embed, p, {table, tokens, out}, out,
                   [&](auto run) { return submit(info, run); });
  });
}

}  // namespace diffqkv::addon
