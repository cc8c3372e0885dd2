// The operators as methods of NativeDevice. A call reads and checks its arguments on the JS thread
// and queues the work for the executor thread.
#include <algorithm>
#include <cmath>
#include <list>
#include <optional>
#include <type_traits>

#include "addon/device.h"
#include "addon/fields.h"
#include "addon/tensor.h"

namespace diffqkv::addon {
namespace {

using Run = std::function<void(Job&)>;

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

  // The job that calls backend.*op(p), or op(backend, p). If `out` has no elements, the job does
  // nothing.
  template <typename Params, typename Op>
  Run job(Op op, const Params& p, const TensorView& out) const {
    const bool is_empty = std::find(out.shape.begin(), out.shape.end(), 0) != out.shape.end();
    return [backend = device_.backend, op, p, data = data_, is_empty](Job&) {
      for (const auto& tensor : data) tensor->check();
      if (is_empty) return;
      if constexpr (std::is_member_function_pointer_v<Op>) {
        ((*backend).*op)(p);
      } else {
        op(backend, p);
      }
    };
  }

 private:
  const Fields& fields_;
  const DeviceContext& device_;
  std::list<TensorView> views_;  // at fixed addresses
  std::vector<std::shared_ptr<TensorData>> data_;
};

ScoreOptions score_options(const Fields& fields) {
  return {.sm_scale = fields.optional_number("smScale"),
          .softcap = fields.number("softcap"),
          .window = fields.integer("window", 0, kMaxSafeInteger)};
}

Run attention_prefill(const Fields& fields, Operands& operands) {
  const AttentionViews views = operands.attention();
  const PrefillOptions options = {.causal = fields.boolean("causal"), .scores = score_options(fields)};
  return operands.job(&Backend::attention_prefill, check_attention_prefill(views, options), views.out);
}

Run attention_decode(const Fields& fields, Operands& operands) {
  const AttentionViews views = operands.attention();
  DecodeOptions options;
  options.scores = score_options(fields);
  options.num_splits = fields.integer("numSplits", 0, 1 << 20);
  if (const auto selective = fields.optional_object("selectiveV", "selectiveV.")) {
    options.top_k = selective->integer("topK", 1, kMaxSafeInteger);
    options.renormalize = selective->boolean("renormalize");
  }
  return operands.job(&Backend::attention_decode, check_attention_decode(views, options), views.out);
}

Run quantize(const Fields&, Operands& operands) {
  const TensorView& x = operands.tensor("x");
  const TensorView& out = operands.tensor("out");
  const TensorView& scales = operands.tensor("scales");
  return operands.job(&Backend::quantize, check_quantize(x, out, scales), out);
}

Run quantize_weight(const Fields& fields, Operands& operands) {
  const TensorView& weight = operands.tensor("weight");
  const TensorView& values = operands.tensor("values");
  const TensorView& scales = operands.tensor("scales");
  const int64_t group_size = fields.integer("groupSize", 0, kMaxSafeInteger);
  return operands.job(&Backend::quantize_weight, check_quantize_weight(weight, values, scales, group_size), values);
}

Run gated_mlp(const Fields& fields, Operands& operands) {
  const TensorView& x = operands.tensor("x");
  const int64_t group_size = fields.integer("groupSize", 0, kMaxSafeInteger);
  const TensorView* gate = operands.optional_tensor("gate");
  std::optional<WeightArgument> gate_argument;
  if (gate) gate_argument.emplace(*gate, operands.optional_tensor("gateScales"), "gateScales", group_size);
  const WeightArgument up = {operands.tensor("up"), operands.optional_tensor("upScales"), "upScales", group_size};
  const WeightArgument down = {operands.tensor("down"), operands.optional_tensor("downScales"), "downScales",
                               group_size};
  const TensorView& out = operands.tensor("out");
  const GatedMlpParams p =
      check_gated_mlp(x, gate ? &*gate_argument : nullptr, up, down, out, fields.text("activation"));
  return operands.job(&Backend::gated_mlp, p, out);
}

Run matmul(const Fields& fields, Operands& operands) {
  const TensorView& x = operands.tensor("x");
  const WeightArgument weight = {operands.tensor("weight"), operands.optional_tensor("weightScales"), "weightScales",
                                 fields.integer("groupSize", 0, kMaxSafeInteger)};
  const TensorView& out = operands.tensor("out");
  return operands.job(&Backend::matmul, check_matmul(x, weight, out), out);
}

Run rms_norm(const Fields& fields, Operands& operands) {
  const TensorView& x = operands.tensor("x");
  const TensorView& weight = operands.tensor("weight");
  const TensorView& out = operands.tensor("out");
  const TensorView* residual = operands.optional_tensor("residual");
  const RmsNormParams p = check_rms_norm(x, weight, out, residual, fields.number("eps"), fields.boolean("accumulate"));
  return operands.job(&Backend::rms_norm, p, out);
}

Run add_bias(const Fields&, Operands& operands) {
  const TensorView& x = operands.tensor("x");
  const TensorView& bias = operands.tensor("bias");
  const TensorView& out = operands.tensor("out");
  return operands.job(&Backend::add_bias, check_add_bias(x, bias, out), out);
}

Run rope(const Fields& fields, Operands& operands) {
  const TensorView& x = operands.tensor("x");
  const TensorView& positions = operands.tensor("positions");
  const TensorView& out = operands.tensor("out");
  const double theta = fields.number("theta");
  return operands.job(
      [theta](const std::shared_ptr<Backend>& backend, RopeParams p) {
        std::vector<double> inv_freq(p.head_dim / 2);
        for (int64_t d = 0; d < p.head_dim / 2; ++d) inv_freq[d] = std::pow(theta, -2.0 * d / p.head_dim);
        Buffer device_inv_freq(backend, inv_freq.size() * sizeof(double));
        backend->upload(device_inv_freq.data(), inv_freq.data(), device_inv_freq.bytes());
        p.inv_freq = device_inv_freq.as<double>();
        backend->rope(p);
      },
      check_rope(x, positions, out, theta), out);
}

Run gated_activation(const Fields& fields, Operands& operands) {
  const TensorView* gate = operands.optional_tensor("gate");
  const TensorView& up = operands.tensor("up");
  const TensorView& out = operands.tensor("out");
  const GatedActivationParams p = check_gated_activation(gate, up, out, fields.text("activation"));
  return operands.job(&Backend::gated_activation, p, out);
}

Run softcap(const Fields& fields, Operands& operands) {
  const TensorView& x = operands.tensor("x");
  const TensorView& out = operands.tensor("out");
  return operands.job(&Backend::softcap, check_softcap(x, out, fields.number("cap")), out);
}

Run embed(const Fields& fields, Operands& operands) {
  const TensorView& table = operands.tensor("table");
  const TensorView& tokens = operands.tensor("tokens");
  const TensorView& out = operands.tensor("out");
  return operands.job(&Backend::embed, check_embed(table, tokens, out, fields.number("scale")), out);
}

// `prepare` reads and checks the arguments on the JS thread and returns the job for the executor.
struct Kernel {
  const char* name;
  Run (*prepare)(const Fields& fields, Operands& operands);
};
constexpr Kernel kKernels[] = {
    {"attentionPrefill", attention_prefill},
    {"attentionDecode", attention_decode},
    {"quantize", quantize},
    {"quantizeWeight", quantize_weight},
    {"gatedMlp", gated_mlp},
    {"matmul", matmul},
    {"rmsNorm", rms_norm},
    {"rope", rope},
    {"addBias", add_bias},
    {"gatedActivation", gated_activation},
    {"softcap", softcap},
    {"embed", embed},
};

}  // namespace

std::vector<Napi::ClassPropertyDescriptor<DeviceObject>> DeviceObject::kernel_methods() {
  std::vector<PropertyDescriptor> methods;
  for (const Kernel& kernel : kKernels) {
    methods.push_back(
        InstanceMethod<&DeviceObject::run_kernel>(kernel.name, napi_default, const_cast<Kernel*>(&kernel)));
  }
  return methods;
}

Napi::Value DeviceObject::run_kernel(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    const Fields fields(info);
    Operands operands(fields, *device_);
    return submit(info, static_cast<const Kernel*>(info.Data())->prepare(fields, operands));
  });
}

}  // namespace diffqkv::addon
